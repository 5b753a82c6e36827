"""What the warden sees of a runner, whatever the runner says of itself."""

import os
import subprocess
import sys

import pytest

from appliance.core.refusals import Fault
from appliance.ipc.messages import Fenced, Ready
from appliance.sandbox import layers
from appliance.warden import fence
from tests.support.live_runner import hand_over, launched, receive, within_limit


def test_live_runner_shows_its_filters_only_once_they_are_on() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            fenced = await receive(runner)
            assert isinstance(fenced, Fenced)
            named = frozenset(fenced.layers)
            fence.require_whole(fenced, frozenset())
            with pytest.raises(Fault, match="filters"):
                await runner.inspect(named)
            assert isinstance(await hand_over(runner), Ready)
            await runner.inspect(named)

    within_limit(scenario)


def test_runner_that_says_it_has_a_pid_namespace_and_has_no_child_is_not_believed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(Fault, match="cannot be looked at"):
            fence.inspect(process.pid, frozenset({layers.PID_NAMESPACE}))
        process.communicate(b"\n", timeout=10)


def test_process_without_a_fence_is_seen_as_such() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(Fault, match="filters"):
            fence.inspect(process.pid, frozenset())
        process.communicate(b"\n", timeout=10)


def test_process_that_is_gone_is_not_taken_for_fenced_in() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    with pytest.raises(Fault, match="cannot be looked at"):
        fence.inspect(process.pid, frozenset())


@pytest.mark.parametrize(
    "missing", ["NoNewPrivs", "CapEff", "CapPrm", "CapInh", "CapAmb", "Seccomp", "Seccomp_filters"]
)
def test_each_line_counts(missing: str) -> None:
    seen = {"Seccomp": "2", "Seccomp_filters": "2", "NoNewPrivs": "1"}
    seen |= {f"Cap{kind}": "0" * 16 for kind in ("Inh", "Prm", "Eff", "Amb")}
    fence._require_fenced(seen, 2)
    with pytest.raises(Fault):
        fence._require_fenced({name: value for name, value in seen.items() if name != missing}, 2)
    with pytest.raises(Fault):
        fence._require_fenced(seen | {missing: "0000000000000001" if missing.startswith("Cap") else "0"}, 2)


def test_filters_of_this_process_do_not_count_as_the_runners() -> None:
    """In a container the runner inherits the container's own filter; it must have two more."""
    status = fence._status(fence.Path(f"/proc/{os.getpid()}/status"))
    assert int(status["Seccomp_filters"]) >= 0
    with pytest.raises(Fault, match="filters"):
        fence._require_fenced({"Seccomp": "2", "Seccomp_filters": "2"}, 1 + len(fence.FILTERS))
