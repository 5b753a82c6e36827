"""``paddock token issue``: asks the notary, which alone holds the signing key.

Trusts: whoever owns the admin socket's path.
Promises: a token that is printed has its record in the log.
Not here: what a token may contain (``notary.signer``).
"""

import asyncio
from collections.abc import Sequence

from appliance.core.refusals import Fault
from appliance.ipc.connection import Caller, CallFailed, Connection, connect
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import FromNotaryAdmin, IssueToken, TokenSigned
from appliance.settings import Settings

TIMEOUT_SECONDS = 10.0


def issue(
    config: Settings, *, subject: str, client_id: str, groups: Sequence[str], models: Sequence[str], ttl_seconds: int
) -> str:
    """A signed bearer token (RFC 9068). Raises ``Fault`` when the notary is away or refuses."""
    question = IssueToken(
        call=1,
        subject=subject,
        client_id=client_id,
        groups=tuple(groups),
        models=tuple(models),
        ttl_seconds=ttl_seconds,
    )
    answer = asyncio.run(_ask(config, question))
    if not isinstance(answer, TokenSigned):
        raise Fault(f"the notary refused: {answer.reason}: {answer.detail}")
    return answer.token


async def _ask(config: Settings, question: IssueToken) -> FromNotaryAdmin:
    caller: Caller[FromNotaryAdmin] = Caller()
    decoder: FrameDecoder[FromNotaryAdmin] = FrameDecoder(FromNotaryAdmin)
    try:
        sock = await connect(config.admin_socket)
    except OSError as error:
        raise Fault(f"the notary does not answer at {config.admin_socket}: is 'paddock serve' running?") from error
    connection: Connection[FromNotaryAdmin] = Connection(
        sock, decoder, on_message=caller.answered, on_closed=caller.disconnected
    )
    try:
        return await caller.ask(connection, question, timeout_seconds=TIMEOUT_SECONDS)
    except (CallFailed, TimeoutError) as error:
        raise Fault(f"the notary did not answer: {error}") from error
    finally:
        connection.close()
