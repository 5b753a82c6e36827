"""The starter: what it starts ends with it, and a warden that was taken over gets nothing else out of it."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core.gguf import GgufInvalid
from appliance.core.refusals import Fault
from appliance.ipc.frames import FrameDecoder, encode
from appliance.ipc.starting import (
    MAX_WORD_BYTES,
    End,
    Ended,
    Failed,
    FromLine,
    Inspect,
    NotFencedIn,
    Started,
    StartRunner,
    StartValidator,
)
from appliance.warden import launch_spawn
from appliance.warden.cgroups import NotDelegated, RunnerGroups, own_path
from appliance.warden.launch_spawn import LaunchedRunner, SpawnLauncher
from appliance.warden.starter import EXIT_BREACH, MAX_PROCESSES
from appliance.warden.starter_client import Starter
from appliance.warden.validate import SandboxedValidator
from tests.support.live_runner import LIMIT_SECONDS, children, inner_pid, load, starter_of, status, within_limit

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a non-dumpable process")

SLEEPER = ("/bin/sh", "-c", "exec sleep 600")
ENDS = ("/bin/sh", "-c", "exit 7")
DEAF = "import os, signal, sys; signal.signal(15, signal.SIG_IGN); os.write(int(sys.argv[2]), b'x'); signal.pause()"
NAYSAYER = ("/bin/sh", "-c", """printf '{"type":"invalid","reason":"gguf-x","detail":""}'""")
RUNNER = StartRunner(runner_id="test", memory_bytes=2**31)
DECODER = FrameDecoder[FromLine](FromLine)


class Order:
    """One order as a warden gives it that keeps to nothing: with the descriptors that the test chooses."""

    def __init__(self, starter: Starter, message: msgspec.Struct | bytes, fds: Sequence[int]) -> None:
        self.line, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(LIMIT_SECONDS)
        data = message if isinstance(message, bytes) else encode(message)
        orders = starter._orders
        assert select.select([], [orders], [], LIMIT_SECONDS)[1]
        socket.send_fds(orders, [data], [fd if fd >= 0 else self.theirs.fileno() for fd in fds])
        self.theirs.close()

    def hear(self) -> FromLine | None:
        data = self.line.recv(MAX_WORD_BYTES)
        return DECODER.decode(data) if data else None

    def __enter__(self) -> "Order":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()


LINE = -1


@contextmanager
def descriptors() -> Iterator[dict[str, int]]:
    """One of each kind."""
    with ExitStack() as stack:
        found: dict[str, int] = {"line": LINE}
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream, other = socket.socketpair()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in (left, right, stream, other, udp):
            stack.enter_context(sock)
        found |= {"channel": right.fileno(), "stream": other.fileno(), "udp": udp.fileno()}
        found["reader"], found["pipe"] = os.pipe()
        found["file"] = os.open(__file__, os.O_RDONLY)
        found["directory"] = os.open("/", os.O_RDONLY)
        found["device"] = os.open("/dev/null", os.O_RDONLY)
        for name in ("reader", "pipe", "file", "directory", "device"):
            stack.callback(os.close, found[name])
        yield found


@contextmanager
def sleeper(starter: Starter) -> Iterator[tuple[Order, int]]:
    """A process that does not end by itself, and its pidfd."""
    with descriptors() as fds, Order(starter, RUNNER, [fds["channel"], fds["pipe"], LINE]) as order:
        started = order.hear()
        assert isinstance(started, Started)
        pidfd = os.pidfd_open(started.pid)
        try:
            yield order, pidfd
        finally:
            os.close(pidfd)


def ends(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], LIMIT_SECONDS)[0])


def is_idle(starter: Starter) -> bool:
    """Waits until nothing runs any more."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while children(starter.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def judge(starter: Starter, **options: Any) -> str:
    """The reason that a validator gives for refusing."""
    with Path(__file__).open("rb") as file, pytest.raises(GgufInvalid) as caught:
        SandboxedValidator(starter, **options)(file.fileno())
    return caught.value.reason


# --- what it is ------------------------------------------------------------------------------------------------------


@as_root
def test_starter_has_nothing_of_the_wardens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_TEST_SECRET", "hunter2")
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    with starter_of(runner=SLEEPER) as starter, sleeper(starter):
        os.close(leak)
        inside = Path(f"/proc/{starter.pid}")
        assert (inside / "environ").read_bytes() == b"LC_ALL=C.UTF-8\0"
        assert os.readlink(inside / "cwd") == "/"
        kinds = sorted(os.readlink(fd).partition(":")[0] for fd in (inside / "fd").iterdir() if int(fd.name) > 2)
        assert kinds == ["anon_inode", "anon_inode", "socket", "socket"]  # epoll, one pidfd; the orders, one line
        seen = status(starter.pid)
        assert (seen["NoNewPrivs"], seen["Threads"]) == ("1", "1")
        assert os.getsid(starter.pid) == starter.pid


def test_terminal_and_service_manager_do_not_end_it_before_the_warden() -> None:
    with starter_of(runner=SLEEPER) as starter, sleeper(starter):
        os.kill(starter.pid, signal.SIGTERM)
        with sleeper(starter):
            pass


# --- how its processes end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "expected"), [(ENDS, 7), (("/bin/sh", "-c", "kill -9 $$"), -9), (("/bin/true",), 0)]
)
def test_status_is_the_processes_own(command: tuple[str, ...], expected: int) -> None:
    async def scenario() -> int:
        with starter_of(runner=command) as starter:
            runner = await SpawnLauncher(starter).launch("test")
            runner.channel.close()
            return await runner.wait()

    assert within_limit(scenario) == expected


def test_runner_that_ignores_the_first_signal_is_killed() -> None:
    async def scenario() -> int:
        with starter_of(runner=(sys.executable, "-I", "-c", DEAF)) as starter:
            runner = await SpawnLauncher(starter).launch("test")
            runner.channel.setblocking(False)
            with runner.channel:
                assert await asyncio.get_running_loop().sock_recv(runner.channel, 1) == b"x"
                runner.kill()
                runner.kill()
                return await runner.wait()

    assert within_limit(scenario) == -signal.SIGKILL


def test_process_that_cannot_be_started_is_a_fault_and_costs_nothing_else() -> None:
    async def scenario() -> None:
        with starter_of(runner=("/nowhere/python",), validator=NAYSAYER) as starter:
            with pytest.raises(Fault, match=r"cannot be started.*No such file"):
                await SpawnLauncher(starter).launch("test")
            assert await asyncio.to_thread(judge, starter) == "gguf-x"

    within_limit(scenario)


def test_line_that_closes_ends_its_process_and_no_other() -> None:
    with starter_of(runner=SLEEPER) as starter, sleeper(starter) as (_, other):
        with sleeper(starter) as (order, pidfd):
            order.line.close()
            assert ends(pidfd)
        assert not select.select([other], [], [], 0)[0]


def test_launch_that_is_cancelled_leaves_no_process() -> None:
    async def scenario() -> None:
        with starter_of(runner=SLEEPER) as starter:
            task = asyncio.create_task(SpawnLauncher(starter).launch("test"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with sleeper(starter):  # orders are carried out in turn: the cancelled one was
                pass
            assert await asyncio.to_thread(is_idle, starter)

    within_limit(scenario)


def test_starter_that_is_closed_leaves_no_process() -> None:
    with starter_of(runner=SLEEPER) as starter, sleeper(starter) as (_, pidfd):
        starter.close()
        assert select.select([pidfd], [], [], 0)[0], "it returned before its process had ended"
        assert starter._process.returncode == 0


def test_killed_starter_takes_a_live_runner_along() -> None:
    async def scenario() -> None:
        with Starter() as starter:
            runner = await SpawnLauncher(starter).launch("test")
            runner.channel.setblocking(False)
            await load(runner)
            inner = os.pidfd_open(inner_pid(runner))
            os.kill(starter.pid, signal.SIGKILL)
            with pytest.raises(Fault, match="the starter has ended"):
                await starter.run()
            assert await runner.wait() == -signal.SIGKILL
            assert await asyncio.to_thread(ends, inner)
            os.close(inner)
            runner.kill()  # no effect
            with pytest.raises(Fault, match="fence"):
                await runner.inspect(frozenset())
            with pytest.raises(Fault, match="takes no orders"):
                await SpawnLauncher(starter).launch("another")
            runner.channel.close()

    within_limit(scenario)


def test_killed_starter_is_no_verdict_on_a_model() -> None:
    with starter_of(validator=SLEEPER) as starter, ThreadPoolExecutor(1) as pool, Path(__file__).open("rb") as file:
        verdict = pool.submit(SandboxedValidator(starter), file.fileno())
        while not children(starter.pid):
            time.sleep(0.01)
        [validator] = map(os.pidfd_open, children(starter.pid))
        os.kill(starter.pid, signal.SIGKILL)
        signal.pidfd_send_signal(validator, signal.SIGKILL)  # what stands in for one does not ask to die with it
        os.close(validator)
        with pytest.raises(Fault, match="the starter ended"):
            verdict.result(LIMIT_SECONDS)
        with pytest.raises(Fault, match="takes no orders"):
            SandboxedValidator(starter)(file.fileno())


def test_stopped_starter_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_spawn, "ANSWER_SECONDS", 0.2)

    async def scenario() -> None:
        with starter_of(runner=SLEEPER) as starter:
            with sleeper(starter):  # it is up
                os.kill(starter.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(Fault, match="does not answer"):
                        await SpawnLauncher(starter).launch("test")
                finally:
                    os.kill(starter.pid, signal.SIGCONT)
            with sleeper(starter):
                pass
            assert await asyncio.to_thread(is_idle, starter), "what came too late was kept"

    within_limit(scenario)


WARDEN = """
import time
from appliance.warden.starter_client import Starter
with Starter() as starter:
    print(starter.pid, flush=True)
    time.sleep(600)
"""


def test_starter_does_not_outlive_a_killed_warden() -> None:
    with subprocess.Popen([sys.executable, "-c", WARDEN], stdout=subprocess.PIPE) as warden:
        assert warden.stdout is not None
        starter = os.pidfd_open(int(warden.stdout.readline()))
        warden.kill()
    assert ends(starter)
    os.close(starter)


# --- control groups --------------------------------------------------------------------------------------------------

GROUP_WITHOUT_LIMITS = """
import os
from appliance.core.refusals import Fault
from appliance.warden.cgroups import RunnerGroup, RunnerGroups
def make(self, runner_id, memory_bytes):
    path = self.base / f"runner-{runner_id}"
    try:
        path.mkdir()
    except OSError as error:
        raise Fault(f"no control group for runner {runner_id}: {error}") from error
    return RunnerGroup(path, os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
RunnerGroups.make = make
"""
"""Most hosts delegate no controllers, but any cgroup v2 has groups."""


@pytest.fixture
def groups() -> Iterator[RunnerGroups]:
    try:
        path, _ = own_path(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        path = path / f"paddock-starter-{os.getpid()}"
        path.mkdir()
    except (NotDelegated, OSError) as error:
        pytest.skip(f"no cgroup v2 to write to: {error}")
    yield RunnerGroups(path)
    path.rmdir()


def test_runner_is_in_its_group_before_it_is_one_and_the_group_goes_with_it(groups: RunnerGroups) -> None:
    group = groups.base / "runner-test"
    with starter_of(runner=SLEEPER, validator=NAYSAYER, groups=groups.base, before=GROUP_WITHOUT_LIMITS) as starter:
        with sleeper(starter) as (order, pidfd), descriptors() as fds:
            (child,) = children(starter.pid)
            assert (group / "cgroup.procs").read_text().split() == [str(child)]
            with Order(starter, RUNNER, [fds["channel"], fds["pipe"], LINE]) as again:
                failed = again.hear()
            assert isinstance(failed, Failed)
            assert "no control group" in failed.detail
            order.line.send(encode(End()))
            assert isinstance(order.hear(), Ended)
            assert ends(pidfd)
            assert not group.exists()
        assert judge(starter) == "gguf-x"  # a validator needs none


def test_runner_that_cannot_be_started_leaves_no_group(groups: RunnerGroups) -> None:
    with (
        starter_of(runner=("/nowhere",), groups=groups.base, before=GROUP_WITHOUT_LIMITS) as starter,
        descriptors() as fds,
        Order(starter, RUNNER, [fds["channel"], fds["pipe"], LINE]) as order,
    ):
        assert isinstance(order.hear(), Failed)
    assert [path.name for path in groups.base.iterdir() if path.is_dir()] == []


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_threads_get_each_its_own_verdict() -> None:
    with starter_of(validator=NAYSAYER) as starter, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: judge(starter), range(64))) == {"gguf-x"}
        assert children(starter.pid) == []


@as_root
def test_a_hundred_starts_leave_no_descriptor_in_either_process() -> None:
    def is_bare(starter: Starter) -> bool:
        """Within the limit, since the word that a process has ended comes before its line is closed."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while len(os.listdir(f"/proc/{starter.pid}/fd")) != 5:  # three standard ones, the orders, the epoll
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    async def one(starter: Starter) -> None:
        runner = await SpawnLauncher(starter).launch("test")
        await runner.wait()
        await runner.stderr
        runner.channel.close()

    async def scenario() -> None:
        with starter_of(runner=ENDS, validator=NAYSAYER) as starter:
            await one(starter)
            judge(starter)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(50):
                await one(starter)
                judge(starter)
            assert len(os.listdir("/proc/self/fd")) == before
            assert is_bare(starter)

    within_limit(scenario)


def test_process_that_cannot_be_watched_does_not_live_on() -> None:
    """It would be answered as failed, and nobody would ever end it."""
    before = "import os\ndef none(pid): raise OSError(24, 'no more descriptors')\nos.pidfd_open = none"
    with starter_of(runner=SLEEPER, before=before) as starter, descriptors() as fds:
        with Order(starter, RUNNER, [fds["channel"], fds["pipe"], LINE]) as order:
            failed = order.hear()
        assert isinstance(failed, Failed)
        assert "no more descriptors" in failed.detail
        assert children(starter.pid) == []


def test_no_more_than_the_cap_run_however_many_are_ordered() -> None:
    with starter_of(runner=SLEEPER) as starter, descriptors() as fds, ExitStack() as held:
        agreed = [fds["channel"], fds["pipe"], LINE]
        for _ in range(MAX_PROCESSES):
            assert isinstance(held.enter_context(Order(starter, RUNNER, agreed)).hear(), Started)
        for number in range(10_000):
            with Order(starter, RUNNER, agreed) as order:
                if number % 100 == 0:
                    assert isinstance(order.hear(), Failed)
        with Order(starter, RUNNER, agreed) as order:
            failed = order.hear()
        assert isinstance(failed, Failed)
        assert "128 processes" in failed.detail
        assert len(children(starter.pid)) == MAX_PROCESSES
        held.close()
        assert is_idle(starter)
        with Order(starter, RUNNER, agreed) as order:
            assert isinstance(order.hear(), Started)


# --- a warden that was taken over ------------------------------------------------------------------------------------

AGREED = ("channel", "pipe", "line")
BREACHES: dict[str, tuple[msgspec.Struct | bytes, tuple[str, ...]]] = {
    "not msgpack": (b"\xc1 hello", AGREED),
    "an unknown order": (msgspec.msgpack.encode({"type": "StartShell"}), AGREED),
    "a command": (
        msgspec.msgpack.encode({"type": "StartRunner", "runner_id": "x", "memory_bytes": 2**31, "command": ["sh"]}),
        AGREED,
    ),
    "another process's word": (End(), AGREED),
    "a path for an id": (StartRunner(runner_id="../../x", memory_bytes=2**31), AGREED),
    "a long id": (StartRunner(runner_id="x" * 65, memory_bytes=2**31), AGREED),
    "no memory": (StartRunner(runner_id="x", memory_bytes=0), AGREED),
    "all memory": (StartRunner(runner_id="x", memory_bytes=2**63), AGREED),
    "a frame that is cut": (b"\x81" + bytes(2 * MAX_WORD_BYTES), AGREED),
    "nothing with it": (RUNNER, ()),
    "a line only": (RUNNER, ("line",)),
    "a descriptor too few": (RUNNER, ("channel", "line")),
    "a descriptor too many": (RUNNER, ("channel", "pipe", "pipe", "line")),
    "two hundred descriptors": (RUNNER, ("pipe",) * 200),
    "a pipe for a line": (RUNNER, ("channel", "pipe", "pipe")),
    "a file for a line": (StartValidator(), ("file", "pipe", "file")),
    "a stream for a line": (RUNNER, ("channel", "pipe", "stream")),
    "a network socket for a line": (RUNNER, ("channel", "pipe", "udp")),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_order_that_is_not_as_agreed_ends_everything(breach: str) -> None:
    message, kinds = BREACHES[breach]
    with starter_of(runner=SLEEPER) as starter, sleeper(starter) as (_, pidfd), descriptors() as fds:
        with Order(starter, message, [fds[kind] for kind in kinds]):
            assert starter._process.wait(LIMIT_SECONDS) == EXIT_BREACH
        assert select.select([pidfd], [], [], 0)[0], "its process lives on"


WORDS: dict[str, Callable[[socket.socket], object]] = {
    "not msgpack": lambda line: line.send(b"\xc1"),
    "an order": lambda line: line.send(encode(RUNNER)),
    "its own answer": lambda line: line.send(encode(Ended(status=0))),
    "a word that is cut": lambda line: line.send(bytes(2 * MAX_WORD_BYTES)),
    "a descriptor": lambda line: socket.send_fds(line, [encode(End())], [0]),
    "two descriptors": lambda line: socket.send_fds(line, [encode(End())], [0, 1]),
    "many layers": lambda line: line.send(encode(Inspect(named=("a",) * 33))),
}


@pytest.mark.parametrize("word", WORDS)
def test_word_that_is_not_as_agreed_ends_everything(word: str) -> None:
    with starter_of(runner=SLEEPER) as starter, sleeper(starter) as (_, other), sleeper(starter) as (order, pidfd):
        WORDS[word](order.line)
        assert starter._process.wait(LIMIT_SECONDS) == EXIT_BREACH
        assert select.select([pidfd], [], [], 0)[0]
        assert select.select([other], [], [], 0)[0]


@pytest.mark.parametrize(
    ("order", "kinds"),
    [(StartValidator(), (kind, "pipe", "line")) for kind in ("directory", "reader", "channel", "stream", "device")]
    + [(StartValidator(), ("file", kind, "line")) for kind in ("file", "channel", "directory")]
    + [(RUNNER, (kind, "pipe", "line")) for kind in ("file", "directory", "reader", "device")]
    + [(RUNNER, ("channel", kind, "line")) for kind in ("file", "stream")],
    ids=str,
)
def test_descriptor_of_another_kind_starts_nothing(order: msgspec.Struct, kinds: tuple[str, ...]) -> None:
    with starter_of(runner=SLEEPER, validator=SLEEPER) as starter, descriptors() as fds:
        with Order(starter, order, [fds[kind] for kind in kinds]) as one:
            failed = one.hear()
            assert isinstance(failed, Failed)
            assert "kinds" in failed.detail
            assert one.hear() is None
        assert children(starter.pid) == []


def test_runners_memory_is_measured_beside_other_questions_and_after_its_end() -> None:
    async def scenario() -> None:
        with starter_of(runner=SLEEPER) as starter:
            runner: LaunchedRunner = await SpawnLauncher(starter).launch("test")
            inspecting = asyncio.create_task(runner.inspect(frozenset()))
            for taken in await asyncio.gather(*(runner.taken() for _ in range(3))):
                assert taken is not None
                assert taken.private_bytes > 0
                assert taken.mapped_bytes > 0
            with pytest.raises(Fault, match="filters"):
                await inspecting
            runner.kill()
            await runner.wait()
            assert await runner.taken() is None
            runner.channel.close()

    within_limit(scenario)


def test_where_systemd_starts_the_runners_the_starter_does_not() -> None:
    with Starter(validators_only=True) as starter, descriptors() as fds:
        with Order(starter, RUNNER, [fds["channel"], fds["pipe"], LINE]) as order:
            assert isinstance(order.hear(), Failed)
        assert children(starter.pid) == []


def test_warden_that_asks_and_never_listens_loses_its_process_only() -> None:
    with starter_of(runner=SLEEPER) as starter, sleeper(starter), sleeper(starter) as (order, pidfd):
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100_000):
                order.line.send(encode(Inspect(named=())))
        assert ends(pidfd)
        with sleeper(starter):
            pass


def test_process_without_a_fence_is_not_called_fenced_in() -> None:
    async def scenario() -> None:
        with starter_of(runner=SLEEPER) as starter:
            runner: LaunchedRunner = await SpawnLauncher(starter).launch("test")
            with pytest.raises(Fault, match="filters"):
                await runner.inspect(frozenset())
            runner.kill()
            await runner.wait()
            with pytest.raises(Fault, match="ended"):
                await runner.inspect(frozenset())
            runner.channel.close()

    within_limit(scenario)
    with starter_of(runner=SLEEPER) as starter, sleeper(starter) as (order, _):
        order.line.send(encode(Inspect(named=("pid-namespace",))))
        assert isinstance(order.hear(), NotFencedIn)
