"""The *systemd* launcher: one ``paddock-runner@.service`` per connection to ``paddock-runner.socket``.

The connection is the runner's channel. The warden needs no privilege for it, and gets no power over the process either:
no pid, no signal, no exit status. Its one means is the channel. Limits of memory, processor and tasks are the unit's.

Trusts: whoever may create the socket's path, and the unit file behind it.
Promises: ``wait`` returns when the runner's end is closed, which the kernel does when the process ends; ``kill`` closes
    it from this side for every holder of a copy, and a runner without a peer ends itself.
Not here: the sandbox (``sandbox.layers`` and the unit); its stderr (the journal).
"""

import asyncio
import os
import select
import socket
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault
from appliance.ipc.connection import prepare

STATUS_UNKNOWN: Final = 0
"""What ``wait`` returns: systemd knows how the process ended, its journal says so, and we are not told."""


class ActivatedRunner:
    """One runner, known by its channel only. The caller closes ``channel`` when it is done with it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel: Final = channel
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A copy, so that the end is seen after the caller closed its own. An epoll of hang-ups only, so that the
        # answers that others read from the channel do not wake us.
        self._watched = channel.dup()
        self._hangups = select.epoll()
        self._hangups.register(self._watched, select.EPOLLRDHUP)
        self._loop.add_reader(self._hangups.fileno(), self._on_end)

    async def wait(self) -> int:
        """Returns ``STATUS_UNKNOWN`` when the runner's end of the channel is closed."""
        await self._ended.wait()
        return STATUS_UNKNOWN

    def kill(self) -> None:
        """Shuts the channel down for all who hold it; no effect on one that has ended."""
        if not self._ended.is_set():
            self._watched.shutdown(socket.SHUT_RDWR)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._hangups.fileno())
        self._hangups.close()
        self._watched.close()
        self._ended.set()


class SystemdLauncher:
    """Starts runners by connecting. To be used on the thread of the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def launch(self, runner_id: str) -> ActivatedRunner:
        """Connects; the runner then waits for its ``Load``.

        Raises ``Fault`` when nobody listens, the queue of connections is full, or we may not connect.
        """
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            prepare(channel)  # non-blocking: a full queue is an error at once, not a stopped event loop
            channel.connect(os.fspath(self._path))
        except OSError as error:
            channel.close()
            raise Fault(f"runner {runner_id} cannot be started: {self._path}: {error.strerror}") from error
        return ActivatedRunner(channel)
