"""The *spawn* launcher: a runner as a child of the starter, which builds its sandbox around itself.

The runner starts from nothing: a fixed environment, no descriptor but its end of a fresh socket pair and a pipe for its
stderr. What it writes there is a stranger's text from the moment a model is loaded, so it is capped and escaped.

Trusts: the starter, to start what it is there to start and to tell how that ended.
Promises: nothing of the warden's environment, descriptors or arguments reaches a runner; a runner ends with the starter
    and with the warden.
Not here: the sandbox (``sandbox.layers``, by the runner itself), whether it is up (``warden.fence``), when to start or
    end one (``warden.pool``).
"""

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import Final

from appliance.core.refusals import Fault
from appliance.ipc.connection import Connection
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder
from appliance.ipc.messages import DEFAULT_MEMORY_BYTES, TakenMemory
from appliance.ipc.starting import (
    End,
    Ended,
    Failed,
    FencedIn,
    FromLine,
    Inspect,
    Measure,
    Measured,
    NotFencedIn,
    Started,
    StartRunner,
)
from appliance.warden.starter_client import Starter
from appliance.warden.stderr_tap import StderrTap

ANSWER_SECONDS: Final = 10.0
"""The starter answers in milliseconds. One that does not is stopped or starved, and nobody may wait for it for ever."""

_DATAGRAM_OVERHEAD_BYTES: Final = 1024
_DECODER: Final = FrameDecoder[FromLine](FromLine)

_LOG: Final = logging.getLogger("paddock.runner")

_Answer = Started | Failed | FencedIn | NotFencedIn


class LaunchedRunner:
    """One runner process and the warden's end of its channel. The caller closes ``channel`` when it is done with it.

    ``pid`` is the starter's child: the guardian, or without a pid namespace the runner itself.
    """

    def __init__(self, runner_id: str, channel: socket.socket, line: socket.socket, stderr: int) -> None:
        self.channel: Final = channel
        self.pid = 0
        self._runner_id = runner_id
        self._answers: asyncio.Queue[_Answer] = asyncio.Queue()
        self._measuring: asyncio.Future[TakenMemory | None] | None = None
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line: Connection[FromLine] = Connection(line, _DECODER, on_message=self._heard, on_closed=self._lost)
        self.stderr: Final = asyncio.get_running_loop().create_task(
            _drain(runner_id, stderr), name=f"stderr of {runner_id}"
        )

    async def started(self) -> None:
        """To be awaited first, once. Raises ``Fault`` when there is no process."""
        answer = await self._answer()
        if not isinstance(answer, Started):
            raise self._fault("cannot be started", answer)
        self.pid = answer.pid

    async def wait(self) -> int:
        """Returns when the process has ended: its exit status (``runner.main`` lists them), or minus the signal."""
        return await asyncio.shield(self._status)

    async def inspect(self, named: frozenset[str]) -> None:
        """Has the starter ask the kernel whether both filters are on. Raises ``Fault`` if not."""
        with suppress(ConnectionError):  # then the answer says why
            self._line.send(Inspect(named=tuple(sorted(named))))
        answer = await self._answer()
        if not isinstance(answer, FencedIn):
            raise self._fault("does not show its fence", answer)

    async def taken(self) -> TakenMemory | None:
        """How much memory it has now, as the starter sees it; None once it has ended. Who asks meanwhile is told the
        same."""
        if self._status.done():
            return None
        if self._measuring is None:
            self._measuring = asyncio.get_running_loop().create_future()
            with suppress(ConnectionError):  # it has ended, and that answers too
                self._line.send(Measure())
        return await asyncio.shield(self._measuring)

    def kill(self) -> None:
        """Ends the runner at once, or 2 s later if it ignores the first signal; no effect on one that has ended."""
        with suppress(ConnectionError):  # it has ended, or the starter has, and the runner with it
            self._line.send(End())

    async def _answer(self) -> _Answer:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._answers.get()
        except TimeoutError:
            return Failed(detail="the starter does not answer")

    def _fault(self, what: str, answer: _Answer) -> Fault:
        detail = answer.detail if isinstance(answer, Failed | NotFencedIn) else type(answer).__name__
        return Fault(f"runner {self._runner_id} {what}: {detail}")

    def _heard(self, word: FromLine, _fds: list[int]) -> None:
        if isinstance(word, Ended):
            self._end(word.status)
            self._line.close("the runner has ended")
        elif isinstance(word, Measured):
            self._tell_taken(word.taken)
        else:
            self._answers.put_nowait(word)

    def _tell_taken(self, taken: TakenMemory | None) -> None:
        if self._measuring is not None:
            self._measuring.set_result(taken)
            self._measuring = None

    def _lost(self, why: str) -> None:
        """Without an ``Ended``, the starter has ended: then the kernel kills what it started."""
        self._answers.put_nowait(Failed(detail=why))
        self._end(-signal.SIGKILL)

    def _end(self, status: int) -> None:
        self._tell_taken(None)
        if not self._status.done():
            self._status.set_result(status)


class SpawnLauncher:
    """Has runners started by the starter. ``launch`` must be called on the event loop's thread."""

    def __init__(self, starter: Starter) -> None:
        self.allow_degraded: Final = starter.allow_degraded
        self._starter = starter

    async def launch(self, runner_id: str, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> LaunchedRunner:
        """Starts one runner, which then waits for its ``Load``; its control group, if there are any, allows it so much
        memory. Raises ``Fault`` when the process cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stderr, their_stderr = os.pipe()
        try:
            _make_room(ours)
            _make_room(theirs)
            order = StartRunner(runner_id=runner_id, memory_bytes=memory_bytes)
            line = self._starter.order(order, [theirs.fileno(), their_stderr])
        except (OSError, Fault) as error:
            ours.close()
            os.close(stderr)
            raise Fault(f"runner {runner_id} cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(their_stderr)
        runner = LaunchedRunner(runner_id, ours, line, stderr)
        try:
            await runner.started()
        except BaseException:
            runner.kill()
            ours.close()
            raise
        return runner


def _make_room(end: socket.socket) -> None:
    """Raises the send buffer so that the largest frame fits one datagram. Raises ``OSError`` if the host forbids it."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_FRAME_BYTES)
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < MAX_FRAME_BYTES + _DATAGRAM_OVERHEAD_BYTES:
        raise OSError("net.core.wmem_max is too small for the largest frame")


async def _drain(runner_id: str, stderr: int) -> None:
    """Reads stderr to its end, whatever comes, so that a runner never blocks on it; logs what the tap lets through."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(stderr, "rb"))
    tap = StderrTap()
    try:
        while data := await reader.read(16 * 1024):
            for line in tap.feed(data, now_seconds=loop.time()):
                _LOG.warning("runner %s: %s", runner_id, line)
        for line in tap.end():
            _LOG.warning("runner %s: %s", runner_id, line)
    finally:
        transport.close()
