"""One question to a running process, over its Unix socket.

Trusts: whoever owns the socket's path.
Promises: an answer within the time limit, or ``Fault`` with a sentence for the operator.
Not here: what the answers mean.
"""

import asyncio
from pathlib import Path
from typing import Any, Final, Literal

from appliance.core.refusals import Fault
from appliance.ipc.connection import Caller, CallFailed, Connection, connect
from appliance.ipc.frames import FrameDecoder
from appliance.settings import Settings

TIMEOUT_SECONDS: Final = 120.0


def ask(config: Settings, who: Literal["notary", "warden"], question: Any, answers: Any) -> Any:
    """Sends ``question`` and returns the answer, of the union ``answers``. Raises ``Fault`` when there is none."""
    path = config.admin_socket if who == "notary" else config.warden_socket
    return asyncio.run(_ask(path, question, answers, who, _where_to_look(config, who)))


def _where_to_look(config: Settings, who: str) -> str:
    """Nobody should start as root by hand what the units start as users of their own."""
    if config.sandbox.launcher == "systemd":
        return f"see 'systemctl status paddock-{who}'"
    return "is 'paddock serve' running?"


async def _ask(path: Path, question: Any, answers: Any, who: str, where_to_look: str) -> Any:
    caller: Caller[Any] = Caller()
    decoder: FrameDecoder[Any] = FrameDecoder(answers)
    try:
        sock = await connect(path, None)
    except OSError as error:
        raise Fault(f"the {who} does not answer at {path}: {where_to_look}") from error
    connection: Connection[Any] = Connection(sock, decoder, on_message=caller.answered, on_closed=caller.disconnected)
    try:
        return await caller.ask(connection, question, timeout_seconds=TIMEOUT_SECONDS)
    except (CallFailed, TimeoutError) as error:
        raise Fault(f"the {who} did not answer: {error}") from error
    finally:
        connection.close()
