"""The launcher for which systemd starts the runners, against a listener that stands in for systemd."""

import asyncio
import functools
import os
import socket
from pathlib import Path

import pytest

from appliance.core.refusals import Fault
from appliance.warden.launch_systemd import GIVEN_BY_THE_UNIT, SystemdLauncher


def in_loop(test):
    @functools.wraps(test)
    def run(**arguments) -> None:
        asyncio.run(test(**arguments))

    return run


@pytest.fixture
def listening(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "runner.sock"))
        sock.listen(1)
        sock.settimeout(5)
        yield sock


def launcher(listening: socket.socket) -> SystemdLauncher:
    return SystemdLauncher(Path(listening.getsockname()))


async def ended(runner) -> None:
    async with asyncio.timeout(5):
        return await runner.wait()


@in_loop
async def test_a_runner_that_ends_is_not_waited_for(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.close()
    assert await ended(runner) is None
    runner.channel.close()


@in_loop
async def test_what_a_runner_says_is_not_taken_for_its_end(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(b"an answer that nobody has read yet")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await runner.wait()
    assert runner.channel.recv(100) == b"an answer that nobody has read yet"
    theirs.close()
    await ended(runner)
    runner.channel.close()


@in_loop
async def test_kill_does_not_leave_the_runner_a_peer_even_if_others_hold_the_channel(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    gateways = runner.channel.dup()
    runner.channel.close()
    runner.kill()
    assert theirs.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        gateways.send(b"a request that a condemned runner must not get")
    theirs.close()
    assert await ended(runner) is None
    runner.kill()  # again: no effect
    gateways.close()


@in_loop
async def test_killed_runner_that_lives_on_is_not_taken_for_dead(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    runner.kill()
    runner.kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await runner.wait()
    theirs.close()
    await ended(runner)
    runner.channel.close()


def test_unit_and_launcher_agree_on_what_the_unit_gives() -> None:
    unit = (Path(__file__).parents[3] / "systemd" / "paddock-runner@.service").read_text(encoding="utf-8")
    [command] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert frozenset(command.rpartition("--degraded ")[2].split(",")) == GIVEN_BY_THE_UNIT


@in_loop
async def test_no_descriptor_is_left_behind(listening: socket.socket) -> None:
    async def one() -> None:
        runner = await launcher(listening).launch("r")
        theirs, _ = listening.accept()
        theirs.close()
        await ended(runner)
        runner.channel.close()

    await one()
    before = len(os.listdir("/proc/self/fd"))
    await one()
    assert len(os.listdir("/proc/self/fd")) == before


@in_loop
async def test_an_absent_socket_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="No such file"):
        await SystemdLauncher(tmp_path / "nobody.sock").launch("r")


@in_loop
async def test_a_full_queue_does_not_stop_the_event_loop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.bind(str(tmp_path / "runner.sock"))
        busy.listen(0)
        runners = []
        with pytest.raises(Fault, match="unavailable"):
            for _ in range(8):
                runners.append(await SystemdLauncher(tmp_path / "runner.sock").launch("r"))
    for runner in runners:
        await ended(runner)
        runner.channel.close()
