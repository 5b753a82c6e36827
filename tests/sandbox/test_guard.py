"""In a unit: the process beside a runner, which ends one that does not heed the end of its channel."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import FromRunner, LoadFailed
from appliance.runner import main as runner_main
from appliance.sandbox import layers

GUARDED = """
import os, signal, socket, sys
from appliance.runner import main
channel = socket.socket(fileno=int(sys.argv[1]))
if child := os.fork():
    main._stand_guard(child, channel)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # whatever can be ignored is
channel.send(str(os.getpid()).encode())
{what}
"""


@contextmanager
def guarded(what: str) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-B", "-c", GUARDED.format(what=what), str(theirs.fileno())]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(10)
        try:
            yield process, ours
        finally:
            process.kill()


HANGS = "while True: signal.pause()"


def test_runner_that_ignores_the_end_of_its_channel_is_killed() -> None:
    with guarded(HANGS) as (process, channel):
        channel.recv(20)
        channel.shutdown(socket.SHUT_WR)
        assert process.wait(10) == -signal.SIGKILL
        assert channel.recv(20) == b""  # nobody holds the other end any more: the runner is gone too


def test_stopped_runner_is_killed() -> None:
    with guarded("os.kill(os.getpid(), signal.SIGSTOP)") as (process, channel):
        channel.recv(20)
        channel.shutdown(socket.SHUT_WR)
        assert process.wait(10) == -signal.SIGKILL


def test_runner_that_lets_go_of_its_channel_has_not_ended() -> None:
    with guarded("channel.close()\n" + HANGS) as (process, channel):
        channel.recv(20)
        channel.settimeout(0.2)
        with pytest.raises(TimeoutError):
            channel.recv(20)
        channel.settimeout(10)
        channel.shutdown(socket.SHUT_WR)
        assert process.wait(10) == -signal.SIGKILL


def test_guard_outlives_a_sigterm_that_the_runner_ignores() -> None:
    with guarded(HANGS) as (process, channel):
        channel.recv(20)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        channel.shutdown(socket.SHUT_WR)
        assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("what", "status"),
    [("os._exit(0)", 0), ("os._exit(72)", 72), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
)
def test_end_is_told_as_it_was(what: str, status: int) -> None:
    with guarded(what) as (process, channel):
        channel.recv(20)
        assert process.wait(10) == status


@pytest.mark.parametrize("degraded", ["", ",".join(sorted(layers.DEGRADABLE))])
def test_runner_outside_of_any_unit_does_not_believe_that_it_is_in_one(degraded: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-B", "-m", "appliance.runner", "--channel-fd", str(theirs.fileno())]
    command += ["--launcher", "systemd", "--degraded", degraded]
    with ours, theirs:
        done = subprocess.run(
            command, pass_fds=[theirs.fileno()], env=runner_main.ENVIRONMENT, stderr=subprocess.PIPE, timeout=30
        )
        ours.settimeout(1)
        answer = FrameDecoder[FromRunner](FromRunner).decode(ours.recv(5000))
    assert done.returncode == runner_main.EXIT_LAYER_MISSING
    assert isinstance(answer, LoadFailed)
    assert answer.reason == "layer-missing"
    assert layers.NO_NEW_PRIVS in answer.detail
    assert (layers.EMPTY_ROOT in answer.detail) is not bool(degraded)


@pytest.mark.parametrize(
    "arguments",
    [["--launcher", "none"], ["--launch", "systemd"]]
    + [["--launcher", "systemd", "--degraded", name] for name in sorted(layers.INDISPENSABLE)],
)
def test_unit_cannot_be_told_to_do_without(arguments: list[str]) -> None:
    command = [sys.executable, "-I", "-B", "-m", "appliance.runner", "--channel-fd", "3", *arguments]
    done = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == runner_main.EXIT_USAGE
