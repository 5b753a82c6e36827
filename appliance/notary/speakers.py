"""Which process speaks as what: one role each, for as long as it lives, and tokens for none of them.

Where all services run as one user a uid tells nothing about who connects. The process does: a service says ``Hello``
before it hears a stranger, its fence lets it start no other process, and so whoever takes it over later is known here.

Trusts: the kernel's word on who connected; each service to say ``Hello`` before its first stranger.
Promises: a process that has a role keeps it until it has ended; a pid that is used again is another process. One that
    cannot be watched keeps its role for as long as the notary runs.
Not here: which uid may have which role (``notary.main``).
"""

import asyncio
import os
from typing import NamedTuple


class Process(NamedTuple):
    """Who connected (SO_PEERCRED, unix(7)). The pid is 0 for everybody in a pid namespace that is not below ours: all
    of one user there count as one."""

    pid: int
    uid: int


class Speakers:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._roles: dict[Process, str] = {}
        self._watched: dict[Process, int] = {}

    def role_of(self, process: Process) -> str | None:
        return self._roles.get(process)

    def claim(self, process: Process, role: str) -> bool:
        """Gives the process this role. False when it has another."""
        known = self._roles.setdefault(process, role)
        if known == role and process not in self._watched:
            self._watch(process)
        return known == role

    def close(self) -> None:
        for process in tuple(self._watched):
            self._forget(process)

    def _watch(self, process: Process) -> None:
        """A pidfd becomes readable when its process ends (pidfd_open(2))."""
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            del self._roles[process]  # ended since it spoke
            return
        except OSError:
            return  # never forgotten
        self._watched[process] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._forget, process)

    def _forget(self, process: Process) -> None:
        pidfd = self._watched.pop(process)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        del self._roles[process]
