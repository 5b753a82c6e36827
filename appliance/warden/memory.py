"""This host's memory: what all runners may have together, what one of them may have for itself, and what it has.

The plan (``core.memory``) is what a model takes. The limit is for a process that went mad: more than any sound model of
its kind takes, and not more than that. The runner puts it on itself before it reads the model
(``sandbox.layers.memory_limits``).

Trusts: the kernel's ``/proc`` and ``/sys/fs/cgroup``; the plan.
Promises: a budget and a limit on every host, the limit between ``LEAST_BYTES`` and ``MOST_BYTES``.
Not here: who is loaded and who makes room (``pool``); cgroups (``cgroups``).
"""

import os
import re
from pathlib import Path
from typing import Final

from appliance.core.memory import COPIED_TYPES, COPIED_TYPES_ELSEWHERE, MemoryPlan
from appliance.ipc.messages import TakenMemory
from appliance.sandbox.procfs import status_fields
from appliance.warden.cgroups import NotDelegated, own_path

LEAST_BYTES: Final = 2**30
MOST_BYTES: Final = 2**46

_RESERVED_BYTES: Final = 2**30
"""What is counted and never touched: buffers that grow when they are needed, the heaps of threads."""
_STACK_BYTES: Final = 8 * 2**20


def limit_bytes(plan: MemoryPlan, *, threads: int, host_bytes: int) -> int:
    """A quarter more than was planned for the runner's own, since the plan is ours and not llama.cpp's."""
    wanted = plan.private * 5 // 4 + threads * _STACK_BYTES + _RESERVED_BYTES
    return max(LEAST_BYTES, min(wanted, host_bytes * 3 // 4, MOST_BYTES))


def host_bytes() -> int:
    """The memory of this host, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def budget_bytes(*, proc: Path = Path("/proc")) -> int:
    """Three quarters of what is free now for this process and those beside it: of ``MemAvailable``, or of the lowest
    ``memory.max`` of a control group above us. The rest is for the other processes, and for page cache."""
    return min([_available_bytes(proc), *_cgroup_limits(proc)]) * 3 // 4


def _available_bytes(proc: Path) -> int:
    """proc(5), since Linux 3.14."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else host_bytes() // 2


def _cgroup_limits(proc: Path) -> list[int]:
    """Of those that can be seen: in a container the uppermost is the container's own."""
    limits: list[int] = []
    try:
        path, top = own_path((proc / "self/cgroup").read_text(), (proc / "self/mountinfo").read_text())
    except (OSError, NotDelegated):
        return limits
    for folder in (path, *path.parents):
        if not folder.is_relative_to(top):
            break
        try:
            limits.append(int((folder / "memory.max").read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return limits


def copied_types(*, proc: Path = Path("/proc")) -> frozenset[int]:
    """Which tensors llama.cpp copies on this processor, or all that it might where that is not known."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", (proc / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        flags = None
    known = os.uname().machine == "x86_64" and flags is not None and "amx_int8" not in flags[1].split()
    return COPIED_TYPES if known else COPIED_TYPES_ELSEWHERE


def taken_memory(pid: int, *, proc: Path = Path("/proc")) -> TakenMemory | None:
    """Of a process and those below it; None when they cannot be seen."""
    try:
        seen = status_fields((proc / f"{pid}/status").read_text("utf-8", "replace"))
        children = (proc / f"{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return None
    below = [taken for child in children if (taken := taken_memory(int(child), proc=proc))]
    return TakenMemory(
        private_bytes=_kib(seen, "RssAnon") + sum(one.private_bytes for one in below),
        mapped_bytes=_kib(seen, "RssFile") + _kib(seen, "RssShmem") + sum(one.mapped_bytes for one in below),
    )


def _kib(seen: dict[str, str], name: str) -> int:
    """In bytes; 0 for a process that has ended and was not waited for yet."""
    words = seen.get(name, "").split()
    return int(words[0]) * 1024 if words else 0
