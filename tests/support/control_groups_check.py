"""Control groups by the kernel itself: run where a cgroup is delegated to this process, by a test or in a guest.

    python -m tests.support.control_groups_check

Prints one JSON object: what became of each program that was started in a group; elsewhere ``{"skip": why}``. Where it
runs it divides its own cgroup, which stays divided.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from appliance.sandbox.layers import DEGRADABLE
from appliance.warden.cgroups import NotDelegated, RunnerGroups
from appliance.warden.launch_spawn import SpawnLauncher
from tests.support.live_runner import starter_of

PLACE = ("-c", "raise SystemExit(open('/proc/self/cgroup').read().strip().endswith('/runner-place'))")
MEMORY = ("-c", "kept = []\nwhile True: kept.append(b'x' * 2**24)")
FORKS = (
    "-c",
    "import os, time\n"
    "for made in range(10_000):\n"
    "    try:\n"
    "        if not os.fork(): time.sleep(600)\n"
    "    except OSError:\n"
    "        os._exit(made < 300)\n",
)
"""Its children are still there when it has ended."""


async def ended(groups: RunnerGroups, name: str, program: tuple[str, str]) -> int:
    with starter_of(runner=(sys.executable, "-I", "-B", *program), groups=groups.base) as starter:
        runner = await SpawnLauncher(starter).launch(name, memory_bytes=2**28)
        try:
            async with asyncio.timeout(60):
                return await runner.wait()
        finally:
            runner.channel.close()


async def real_runner(groups: RunnerGroups) -> dict[str, object]:
    """Up to the moment at which it would take a model. Its processes are all in the group, its limits are as told."""
    path = groups.base / "runner-real"
    with starter_of(allow_degraded=DEGRADABLE, groups=groups.base) as starter:
        runner = await SpawnLauncher(starter).launch("real", memory_bytes=2**30)
        runner.channel.setblocking(False)
        async with asyncio.timeout(60):
            said = await asyncio.get_running_loop().sock_recv(runner.channel, 65536)
        inside = len((path / "cgroup.procs").read_text().split())
        limits = {name: (path / name).read_text().strip() for name in ("memory.max", "memory.oom.group", "pids.max")}
        runner.kill()
        await runner.wait()
        runner.channel.close()
    return {"fenced": b"Fenced" in said, "processes": inside, "limits": limits}


async def left_over(groups: RunnerGroups) -> list[str]:
    for _ in range(100):
        groups._sweep()
        left = [path.name for path in groups.base.glob("runner-*")]
        if not left:
            break
        await asyncio.sleep(0.1)
    return left


async def main() -> dict[str, object]:
    try:
        groups = RunnerGroups.find()
    except NotDelegated as error:
        return {"skip": str(error)}
    return {
        "place": await ended(groups, "place", PLACE),
        "memory": await ended(groups, "memory", MEMORY),
        "forks": await ended(groups, "forks", FORKS),
        "real": await real_runner(groups),
        "left": await left_over(groups),
        "own": Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2],
        "again": RunnerGroups.find().base == groups.base,
        "user": os.geteuid(),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
