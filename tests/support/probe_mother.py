"""A runner that bears runners: the real ``runner.main``, forked for each probe at the point where it takes a model.

The first process goes the whole way of ``_run`` up to step 9: namespaces, empty root, rlimits, capabilities, MDWE,
Landlock, ``Fenced``. It takes the Load and then, for each name that the test sends, forks. The child goes on where the
runner would: stage 1, parse, start threads, warm up, stage 2, ``Ready``, serve. Only then the mother sends it the
``Probe``, so that a probe counts only in a runner that served. The mother itself is under no filter and judges nothing.

``without`` names one layer that is left out, simulated in this process: the product has no switch for it. A layer that
a host may lack is noted as lacking; one that the product refuses to miss is silently not put on.

As main: python -I -B -c "…; probe_mother.main()" CONFIGURATION --channel-fd N
"""

import gc
import json
import os
import resource
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import FromRunner, Load, Probe, ProbeResult, Ready
from appliance.runner import main as runner_main
from appliance.sandbox import bpf, layers, libc, probe, seccomp
from appliance.sandbox.syscalls import X86_64
from tests.support import probes
from tests.support.deeds import SESSION_KEY

BOTH_FILTERS: Final = "both-filters"
_STAGES: Final[tuple[seccomp.Stage, ...]] = ("stage1", "stage2")
_LIMIT_SECONDS: Final = 20.0
_REAP_SECONDS: Final = 1.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_DECODER: Final = FrameDecoder[FromRunner](FromRunner)

_real_receive = runner_main._receive
_real_install = seccomp.install
_real_apply = layers.Stack.apply


def main() -> None:
    """The configuration is JSON: ``{"without": NAME, "outside": {...}, "model": PATH}`` (``deeds.Outside``)."""
    configuration = json.loads(sys.argv[1])
    without = configuration["without"]
    probe.ATTEMPTS.update(probes.attempts(configuration["outside"], Path(configuration["model"])))
    _leave_out(without)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    with suppress(OSError):  # a container that allows no keyrings
        libc.syscall(X86_64["keyctl"], 1, None)  # KEYCTL_JOIN_SESSION_KEYRING: as at an operator's login
        libc.syscall(248, b"user", SESSION_KEY, b"secret", 6, -3 & 0xFFFFFFFFFFFFFFFF)  # add_key
    runner_main._receive = lambda channel: _bear(channel, configuration["outside"]["pid"])
    runner_main.main(sys.argv[2:])


# --- one layer less -------------------------------------------------------------------------------------------------


def _leave_out(without: str) -> None:
    stages = iter(_STAGES)
    policies = {stage: seccomp.load_policy(stage) for stage in _STAGES}

    def install(program: bytes) -> None:
        """The next stage, for this process: its pid is not the mother's, for which the program was compiled."""
        stage = next(stages)
        assert program, "the product gave an empty program"
        if without not in {f"seccomp-{stage[:-1]}-{stage[-1]}", BOTH_FILTERS}:
            _real_install(bpf.compile_policy(policies[stage], {"pid": os.getpid()}))

    def apply(stack: layers.Stack, name: str, action: Any) -> None:
        if name != without:
            _real_apply(stack, name, action)
        elif name in layers.DEGRADABLE:
            _real_apply(stack, name, _lacking)
        else:
            stack._on.append(name)

    seccomp.install = install
    layers.Stack.apply = apply  # type: ignore[method-assign]


def _lacking() -> None:
    raise OSError("left out by the test")


# --- one runner per probe -------------------------------------------------------------------------------------------


def _bear(channel: socket.socket, not_pid: int) -> tuple[Load | None, list[int]]:
    """In the mother it never returns; in each child it is the ``_receive`` of a runner."""
    load, files = _real_receive(channel)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()  # what is never looked at again is never copied
    while name := channel.recv(MAX_FRAME_BYTES).decode():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            assert os.getpid() != not_pid, "the number of the process outside"
            ours.close()
            _become(channel, theirs, files)
            return load, files
        theirs.close()
        report = _try(ours, name)
        if report["ending"] == "hung":
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        report["ending"] = report["ending"] or probes.ending(os.waitstatus_to_exitcode(status))
        report |= {"core": os.WCOREDUMP(status), "left": _left_behind(child)}
        channel.send(json.dumps(report).encode())
    os._exit(0)


def _become(channel: socket.socket, theirs: socket.socket, files: list[int]) -> None:
    """What differs between the mother and a runner that was started for itself."""
    from appliance.runner import channel as requests

    layers.die_with_parent()
    os.setpgid(0, 0)  # so that what it leaves can be ended
    os.dup2(theirs.fileno(), channel.fileno(), inheritable=False)
    theirs.close()
    for file in files:
        os.lseek(file, 0, os.SEEK_SET)  # the offset is shared with the runners before
    requests._prepared.pop().close()  # and so would be the epoll and the counter
    requests.prepare()


def _try(channel: socket.socket, name: str) -> dict[str, Any]:
    """``ready`` is whether the runner served; ``ending`` is its answer, or empty if it ended in place of one."""
    with channel:
        channel.settimeout(_LIMIT_SECONDS)
        report = {"name": name, "ready": False, "ending": ""}
        try:
            report["ready"] = isinstance(_next(channel), Ready)
            if report["ready"]:
                channel.send(encode(Probe(name=name)))
                answer = _next(channel)
                report["ending"] = answer.outcome if isinstance(answer, ProbeResult) else ""
        except TimeoutError:
            report["ending"] = "hung"
    return report


def _next(channel: socket.socket) -> FromRunner | None:
    try:
        data = channel.recv(MAX_FRAME_BYTES)
    except ConnectionResetError:
        return None
    return _DECODER.decode(data) if data else None


def _left_behind(runner: int) -> bool:
    """Whether the runner left a process alive, which is now the mother's; it is ended with its group."""
    until = time.monotonic() + _REAP_SECONDS
    try:
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)  # it may be on its way out
    except ChildProcessError:
        return False
    with suppress(ProcessLookupError):
        os.killpg(runner, 9)
    return True
