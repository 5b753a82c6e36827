"""``paddock serve``: the notary, the warden and the gateway as children of one process, restarted when they die; and
the liaison where foreign issuers are configured.

Each child leads a session of its own, so that a terminal's Ctrl-C reaches only this process, which then stops them in
the order in which they need each other: gateway, liaison, warden, notary. Children end with this process even if it is
killed (PR_SET_PDEATHSIG, set by each child itself).

Trusts: the children's exit statuses.
Promises: a child that dies is started again; one that says that it cannot work as configured ends everything, with its
    status, so that nobody takes a half-started appliance for a working one.
Not here: what the processes do (``assemble``).
"""

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.cli.roles import EXIT_CONFIG
from appliance.core.refusals import Fault
from appliance.settings import child_environment

ROLES: Final = ("notary", "warden", "gateway")
WITH_LIAISON: Final = ("notary", "warden", "liaison", "gateway")
_PEERS: Final = ("gateway", "warden")
"""Who talks with the notary."""

STOP_SECONDS: Final = 30.0
_REAP_SECONDS: Final = 5.0
_RESTART_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
_SETTLED_SECONDS: Final = 30.0

log = logging.getLogger(__name__)


@dataclass
class Child:
    role: str
    process: subprocess.Popen[bytes]
    ended: asyncio.Event


class Supervisor:
    """Runs the roles until ``stop`` is called or one of them refuses its configuration."""

    def __init__(self, config_file: Path | None, roles: Sequence[str] = ROLES) -> None:
        self._config_file = config_file
        self._roles = roles
        self._children: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self.exit_status = 0

    def stop(self) -> None:
        """Begins an orderly stop. Safe to call from a signal handler of the event loop."""
        self._stopping.set()

    async def run(self) -> int:
        """Returns the exit status of the whole."""
        async with asyncio.TaskGroup() as tasks:
            keepers = [tasks.create_task(self._keep(role)) for role in self._roles]
            if os.getpid() == 1:
                keepers.append(tasks.create_task(self._reap_orphans()))
            await self._stopping.wait()
            for keeper in keepers:
                keeper.cancel()
        for role in reversed(self._roles):
            await self._end(role)
        return self.exit_status

    async def _keep(self, role: str) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            child = self._start(role)
            await child.ended.wait()
            status = child.process.wait()
            if status == EXIT_CONFIG:
                self.exit_status = EXIT_CONFIG
                self._stopping.set()
                return
            log.error("the %s ended with status %d and is started again", role, status)
            attempt = 0 if loop.time() - started > _SETTLED_SECONDS else attempt + 1
            await asyncio.sleep(_RESTART_SECONDS[min(attempt, len(_RESTART_SECONDS)) - 1] if attempt else 0)

    async def _reap_orphans(self) -> None:
        """As the first process of a container: takes in what descendants left behind, runners of a warden that died."""
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            _reap_all_but({child.process.pid for child in self._children.values()})

    def _start(self, role: str) -> Child:
        config = ["--config", str(self._config_file)] if self._config_file else []
        beside = self._beside() if role == "notary" else []
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "appliance", role, *config, "--parent", str(os.getpid()), *beside],
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,
        )
        child = Child(role, process, asyncio.Event())
        _call_when_ended(process, child.ended.set)
        self._children[role] = child
        return child

    def _beside(self) -> list[str]:
        """A notary that is started again knows its old peers at once: one that was taken over would not greet it."""
        living = [child for child in self._children.values() if child.role in _PEERS and not child.ended.is_set()]
        return [word for child in living for word in ("--beside", f"{child.role}={child.process.pid}")]

    async def _end(self, role: str) -> None:
        child = self._children.get(role)
        if child is None or child.ended.is_set():
            return
        child.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await child.ended.wait()
        except TimeoutError:
            log.warning("the %s does not stop and is killed", role)
            child.process.kill()
            await child.ended.wait()
        child.process.wait()


def _reap_all_but(own: set[int]) -> None:
    children = Path("/proc/self/task/1/children").read_text(encoding="ascii").split()
    for pid in set(map(int, children)) - own:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _call_when_ended(process: subprocess.Popen[bytes], callback: Callable[[], None]) -> None:
    """A pidfd becomes readable when its process ends (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        callback()

    loop.add_reader(pidfd, ended)


def _claim(state_dir: Path) -> int:
    """One ``paddock serve`` for each state directory, as long as the returned descriptor is open. Raises ``Fault``."""
    fd = os.open(state_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Fault(f"paddock serve is running already on {state_dir}") from None
    return fd


async def supervise(config_file: Path | None, state_dir: Path, *, with_liaison: bool = False) -> int:
    """``paddock serve``: returns its exit status. Raises ``Fault`` when another serves this state directory."""
    _claim(state_dir)  # held until this process ends, however it ends
    supervisor = Supervisor(config_file, WITH_LIAISON if with_liaison else ROLES)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    return await supervisor.run()
