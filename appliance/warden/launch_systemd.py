"""The *systemd* launcher: one ``paddock-runner@.service`` per connection to ``paddock-runner.socket``.

The connection is the runner's channel. The warden needs no privilege for it, and gets no power over the process either:
no signal, no exit status. Its one means is the channel. Limits of memory, processor and tasks are the unit's.

Who is at the other end it learns from the kernel, which names the sender of a message if that was asked for before the
message was sent; so ``launch`` asks before it connects.

Trusts: whoever may create the socket's path, and the unit file behind it; the runner looks whether that gives what it
    should (``sandbox.given``).
Promises: ``wait`` returns when the runner's end is closed, which the kernel does when the process ends, and never for
    what this side did; ``kill`` ends what can be said to it, for every holder of a copy: a runner that hears the end of
    its channel ends itself, and its guardian ends one that does not (``runner.main``).
Not here: the sandbox (``sandbox`` and the unit); looking at the process (``handshake``, ``fence``); its stderr (the
    journal).
"""

import asyncio
import os
import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault
from appliance.ipc.connection import prepare
from appliance.sandbox import given


class ActivatedRunner:
    """One runner, known by its channel only. The caller closes ``channel`` when it is done with it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel: Final = channel
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A copy, so that the end is seen after the caller closed its own. An epoll of hang-ups only, so that the
        # answers that others read from the channel do not wake us. The kernel reports one when the other end is closed,
        # and would when this side shut its own reading down.
        self._watched = channel.dup()
        self._hangups = select.epoll()
        self._hangups.register(self._watched, select.EPOLLRDHUP)
        self._loop.add_reader(self._hangups.fileno(), self._on_end)

    async def wait(self) -> None:
        """Returns when the runner's end of the channel is closed. systemd knows how the process ended, its journal says
        so, and we are not told."""
        await self._ended.wait()

    async def inspect(self, named: frozenset[str]) -> None:
        """The handshake has looked: it knows the process, by what the kernel says of its messages."""

    async def taken(self) -> None:
        """systemd knows, and tells whoever asks it (``systemctl status``)."""

    def kill(self) -> None:
        """Shuts the way to the runner, for all who hold this end: it hears that its channel has ended. No effect on one
        that has ended."""
        if not self._ended.is_set():
            with suppress(OSError):  # the runner was faster
                self._watched.shutdown(socket.SHUT_WR)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._hangups.fileno())
        self._hangups.close()
        self._watched.close()
        self._ended.set()


class SystemdLauncher:
    """Starts runners by connecting. To be used on the thread of the event loop."""

    def __init__(self, path: Path, *, allow_degraded: frozenset[str] = frozenset()) -> None:
        self.allow_degraded: Final = given.NOT_GIVEN | allow_degraded
        self._path = path

    async def launch(self, runner_id: str, memory_bytes: int = 0) -> ActivatedRunner:
        """Connects; the runner then waits for its ``Load``. Its unit bounds what the runner does not bound itself.

        Raises ``Fault`` when nobody listens, the queue of connections is full, or we may not connect.
        """
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            prepare(channel)  # non-blocking: a full queue is an error at once, not a stopped event loop
            channel.connect(os.fspath(self._path))
        except OSError as error:
            channel.close()
            raise Fault(f"runner {runner_id} cannot be started: {self._path}: {error.strerror}") from error
        return ActivatedRunner(channel)
