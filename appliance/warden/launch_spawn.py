"""The *spawn* launcher: a runner as a child process that builds its sandbox around itself.

The child starts from nothing: a fixed environment, no descriptor but its end of a fresh socket pair and a pipe for its
stderr. What it writes there is a stranger's text from the moment a model is loaded, so it is capped and escaped.

Trusts: the installed ``appliance.runner`` package and this interpreter.
Promises: nothing of the warden's environment, descriptors or arguments reaches a runner; a runner ends with the warden.
Not here: the sandbox (``sandbox.layers``, by the runner itself), whether it is up (``warden.fence``), when to start or
    end one (``warden.pool``).
"""

import asyncio
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import Final

from appliance.core.refusals import Fault
from appliance.ipc.frames import MAX_FRAME_BYTES
from appliance.warden import fence
from appliance.warden.cgroups import RunnerGroup, RunnerGroups, enter
from appliance.warden.stderr_tap import StderrTap

RUNNER_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The reasons stand in ``runner.main``, which starts itself again if it finds any other environment."""

RUNNER_COMMAND: Final = (sys.executable, "-I", "-B", "-m", "appliance.runner")

DEFAULT_MEMORY_BYTES: Final = 2**31
"""What a ``Load`` that says nothing else allows."""

_KILL_AFTER_SECONDS: Final = 2.0
_DATAGRAM_OVERHEAD_BYTES: Final = 1024

_LOG: Final = logging.getLogger("paddock.runner")


class LaunchedRunner:
    """One runner process and the warden's end of its channel. The caller closes ``channel`` when it is done with it."""

    def __init__(
        self,
        runner_id: str,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        group: RunnerGroup | None = None,
    ) -> None:
        self.channel: Final = channel
        self._group = group
        self.pid: Final = process.pid
        self._process = process
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_end)
        self.stderr: Final = self._loop.create_task(_drain(runner_id, process), name=f"stderr of {runner_id}")

    async def wait(self) -> int:
        """Returns when the process has ended: its exit status (``runner.main`` lists them), or minus the signal."""
        await self._ended.wait()
        return self._process.wait()

    def inspect(self, named: frozenset[str]) -> None:
        """Asks the kernel whether both filters are on. Raises ``Fault`` if not."""
        fence.inspect(self.pid, named)

    def kill(self) -> None:
        """Ends the runner at once; no effect on one that has ended.

        SIGTERM, because the child itself is only the runner's guardian: it kills the runner and ends after it. Where
        there is no guardian (no pid namespace) a hostile runner could ignore that, so SIGKILL follows.
        """
        self._signal(signal.SIGTERM)
        self._loop.call_later(_KILL_AFTER_SECONDS, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.is_set():
            signal.pidfd_send_signal(self._pidfd, number)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()  # returns at once: a readable pidfd is an ended process
        if self._group is not None:
            self._group.remove()
        self._ended.set()


class SpawnLauncher:
    """Starts runners as children of this process.

    ``launch`` must be called on the thread of the event loop, and that thread must live as long as the process: the
    kernel kills a runner when the *thread* that started it ends (PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        *,
        allow_degraded: frozenset[str] = frozenset(),
        command: tuple[str, ...] = RUNNER_COMMAND,
        groups: RunnerGroups | None = None,
    ) -> None:
        """``groups`` are the control groups that runners get, where the host has delegated any."""
        self.allow_degraded: Final = allow_degraded
        self._command = command
        self._groups = groups

    def launch(self, runner_id: str, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> LaunchedRunner:
        """Starts one runner, which then waits for its ``Load``. Raises ``Fault`` when the process cannot be started, or
        not in a control group although there are some."""
        group = self._groups.make(runner_id, memory_bytes) if self._groups is not None else None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _make_room(ours)
            _make_room(theirs)
            process = self._start(theirs.fileno(), group)
        except (OSError, subprocess.SubprocessError) as error:
            ours.close()
            if group is not None:
                group.remove()
            raise Fault(f"runner {runner_id} cannot be started: {error}") from error
        finally:
            theirs.close()
            if group is not None:
                os.close(group.procs)
        return LaunchedRunner(runner_id, process, ours, group)

    def _start(self, channel_fd: int, group: RunnerGroup | None) -> subprocess.Popen[bytes]:
        arguments = ["--channel-fd", str(channel_fd)]
        if self.allow_degraded:
            arguments += ["--degraded", ",".join(sorted(self.allow_degraded))]
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[channel_fd],
            env=RUNNER_ENVIRONMENT,
            cwd="/",
            preexec_fn=functools.partial(enter, group.procs) if group is not None else None,  # noqa: PLW1509 - one write
        )


def _make_room(end: socket.socket) -> None:
    """Raises the send buffer so that the largest frame fits one datagram. Raises ``OSError`` if the host forbids it."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_FRAME_BYTES)
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < MAX_FRAME_BYTES + _DATAGRAM_OVERHEAD_BYTES:
        raise OSError("net.core.wmem_max is too small for the largest frame")


async def _drain(runner_id: str, process: subprocess.Popen[bytes]) -> None:
    """Reads stderr to its end, whatever comes, so that a runner never blocks on it; logs what the tap lets through."""
    assert process.stderr is not None  # noqa: S101 - for the type checker: Popen was given PIPE
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stderr)
    tap = StderrTap()
    try:
        while data := await reader.read(16 * 1024):
            for line in tap.feed(data, now_seconds=loop.time()):
                _LOG.warning("runner %s: %s", runner_id, line)
        for line in tap.end():
            _LOG.warning("runner %s: %s", runner_id, line)
    finally:
        transport.close()
