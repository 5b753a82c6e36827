"""What a process has cost so far, by the kernel's account. Linux only."""

import time
from pathlib import Path

_CPUCLOCK_SCHED = 2


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, ended ones included, to the nanosecond.

    The number of another process's CPU clock is that of clock_getcpuclockid(3), which Python does not offer:
    MAKE_PROCESS_CPUCLOCK in linux/posix-timers.h. ``/proc/<pid>/stat`` counts in hundredths of a second, too coarse
    here. Raises ``OSError`` when there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def resident_megabytes(pid: int) -> float:
    """VmRSS, in millions of bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} has no memory")


def children(pid: int) -> list[int]:
    """The processes that the first thread of a process has started and that live."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def innermost(pid: int) -> int:
    """The last of a line of only children: the runner proper below its guardian."""
    while below := children(pid):
        (pid,) = below
    return pid


def memory_megabytes(pid: int) -> dict[str, float]:
    """``rss`` and ``pss`` of a process and of those below it, in millions of bytes: its pages, and its share of them
    where others have them too, as those of a model file that two servers map. Raises ``PermissionError`` where the
    process is not ours to look into."""
    sizes = {"rss": 0.0, "pss": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.lower() in sizes:
            sizes[name.lower()] += int(value.split()[0]) * 1024 / 1e6
    for child in children(pid):
        for name, size in memory_megabytes(child).items():
            sizes[name] += size
    return sizes
