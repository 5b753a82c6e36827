"""The few words between the warden and a runner, before its channel is leased: ``Fenced``, ``Load``, ``Ready``.

Where the launcher asked the kernel to name the senders (``SO_PASSCRED``), the process that said ``Fenced`` is looked at
before it gets the model and again when it is ready: a launcher that sees no process (systemd's) has no other witness.

Trusts: see ``fence``.
Promises: the model's descriptor is sent only after the fence was accounted for; afterwards nobody here reads the
    channel, and nobody who does is told the senders.
Not here: starting and ending the process (``pool``).
"""

import asyncio
import socket
import struct
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any, Final, TypeVar

from appliance.core.refusals import Fault, Reason, Refused
from appliance.ipc.connection import Connection
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import Fenced, FromRunner, Load, LoadFailed, Ready
from appliance.warden import fence

_MAX_UNREAD: Final = 2
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
AnswerT = TypeVar("AnswerT")


async def handshake(
    channel: socket.socket, load: Load, files: Sequence[int], allow_degraded: frozenset[str]
) -> tuple[Fenced, Ready]:
    """Hands the model over, and what is loaded with it, once the runner is fenced in, and returns when it is ready. The
    socket stays open.

    Raises ``Refused(RUNNER_UNAVAILABLE)`` when the runner refuses the model, dies or says anything else, ``Fault`` when
    the kernel does not show its fence; the socket is then closed.
    """
    try:
        sender = await _first_sender(channel)
    except BaseException:
        channel.close()
        raise
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
        with closing(fence.Witness(sender)) if sender else nullcontext() as witness:
            if witness:
                await asyncio.to_thread(witness.require_alone)  # whatever the machine's size, others are not held up
            connection.send(load, files)
            ready = _require(Ready, await heard.get())
            fence.require_as_asked(ready, load)
            if witness:
                witness.require_fenced()
        if connection.closed:
            raise Refused(Reason.RUNNER_UNAVAILABLE, "the runner left when it was ready")
    except ConnectionError as error:
        raise Refused(Reason.RUNNER_UNAVAILABLE, str(error)) from error
    except BaseException:
        connection.close()
        raise
    connection.detach()
    return fenced, ready


async def _first_sender(channel: socket.socket) -> fence.Sender | None:
    """Waits for the first message, leaves it where it is, and tells who sent it; None where nobody asked to be told.

    Raises ``Fault`` when the kernel does not tell, ``Refused`` when the runner has gone.
    """
    if not channel.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
        return None
    await _readable(channel)
    try:
        first, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_PEEK)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    except OSError as error:
        raise Refused(Reason.RUNNER_UNAVAILABLE, f"the runner cannot be heard: {error.strerror}") from error
    if not first:
        raise Refused(Reason.RUNNER_UNAVAILABLE, "the runner ended before it said anything")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, _gid = _CREDENTIALS.unpack(data)
            return fence.Sender(pid=pid, uid=uid)
    raise Fault("the kernel does not say who the runner is")


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(channel, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(channel)


def _require(kind: type[AnswerT], answer: Any) -> AnswerT:
    if isinstance(answer, kind):
        return answer
    detail = f"{answer.reason}: {answer.detail}" if isinstance(answer, LoadFailed) else type(answer).__name__
    raise Refused(Reason.RUNNER_UNAVAILABLE, detail)
