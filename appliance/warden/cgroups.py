"""A control group for each runner, where the host has delegated a part of the cgroup v2 tree to this process.

The kernel then bounds what a runner's own limits do not see (page tables, socket buffers, the sum of its processes) and
ends all of it at once. Many hosts delegate nothing, and a process cannot help that: it says so, and the runner's own
limits stand. What is ours follows systemd's rules (CGROUP_DELEGATION) and the kernel's (admin-guide/cgroup-v2.rst,
"Delegation"): a cgroup that systemd marked, one that belongs to our user, or the root of a container's namespace, with
nobody in it but us and those who were started with us.

A cgroup that has processes cannot share its controllers out ("no internal processes"), so what is in it moves to the
leaf ``paddock-main`` first. A warden that is started again finds itself in that leaf.

Trusts: the kernel's ``/proc`` and ``/sys/fs/cgroup``; the host's word on what is delegated.
Promises: ``RunnerGroups.find`` changes nothing unless all it needs is there. A group has its limits before a process
    enters it; where groups were found, a runner without one is not started.
Not here: the limits that a runner puts on itself (``sandbox.layers``); the units' own limits (systemd).
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault
from appliance.sandbox.procfs import mounts

LEAF: Final = "paddock-main"
PREFIX: Final = "runner-"
CONTROLLERS: Final = frozenset({"memory", "pids"})
MOST_TASKS: Final = 300
"""The 256 threads that a ``Load`` may ask for, Python's own, and the guardian."""
KERNEL_BYTES: Final = 256 * 2**20
"""What the kernel keeps for a runner and counts as its: page tables, buffers of its channel, parts of the model that it
read again."""

_UNITS: Final = frozenset({".service", ".scope", ".slice"})
_MOVES: Final = 5
_BETWEEN_MOVES_SECONDS: Final = 0.2


class NotDelegated(Exception):
    """There is no part of the tree that would be ours to divide. Says why."""


@dataclass(frozen=True)
class Seen:
    """One cgroup as this process finds it. ``parents`` are the processes in it, each with its parent's number."""

    path: Path
    is_host_root: bool
    is_namespace_root: bool
    is_marked: bool
    is_own: bool
    is_writable: bool
    controllers: frozenset[str]
    parents: dict[int, int]


# --- what is ours: decided on what was seen -------------------------------------------------------------------------


def require_ours(seen: Seen, pid: int) -> None:
    """Raises ``NotDelegated`` unless ``seen`` may be divided by the process ``pid``, which is in it."""
    if seen.is_host_root:
        raise NotDelegated("this process is in the root of the host's tree")
    owned = seen.is_own and seen.path.suffix not in _UNITS  # a manager's units are its own to divide unless it says so
    if not (seen.is_namespace_root or seen.is_marked or owned):
        raise NotDelegated(f"{seen.path} is not delegated")
    if not seen.is_writable:
        raise NotDelegated(f"{seen.path} cannot be written to")
    if lacking := CONTROLLERS - seen.controllers:
        raise NotDelegated(f"{seen.path} has no controller {', '.join(sorted(lacking))}")
    if others := strangers(seen.parents, pid):
        raise NotDelegated(f"{seen.path} holds {len(others)} processes that are not ours")


def strangers(parents: dict[int, int], pid: int) -> frozenset[int]:
    """Those that neither started us, nor were started by us or by who started us, as far as that one is in it too."""
    ours = {pid, parents.get(pid, pid)} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return frozenset(parents) - ours


def own_path(cgroup: str, mountinfo: str) -> tuple[Path, Path]:
    """From ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` the folder of this process's cgroup, and that of the
    uppermost one it can see (cgroups(7)). Raises ``NotDelegated``."""
    names = [line[3:] for line in cgroup.splitlines() if line.startswith("0::/")]
    trees = [mount for mount in mounts(mountinfo) if mount.kind == "cgroup2"]
    if not names or not trees:
        raise NotDelegated("this host has no cgroup v2")
    name, root, point = names[0], trees[0].root, trees[0].point
    inside = Path(name)
    if ".." in inside.parts or not inside.is_relative_to(root):
        raise NotDelegated(f"{name} is outside what is mounted")
    return Path(point) / inside.relative_to(root), Path(point)


# --- the tree -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunnerGroup:
    """A group with its limits on. The caller closes ``procs``, which is open for writing, and removes the group."""

    path: Path
    procs: int

    def remove(self) -> None:
        """Ends whatever is left in it (Linux 5.14), then takes it away. One that does not end in time is taken away by
        the next ``RunnerGroups.make``."""
        with suppress(OSError):  # an older kernel: the runner ends with its guardian all the same
            _write(self.path / "cgroup.kill", "1")
        with suppress(OSError):  # still ending
            self.path.rmdir()


def enter(procs: int) -> None:
    """Moves the calling process into a group; called in the child before it becomes a runner. Raises ``OSError``."""
    os.write(procs, b"0")


class RunnerGroups:
    """The part of the tree that is ours. Made by ``find``."""

    def __init__(self, base: Path) -> None:
        self.base: Final = base

    @classmethod
    def find(cls, *, proc: Path = Path("/proc")) -> "RunnerGroups":
        """Moves this process and those beside it into the leaf, and shares the controllers out.

        Raises ``NotDelegated`` where nothing is ours, or where the kernel will not have it divided.
        """
        try:
            path, top = own_path((proc / "self/cgroup").read_text(), (proc / "self/mountinfo").read_text())
            if path.name == LEAF and path != top:  # moved there before a restart
                path = path.parent
            seen = look(path, top, proc)
        except OSError as error:
            raise NotDelegated(f"the tree cannot be read: {error}") from None
        require_ours(seen, os.getpid())
        try:
            _divide(path)
        except OSError as error:
            raise NotDelegated(f"{path} is delegated and cannot be divided: {error}") from error
        return cls(path)

    def make(self, runner_id: str, memory_bytes: int) -> RunnerGroup:
        """A group for one runner, which may have so much memory for itself. Raises ``Fault``."""
        self._sweep()
        path = self.base / f"{PREFIX}{runner_id}"
        try:
            path.mkdir()
            _write(path / "memory.max", str(memory_bytes + KERNEL_BYTES))
            _write(path / "pids.max", str(MOST_TASKS))
            _write(path / "memory.oom.group", "1")  # the runner and its guardian, not one of them
            with suppress(OSError):  # absent where the kernel does not count swap
                _write(path / "memory.swap.max", "0")
            return RunnerGroup(path, os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            with suppress(OSError):
                path.rmdir()
            raise Fault(f"no control group for runner {runner_id}: {error}") from error

    def _sweep(self) -> None:
        """Takes away what ended after it was given up, a former warden's too. The kernel keeps those that live."""
        for path in self.base.glob(f"{PREFIX}*"):
            with suppress(OSError):
                path.rmdir()


def look(path: Path, top: Path, proc: Path = Path("/proc")) -> Seen:
    """Reads one cgroup, ``top`` being the uppermost, and changes nothing. Raises ``OSError``."""
    files = [path, path / "cgroup.procs", path / "cgroup.subtree_control"]
    parents = {pid: _parent(proc, pid) for pid in _processes(path)}
    still_there = _processes(path)
    return Seen(
        path=path,
        is_host_root=not (path / "cgroup.type").exists(),  # the one cgroup that has none
        is_namespace_root=path == top,
        is_marked=_is_marked(path),
        is_own=os.geteuid() != 0 and path.stat().st_uid == os.geteuid(),
        is_writable=all(os.access(file, os.W_OK) for file in files),
        controllers=frozenset((path / "cgroup.controllers").read_text().split()),
        parents={pid: parent for pid, parent in parents.items() if pid in still_there},
    )


def _is_marked(path: Path) -> bool:
    """What systemd writes on a unit with ``Delegate=``."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _processes(path: Path) -> set[int]:
    """In it and in its leaf; 0 for one of another pid namespace."""
    lists = (path / "cgroup.procs", path / LEAF / "cgroup.procs")
    return {int(line) for one in lists if one.exists() for line in one.read_text().split()}


def _parent(proc: Path, pid: int) -> int:
    """Who started it; 0, which is nobody's number, where that cannot be seen. The second word of the file may hold
    anything, so it is skipped (proc(5))."""
    try:
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def _divide(path: Path) -> None:
    """Moves what is in ``path`` to its leaf, and has it share its controllers out. Raises ``OSError``.

    A process that is started meanwhile is still in ``path``: then the kernel says EBUSY, and it is tried again.
    """
    leaf = path / LEAF
    leaf.mkdir(exist_ok=True)
    wanted = " ".join(f"+{name}" for name in sorted(CONTROLLERS))
    for attempt in range(1, _MOVES + 1):
        for pid in (path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):  # it has ended
                _write(leaf / "cgroup.procs", pid)
        try:
            _write(path / "cgroup.subtree_control", wanted)
        except OSError:
            if attempt == _MOVES:
                raise
            time.sleep(_BETWEEN_MOVES_SECONDS)
        else:
            return


def _write(path: Path, text: str) -> None:
    """One write, which the kernel takes as one order."""
    path.write_text(text, "ascii")
