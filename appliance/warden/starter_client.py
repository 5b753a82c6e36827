"""The warden's end of its starter: begins it, gives it orders, and learns of its end.

Trusts: the starter, which has read nothing of a stranger's.
Promises: an order is given at once or refused, from whatever thread; its line ends with the process or with the
    starter, so nobody waits for what will not come.
Not here: what is said over a line (``launch_spawn``, ``validate``).
"""

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Never, Self

from appliance.core.refusals import Fault
from appliance.ipc.frames import encode
from appliance.ipc.starting import Order
from appliance.warden import commands

ENDING_SECONDS: Final = 10.0
"""Longer than the starter gives its processes."""


class Starter:
    """A starter process. ``with`` ends it, and all that it started."""

    def __init__(
        self,
        *,
        allow_degraded: frozenset[str] = frozenset(),
        validators_only: bool = False,
        groups: Path | None = None,
        command: tuple[str, ...] = commands.STARTER_COMMAND,
    ) -> None:
        """To be called on the main thread, since the starter ends with the thread that began it (PR_SET_PDEATHSIG), and
        by a process that serves before anything foreign is read: from then on it could be another's.
        ``allow_degraded``: the layers that its processes may do without. ``groups``: where in the cgroup tree its
        runners get groups (``cgroups.RunnerGroups``).

        Raises ``Fault`` when the process cannot be started.
        """
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setblocking(False)
        arguments = ["--orders-fd", str(theirs.fileno()), "--degraded", ",".join(sorted(allow_degraded))]
        arguments += ["--validators-only"] if validators_only else []
        arguments += ["--groups", str(groups)] if groups is not None else []
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=commands.STARTER_ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # a terminal's Ctrl-C is the warden's to act on
            )
        except OSError as error:
            self._orders.close()
            raise Fault(f"the starter cannot be started: {error}") from error
        finally:
            theirs.close()
        self.allow_degraded: Final = allow_degraded
        self.pid: Final = self._process.pid

    def order(self, order: Order, descriptors: Sequence[int]) -> socket.socket:
        """Has one process started; the descriptors stay the caller's. Returns the line to it, which is blocking;
        closing it ends the process.

        Raises ``Fault`` when the starter has gone or takes no more orders.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise Fault(f"no line to the starter: {error}") from error
        with theirs:
            try:
                socket.send_fds(self._orders, [encode(order)], [*descriptors, theirs.fileno()])
            except OSError as error:
                ours.close()
                raise Fault(f"the starter takes no orders: {error.strerror}") from error
        return ours

    async def run(self) -> Never:
        """Waits for the starter's end, which only a fault of its own can bring. Then raises ``Fault``."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._orders, ended.set)  # it says nothing here, so what there is to read is the end
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._orders)
        raise Fault("the starter has ended")

    def close(self) -> None:
        """Ends the starter and waits for it. Safe to call twice."""
        self._orders.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(PermissionError):  # a warden behind its fence signals nobody; its starter ends with it
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
