"""The few words between the warden and a runner, before its channel is leased: ``Fenced``, ``Load``, ``Ready``.

Trusts: see ``fence``.
Promises: the model's descriptor is sent only after the fence was accounted for; afterwards nobody here reads the
    channel.
Not here: starting and ending the process (``pool``).
"""

import asyncio
import socket
from typing import Any, Final, TypeVar

from appliance.core.refusals import Reason, Refused
from appliance.ipc.connection import Connection
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import Fenced, FromRunner, Load, LoadFailed, Ready
from appliance.warden import fence

_MAX_UNREAD: Final = 2
AnswerT = TypeVar("AnswerT")


async def handshake(
    channel: socket.socket, load: Load, model_file: int, allow_degraded: frozenset[str]
) -> tuple[Fenced, Ready]:
    """Hands the model over once the runner is fenced in, and returns when it is ready. The socket stays open.

    Raises ``Refused(RUNNER_UNAVAILABLE)`` when the runner refuses the model, dies or says anything else; the socket is
    then closed.
    """
    heard: asyncio.Queue[Any] = asyncio.Queue()

    def hear(message: FromRunner, _fds: list[int]) -> None:
        heard.put_nowait(message)
        if heard.qsize() > _MAX_UNREAD:
            connection.close("the runner talks out of turn")

    def lost(why: str) -> None:
        heard.put_nowait(LoadFailed(reason="runner-died", detail=why))

    decoder: FrameDecoder[FromRunner] = FrameDecoder(FromRunner)
    connection: Connection[FromRunner] = Connection(channel, decoder, on_message=hear, on_closed=lost)
    try:
        fenced = _require(Fenced, await heard.get())
        fence.require_whole(fenced, allow_degraded)
        connection.send(load, [model_file])
        ready = _require(Ready, await heard.get())
        fence.require_as_asked(ready, load)
        if connection.closed:
            raise Refused(Reason.RUNNER_UNAVAILABLE, "the runner left when it was ready")
    except ConnectionError as error:
        raise Refused(Reason.RUNNER_UNAVAILABLE, str(error)) from error
    except BaseException:
        connection.close()
        raise
    connection.detach()
    return fenced, ready


def _require(kind: type[AnswerT], answer: Any) -> AnswerT:
    if isinstance(answer, kind):
        return answer
    detail = f"{answer.reason}: {answer.detail}" if isinstance(answer, LoadFailed) else type(answer).__name__
    raise Refused(Reason.RUNNER_UNAVAILABLE, detail)
