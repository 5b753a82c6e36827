"""``paddock tokens``: asks the notary, which alone holds the signing key and knows what lives and what has ended.

Trusts: whoever owns the admin socket's path.
Promises: a token that is printed, and an end that is told, has its record in the log.
Not here: what a token may contain (``notary.signer``).
"""

from collections.abc import Sequence

from appliance.cli.ask import ask
from appliance.core.refusals import Fault
from appliance.ipc.frames import FrameDecoder, FrameError, encode
from appliance.ipc.messages import (
    EndTokens,
    Failed,
    FamilyFacts,
    FamilyList,
    FromNotaryAdmin,
    IssueToken,
    ListFamilies,
    TokenSigned,
)
from appliance.settings import Settings

MAX_NAME = 255
MAX_LIST = 64


def issue(
    config: Settings, *, subject: str, client_id: str, groups: Sequence[str], models: Sequence[str], ttl_seconds: int
) -> str:
    """A signed bearer token (RFC 9068). Raises ``Fault`` when the notary is away or refuses."""
    if not 1 <= ttl_seconds <= config.identity.max_lifetime_seconds:
        raise Fault(f"--ttl must be 1 to {config.identity.max_lifetime_seconds} seconds")
    if not (
        1 <= len(subject) <= MAX_NAME and 1 <= len(client_id) <= MAX_NAME and max(len(groups), len(models)) <= MAX_LIST
    ):
        raise Fault(f"--sub and --client need 1 to {MAX_NAME} characters; at most {MAX_LIST} groups and models")
    question = IssueToken(
        call=1,
        subject=subject,
        client_id=client_id,
        groups=tuple(groups),
        models=tuple(models),
        ttl_seconds=ttl_seconds,
    )
    answer = ask(config, "notary", question, FromNotaryAdmin)
    if not isinstance(answer, TokenSigned):
        raise _refused(answer)
    return answer.token


def families(config: Settings, client_id: str = "") -> list[FamilyFacts]:
    """The families of refresh tokens, of one client or of all. Raises ``Fault``."""
    found: list[FamilyFacts] = []
    while True:
        after = found[-1].family.family_id if found else ""
        page = ask(config, "notary", ListFamilies(call=1, client_id=client_id, after=after), FromNotaryAdmin)
        if not isinstance(page, FamilyList):
            raise _refused(page)
        found += page.families
        if not page.more:
            return found


def revoke(config: Settings, *, token_id: str | None, client_id: str | None) -> None:
    """Ends one token or family, or all tokens of a client. Raises ``Fault``."""
    order = EndTokens(call=1, token_id=token_id, client_id=client_id)
    try:
        FrameDecoder[EndTokens](EndTokens).decode(encode(order))
    except (FrameError, ValueError) as error:  # the second of text that is no Unicode
        raise Fault(f"that is no id of a token, or of a client: {error}") from error
    answer = ask(config, "notary", order, FromNotaryAdmin)
    if isinstance(answer, Failed):
        raise _refused(answer)


def _refused(answer: FromNotaryAdmin) -> Fault:
    said = f"{answer.reason}: {answer.detail}" if isinstance(answer, Failed) else "it answered something else"
    return Fault(f"the notary refused: {said}")
