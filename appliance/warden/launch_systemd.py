"""The *systemd* launcher: one ``paddock-runner@.service`` per connection to ``paddock-runner.socket``.

The connection is the runner's channel. The warden needs no privilege for it, and gets no power over the process either:
no pid, no signal, no exit status. Its one means is the channel. Limits of memory, processor and tasks are the unit's.

Trusts: whoever may create the socket's path, and the unit file behind it.
Promises: ``wait`` returns when the runner's end is closed, which the kernel does when the process ends, and never for
    what this side did; ``kill`` ends what can be said to it, for every holder of a copy, and a runner that hears the
    end of its channel ends itself.
Not here: the sandbox (``sandbox.layers`` and the unit); its stderr (the journal). Whether stage 2 of the filter is on
    rests on the runner's word here, since this process sees no other; stage 1 and the unit's own filter do not.
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
from appliance.sandbox import layers

GIVEN_BY_THE_UNIT: Final = frozenset(
    {
        layers.USER_NAMESPACE,
        layers.PID_NAMESPACE,
        layers.NETWORK_NAMESPACE,
        layers.MOUNT_NAMESPACE,
        layers.IPC_NAMESPACE,
        layers.UTS_NAMESPACE,
        layers.CGROUP_NAMESPACE,
        layers.EMPTY_ROOT,
    }
)
"""What ``paddock-runner@.service`` puts around a runner in another way, so that the runner reports it as missing."""


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

    def inspect(self, named: frozenset[str]) -> None:
        """There is nothing to look at: another user's process, in a unit that shows this one no other."""

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

    allow_degraded: Final = GIVEN_BY_THE_UNIT

    def __init__(self, path: Path) -> None:
        self._path = path

    def launch(self, runner_id: str, memory_bytes: int = 0) -> ActivatedRunner:
        """Connects; the runner then waits for its ``Load``. Its unit bounds what the runner does not bound itself.

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
