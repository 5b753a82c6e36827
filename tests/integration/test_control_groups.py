"""Control groups for runners, as the kernel makes them; the planning is tested in ``unit/warden/test_cgroups.py``."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.warden import cgroups
from appliance.warden.cgroups import NotDelegated, RunnerGroup, RunnerGroups, own_path

ROOT = Path(__file__).parents[2]
FORKS_AND_TELLS = """
import os, time
os.fork() or time.sleep(600)
print(open("/proc/self/cgroup").read(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def group() -> Iterator[RunnerGroup]:
    """One below this process's own, with whatever controllers there are."""
    try:
        path, _ = own_path(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        path = path / f"paddock-test-{os.getpid()}"
        path.mkdir()
    except (NotDelegated, OSError) as error:
        pytest.skip(f"no cgroup v2 to write to: {error}")
    procs = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield RunnerGroup(path, procs)
    finally:
        os.close(procs)
        if path.exists():
            path.rmdir()


def test_child_is_in_its_group_before_it_runs_and_ends_with_it(group: RunnerGroup) -> None:
    """Its own child too, which nobody else would find."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", FORKS_AND_TELLS],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(cgroups.enter, group.procs),
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("0::"))
        assert line.strip().endswith(f"/{group.path.name}")
        assert len((group.path / "cgroup.procs").read_text().split()) == 2
        group.remove()
        assert process.wait(10) == -9
    deadline = time.monotonic() + 10
    while group.path.exists() and time.monotonic() < deadline:  # the grandchild is init's to bury
        RunnerGroups(group.path.parent)._sweep()
        group.remove()
    assert not group.path.exists()


def test_group_that_never_existed_is_no_error_to_remove(tmp_path: Path) -> None:
    RunnerGroup(tmp_path / "absent", -1).remove()


def test_bombs_end_in_their_group_where_the_host_delegates_one() -> None:
    command = [sys.executable, "-m", "tests.support.control_groups_check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout)
    if "skip" in found:
        pytest.skip(found["skip"])
    assert found["place"] == 1
    assert found["memory"] == -9
    assert found["forks"] == 1
    assert found["real"]["fenced"]
    assert found["real"]["processes"] == 2
    assert found["real"]["limits"] == {"memory.max": str(2**30 + 2**28), "memory.oom.group": "1", "pids.max": "300"}
    assert found["left"] == []
    assert found["own"] == "paddock-main"
    assert found["again"]
