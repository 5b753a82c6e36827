"""The launcher for which systemd starts the runners, against a listener that stands in for systemd."""

import asyncio
import functools
import os
import socket
import threading
from pathlib import Path

import pytest

from appliance.core.refusals import Fault, Reason, Refused
from appliance.ipc.frames import encode
from appliance.ipc.messages import Load, LoadFailed
from appliance.sandbox import layers
from appliance.warden import fence, handshake
from appliance.warden.launch_systemd import SystemdLauncher
from tests.fakes.launcher import FENCED


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


def test_only_what_systemd_does_not_give_may_be_missing_unless_the_operator_says_so() -> None:
    assert SystemdLauncher(Path("s")).allow_degraded == {layers.PID_NAMESPACE, layers.CGROUP_NAMESPACE}
    allowed = SystemdLauncher(Path("s"), allow_degraded=frozenset({layers.MDWE})).allow_degraded
    assert allowed == {layers.PID_NAMESPACE, layers.CGROUP_NAMESPACE, layers.MDWE}


def test_units_command_line_allows_nothing_to_be_missing() -> None:
    unit = (Path(__file__).parents[3] / "systemd" / "paddock-runner@.service").read_text(encoding="utf-8")
    [command] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert command.endswith("-m appliance.runner --channel-fd 0 --launcher systemd")


# --- who speaks -----------------------------------------------------------------------------------------------------

LOAD = Load(runner_id="r", context_tokens=64, slots=1, threads=1)


@in_loop
async def test_kernel_names_the_sender_and_the_word_is_not_lost(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(b"a word")
    assert await handshake._first_sender(runner.channel) == fence.Sender(pid=os.getpid(), uid=os.getuid())
    assert runner.channel.recvmsg(100, 100)[:2] == (b"a word", [])
    theirs.close()
    await ended(runner)
    runner.channel.close()


@in_loop
async def test_gateway_is_not_told_the_senders(listening: socket.socket) -> None:
    """It would take the credentials for a frame that was cut short."""
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(b"before")
    theirs.send(b"between")
    await handshake._first_sender(runner.channel)
    theirs.send(b"after")
    for word in (b"before", b"between", b"after"):
        assert runner.channel.recvmsg(100, 100)[:2] == (word, [])
    theirs.close()
    await ended(runner)
    runner.channel.close()


@in_loop
async def test_runner_of_the_wardens_own_user_gets_no_model(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(encode(FENCED))
    with pytest.raises(Fault, match="not one of its own"):
        async with asyncio.timeout(5):
            await handshake.handshake(runner.channel, LOAD, [0], frozenset())
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    assert runner.channel.fileno() == -1
    theirs.close()
    await ended(runner)


@in_loop
async def test_looking_for_company_does_not_hold_up_the_warden(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine has any number of processes; what the look finds still comes before the model."""
    released = threading.Event()

    class Slow:
        def __init__(self, _sender: fence.Sender) -> None: ...

        def close(self) -> None: ...

        def require_alone(self) -> None:
            assert released.wait(10)
            raise Fault("it has company")

    monkeypatch.setattr(fence, "Witness", Slow)
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(encode(FENCED))
    shaking = asyncio.create_task(handshake.handshake(runner.channel, LOAD, [0], frozenset()))
    asyncio.get_running_loop().call_later(0.05, released.set)  # on the loop, which is free to call it
    with pytest.raises(Fault, match="it has company"):
        await shaking
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    theirs.close()
    await ended(runner)


@in_loop
async def test_runner_that_refuses_is_heard_before_it_is_looked_at(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    theirs.send(encode(LoadFailed(reason="layer-missing", detail="network-namespace: there is eth0")))
    theirs.close()
    with pytest.raises(Refused, match="there is eth0") as refusal:
        async with asyncio.timeout(5):
            await handshake.handshake(runner.channel, LOAD, [0], frozenset())
    assert refusal.value.reason is Reason.RUNNER_UNAVAILABLE
    await ended(runner)


@in_loop
async def test_runner_that_ends_without_a_word_is_refused(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    listening.accept()[0].close()
    with pytest.raises(Refused, match="before it said anything") as refusal:
        async with asyncio.timeout(5):
            await handshake.handshake(runner.channel, LOAD, [0], frozenset())
    assert refusal.value.reason is Reason.RUNNER_UNAVAILABLE
    assert runner.channel.fileno() == -1
    await ended(runner)


@in_loop
async def test_waiting_for_a_word_can_be_given_up(listening: socket.socket) -> None:
    runner = await launcher(listening).launch("r")
    theirs, _ = listening.accept()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handshake.handshake(runner.channel, LOAD, [0], frozenset())
    assert runner.channel.fileno() == -1
    theirs.close()
    await ended(runner)


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
