"""The host's side of ``probe_mother``: live runners that are probed one after the other, and what they could reach.

``Host`` holds the targets ready and says what has happened to them; ``probed`` makes probes and reports each.
"""

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import appliance
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import Fenced, FromRunner, Load, LoadFailed
from appliance.runner.main import ENVIRONMENT
from appliance.sandbox import layers
from tests.support.deeds import HELD, HOLD, SECRET, Outside

DEMO_MODEL: Final = Path(appliance.__file__).parent / "data" / "paddock-demo.gguf"
_REPOSITORY: Final = Path(__file__).parents[2]
_FROM_HERE: Final = f"import sys; sys.path.insert(0, {str(_REPOSITORY)!r})\n"
_MOTHER: Final = _FROM_HERE + "from tests.support import probe_mother\nprobe_mother.main()"
_LIMIT_SECONDS: Final = 30
_DECODER: Final = FrameDecoder[FromRunner](FromRunner)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_IPC_CREAT, _IPC_RMID = 0o1000, 0


@dataclass(frozen=True)
class Report:
    """One probe: how the runner answered or ended, and what was seen outside it."""

    name: str
    ready: bool
    """Whether the runner served when it was asked to try. Nothing is proven otherwise."""
    ending: str
    effects: tuple[str, ...]


class NoRunner(Exception):
    """The product refused to let a runner come that far; the text is why."""


# --- what lies outside ----------------------------------------------------------------------------------------------

_VICTIM = """
import ctypes, sys
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, anybody
buffer = ctypes.create_string_buffer(%r)
print(ctypes.addressof(buffer), flush=True)
for _ in sys.stdin:
    print(buffer.value.hex(), flush=True)
"""


class Host:
    """Targets of the test's own, as easy to reach as this user could make them, and a look at each."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._victim = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", _VICTIM % SECRET], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(self._victim.kill)
        address = int(self._say())
        self._folder = folder
        folder.chmod(0o777)
        (folder / "canary").write_text("sings")
        (folder / "canary").chmod(0o666)
        abstract = f"paddock-probes-{os.getpid()}-{self._victim.pid}"
        self._sockets = {
            "a stream socket by path": _listening(stack, socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            "an abstract socket": _listening(stack, socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
            "tcp": _listening(stack, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": _listening(stack, socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        }
        tcp_port = self._sockets["tcp"].getsockname()[1]
        with suppress(OSError):  # no IPv6 here, or the port is taken there
            self._sockets["tcp 6"] = _listening(stack, socket.AF_INET6, socket.SOCK_STREAM, ("::1", tcp_port))
        key = 0x50000000 | self._victim.pid
        self._shared = _LIBC.shmget(key, ctypes.c_size_t(4096), _IPC_CREAT | 0o666)
        self._queue = _LIBC.msgget(key, _IPC_CREAT | 0o666)
        stack.callback(_LIBC.shmctl, self._shared, _IPC_RMID, None)
        stack.callback(_LIBC.msgctl, self._queue, _IPC_RMID, None)
        self.outside = Outside(
            pid=self._victim.pid,
            secret_address=address,
            folder=str(folder),
            tcp_port=tcp_port,
            udp_port=self._sockets["udp"].getsockname()[1],
            abstract=abstract,
            shm_key=key,
        )
        self._before = self._process()

    def effects(self) -> tuple[str, ...]:
        """What is not as it was, in words."""
        return tuple(self._on_files() + self._on_sockets() + self._on_process())

    def _on_files(self) -> list[str]:
        canary, seen = self._folder / "canary", []
        if sorted(os.listdir(self._folder)) != ["canary", "socket"]:
            seen.append(f"the folder holds {os.listdir(self._folder)}")
        elif canary.read_text() != "sings" or canary.stat().st_mode & 0o777 != 0o666:
            seen.append("the canary was changed")
        return seen

    def _on_sockets(self) -> list[str]:
        seen = []
        for name, one in self._sockets.items():
            with suppress(BlockingIOError):
                one.recv(100) if one.type == socket.SOCK_DGRAM else one.accept()[0].close()
                seen.append(f"somebody reached {name}")
        return seen

    def _on_process(self) -> list[str]:
        if self._victim.poll() is not None:
            return ["the other process was ended"]
        return [] if self._process() == self._before else ["the other process was changed"]

    def _process(self) -> tuple[object, ...]:
        pid = self._victim.pid
        assert self._victim.stdin is not None
        self._victim.stdin.write(b"\n")
        self._victim.stdin.flush()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        tracer = next(line for line in lines if line.startswith("TracerPid"))
        limits = Path(f"/proc/{pid}/limits").read_text()
        return self._say(), tracer, limits, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid)

    def _say(self) -> str:
        assert self._victim.stdout is not None
        return self._victim.stdout.readline().decode().strip()


def _listening(stack: ExitStack, family: int, kind: int, address: object) -> socket.socket:
    one = stack.enter_context(socket.socket(family, kind))
    one.setblocking(False)
    one.bind(address)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        one.listen()
    return one


_UNCONFINED = """
import json
from pathlib import Path
from appliance.sandbox import probe
from tests.support import probes
probe.ATTEMPTS.update(probes.attempts(json.loads(sys.argv[1]), Path(sys.argv[2])))
print(probe.attempt(sys.argv[3]))
"""


def unconfined(name: str, folder: Path) -> Report:
    """The same attempt in a process without any sandbox: there it should succeed."""
    with ExitStack() as stack:
        host = Host(folder, stack)
        command = [sys.executable, "-c", _FROM_HERE + _UNCONFINED, json.dumps(host.outside), str(DEMO_MODEL), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=True)
        return Report(name=name, ready=True, ending=done.stdout.strip(), effects=host.effects())


# --- the runners ----------------------------------------------------------------------------------------------------


def probed(names: Iterable[str], folder: Path, *, without: str = "", model: Path = DEMO_MODEL) -> list[Report]:
    """Makes each probe in a live runner of its own, all but one layer on. Raises ``NoRunner``."""
    with ExitStack() as stack:
        host = Host(folder, stack)
        before = _digest(model)
        channel, _ = stack.enter_context(_mother(host.outside, without, model))
        reports = [_ask(channel, name, host) for name in names]
        assert _digest(model) == before, "the model's file was changed"
        return reports


def _ask(channel: socket.socket, name: str, host: Host) -> Report:
    channel.send(name.encode())
    data = channel.recv(MAX_FRAME_BYTES)
    assert data, f"{name}: the process that bears the runners is gone"
    answer = json.loads(data)
    assert answer["name"] == name
    effects = host.effects()
    effects += ("a core was written",) * answer["core"] + ("a process was left behind",) * answer["left"]
    return Report(name=name, ready=answer["ready"], ending=answer["ending"], effects=effects)


def _digest(model: Path) -> str:
    return hashlib.sha256(model.read_bytes()).hexdigest()


@contextmanager
def held_runner(folder: Path, *, threads: int) -> Iterator[int]:
    """The host's number of a runner that was asked to hold still where others make their attempt."""
    with ExitStack() as stack:
        host = Host(folder, stack)
        channel, process = stack.enter_context(_mother(host.outside, "", DEMO_MODEL, threads))
        assert process.stderr is not None
        channel.send(HOLD.encode())
        while process.stderr.readline() != HELD:
            assert process.poll() is None, "the runner did not get that far"
        runner = _only_child(_only_child(process.pid))
        yield runner
        os.kill(runner, signal.SIGKILL)
        channel.recv(MAX_FRAME_BYTES)


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@contextmanager
def _mother(
    outside: Outside, without: str, model: Path, threads: int = 1
) -> Iterator[tuple[socket.socket, "subprocess.Popen[bytes]"]]:
    """The mother and her channel, once she is fenced in and has the model."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(_LIMIT_SECONDS)
    configuration = json.dumps({"without": without, "outside": outside, "model": str(model)})
    command = [sys.executable, "-I", "-B", "-c", _MOTHER, configuration, "--channel-fd", str(theirs.fileno())]
    if lost := lost_with(without):
        command += ["--degraded", ",".join(sorted(lost))]
    with subprocess.Popen(
        command, env=ENVIRONMENT, pass_fds=[theirs.fileno()], cwd="/", stderr=subprocess.PIPE
    ) as process:
        theirs.close()
        try:
            with ours, model.open("rb") as file:
                _require_fence(ours, without)
                load = Load(runner_id="probes", context_tokens=256, slots=1, threads=threads, batch_tokens=64)
                socket.send_fds(ours, [encode(load)], [file.fileno()])
                yield ours, process
            process.communicate(timeout=_LIMIT_SECONDS)
        finally:
            process.kill()


def _require_fence(channel: socket.socket, without: str) -> None:
    data = channel.recv(MAX_FRAME_BYTES)
    first = _DECODER.decode(data) if data else None
    if isinstance(first, LoadFailed):
        raise NoRunner(f"{first.reason}: {first.detail}")
    assert isinstance(first, Fenced), f"no fence: {first}"
    assert set(first.degraded) == lost_with(without), first


def lost_with(without: str) -> frozenset[str]:
    """What a host that lacks this layer lacks: the layer, and those that cannot be put on without it."""
    lost = {without} & layers.DEGRADABLE
    if without == layers.MOUNT_NAMESPACE:
        lost |= {layers.EMPTY_ROOT}
    if without == layers.USER_NAMESPACE and os.geteuid() != 0:
        lost |= layers.NAMESPACES | {layers.EMPTY_ROOT}
    return frozenset(lost)
