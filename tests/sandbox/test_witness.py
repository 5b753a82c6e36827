"""What the warden sees of another user's process, of which it knows only what the kernel said of its message."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from appliance.core.refusals import Fault
from appliance.warden.fence import Sender, Witness

USER = 61999  # of systemd's range of dynamic users, and nobody's here

CHILD = """
import os, sys
from appliance.sandbox import layers, seccomp
os.setgroups([])
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
layers.no_new_privs()
print("here", flush=True)
for line in sys.stdin:
    seccomp.install(bytes.fromhex("060000000000ff7f"))  # BPF_RET, SECCOMP_RET_ALLOW
    print("installed", flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@contextmanager
def process(user: int = USER) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-I", "-B", "-c", CHILD.format(user=user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()
            child.communicate(timeout=10)


def install(child: "subprocess.Popen[str]", times: int = 1) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    for _ in range(times):
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "installed\n"


def sender(child: "subprocess.Popen[str]", user: int = USER) -> Sender:
    return Sender(pid=child.pid, uid=user)


@as_root
def test_fence_is_two_filters_more_than_the_units() -> None:
    with process() as child:
        install(child, 3)
        with closing(Witness(sender(child))) as witness:
            for filters in range(2):
                with pytest.raises(Fault, match=f"{3 + filters} filters, not 5"):
                    witness.require_fenced()
                install(child)
            witness.require_fenced()


@as_root
def test_process_without_a_units_filter_gets_no_model() -> None:
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        pytest.skip("whatever runs here has a filter already")
    with process() as child, pytest.raises(Fault, match="no filter"):
        Witness(sender(child))


@as_root
def test_process_that_has_ended_is_not_taken_for_fenced_in() -> None:
    with process() as child:
        install(child)
        with closing(Witness(sender(child))) as witness:
            install(child, 2)
            witness.require_fenced()
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(Fault, match="has ended"):  # not reaped yet: its number is still its own
                witness.require_fenced()
            child.wait(10)
            with pytest.raises(Fault, match="No such process"):  # from here on another might have it
                witness.require_fenced()


@as_root
def test_two_runners_of_one_user_are_not_apart() -> None:
    with process() as child, process() as other:
        install(child)
        with closing(Witness(sender(child))) as witness, pytest.raises(Fault, match=f"another process, {other.pid}"):
            witness.require_alone()


@as_root
def test_runner_and_its_guardian_are_alone() -> None:
    with process() as child:
        install(child)
        with closing(Witness(sender(child))) as witness:
            witness.require_alone()


def test_process_out_of_sight_gets_no_model() -> None:
    with pytest.raises(Fault, match="cannot be seen"):
        Witness(Sender(pid=0, uid=USER))


@pytest.mark.parametrize("user", [0, os.getuid()])
def test_root_and_the_warden_itself_are_no_runners(user: int) -> None:
    with pytest.raises(Fault, match="not one of its own"):
        Witness(Sender(pid=os.getpid(), uid=user))


def test_process_that_is_gone_gets_no_model() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(10)
    with pytest.raises(Fault, match="cannot be looked at"):
        Witness(Sender(pid=child.pid, uid=USER))


def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        pytest.skip("whatever runs here has a filter already")
    with pytest.raises(Fault):
        Witness(Sender(pid=os.getpid(), uid=USER))
    assert len(os.listdir("/proc/self/fd")) == before
