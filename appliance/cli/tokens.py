"""``paddock token issue``: asks the notary, which alone holds the signing key.

Trusts: whoever owns the admin socket's path.
Promises: a token that is printed has its record in the log.
Not here: what a token may contain (``notary.signer``).
"""

from collections.abc import Sequence

from appliance.cli.ask import ask
from appliance.core.refusals import Fault
from appliance.ipc.messages import FromNotaryAdmin, IssueToken, TokenSigned
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
        raise Fault(f"the notary refused: {answer.reason}: {answer.detail}")
    return answer.token
