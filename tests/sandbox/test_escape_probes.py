"""What a compromised runner would try, in the live runner; and against the other layers with the filters left out."""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Final

import pytest

from appliance.cli import sandbox_probe
from appliance.sandbox import probe
from appliance.warden.launch_spawn import SpawnLauncher
from appliance.warden.starter_client import Starter
from tests.support.live_runner import LIMIT_SECONDS, within_limit

SOME: Final = (*probe.ESSENTIAL, *probe.CONTROLS, "abort", "x32", "int80", "mmap over libc", "clone thread", "clone3")
"""All of them, and more, are made by ``test_live_probes``; these by the command's own way, with a launcher."""


def outcomes_of(names: Iterable[str], seconds: float = LIMIT_SECONDS) -> list[sandbox_probe.ProbeOutcome]:
    with Starter() as starter:
        return within_limit(lambda: sandbox_probe.run_probe(SpawnLauncher(starter), names), seconds)


@pytest.mark.slow
def test_no_attempt_gets_out_of_a_live_runner() -> None:
    outcomes = outcomes_of(SOME, seconds=100)
    assert [outcome.name for outcome in outcomes] == list(SOME)
    assert [outcome for outcome in outcomes if not outcome.ok] == []
    assert {outcome.observed for outcome in outcomes if outcome.name not in probe.CONTROLS} == {sandbox_probe.KILLED}


def test_the_five_that_matter_most_do_not_get_out() -> None:
    outcomes = outcomes_of(probe.ESSENTIAL)
    assert {outcome.name: outcome.observed for outcome in outcomes} == dict.fromkeys(
        probe.ESSENTIAL, sandbox_probe.KILLED
    )


def test_unknown_attempt_is_not_reported_as_stopped() -> None:
    (outcome,) = outcomes_of(["no such attempt"])
    assert not outcome.ok


@pytest.mark.parametrize("observed", ["returned 3", "errno ENOENT", "killed by SIGSEGV", "exit status 73", "unknown"])
def test_only_the_expected_ending_is_called_right(observed: str) -> None:
    assert not sandbox_probe._outcome("open", observed).ok


def test_no_attempt_gets_past_the_other_layers() -> None:
    outcomes = {outcome.name: outcome for outcome in sandbox_probe.run_without_filters()}
    assert list(outcomes) == list(probe.WITHOUT_FILTERS)
    assert [outcome for outcome in outcomes.values() if not outcome.ok] == []
    for name in ("open", "open proc mem", "open dev mem", "execve"):
        assert outcomes[name].observed == "errno ENOENT", name  # the empty root
    assert outcomes["udp send"].observed == "errno ENETUNREACH"  # the network namespace
    assert outcomes["tcp connect"].observed in {"errno EACCES", "errno ENETUNREACH"}  # Landlock from ABI 4 on
    assert outcomes["ptrace"].observed == "errno ESRCH"  # the pid namespace
    assert outcomes["clone namespace"].observed == "errno EPERM"  # the root is a folder: chrooted
    assert outcomes["mprotect exec"].observed == "errno EACCES"  # MDWE


UNCONFINED = """
import json
from appliance.sandbox.probe import attempt
names = ("open", "openat", "stat", "socket", "udp send", "mmap exec", "mprotect exec")
print(json.dumps({name: attempt(name) for name in names}))
"""


def test_attempts_are_real_ones() -> None:
    """Without any layer they succeed: what stops them above is the sandbox and not a mistake in the attempt."""
    done = subprocess.run([sys.executable, "-c", UNCONFINED], capture_output=True, timeout=LIMIT_SECONDS, check=True)
    answers = json.loads(done.stdout)
    assert [name for name, answer in answers.items() if not answer.startswith("returned")] == []


EVERY_NUMBER = """
import json, os, signal, sys
from appliance.sandbox import layers, libc, seccomp
from appliance.sandbox.syscalls import X86_64

stage = sys.argv[1]
named = {X86_64[rule.syscall] for rule in seccomp.load_policy(stage).rules}
low = [n for n in range(600) if n not in named]
x32 = [n | 0x40000000 for n in (*named, *range(512, 548))]
layers.no_new_privs()
layers.rlimits(own_process_count=False)
program = getattr(seccomp.prepare(os.getpid()), stage)
survived = []
for number in low + x32:
    child = os.fork()
    if child == 0:
        seccomp.install(program)
        try:
            libc.syscall(number, 0, 0, 0, 0, 0, 0)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGSYS:
        survived.append((number, os.waitstatus_to_exitcode(status)))
print(json.dumps({"tried": len(low) + len(x32), "survived": survived}))
"""


SEEN_BY_NO_FILTER = {335: {-4}, 336: {6}}
"""uretprobe and uprobe, which newer kernels do not show to seccomp. Called by anybody but the kernel's own trampoline
the one ends the process by SIGILL and the other is ENXIO."""


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_other_system_call_number_comes_back(stage: str) -> None:
    """Either filter alone, with no model behind it; ``test_live_probes`` has stage 2 as it is lived in."""
    command = [sys.executable, "-c", EVERY_NUMBER, stage]
    done = subprocess.run(command, capture_output=True, timeout=90, check=True)
    report = json.loads(done.stdout)
    assert [(n, how) for n, how in report["survived"] if how not in SEEN_BY_NO_FILTER.get(n, ())] == []
    assert report["tried"] > 600
