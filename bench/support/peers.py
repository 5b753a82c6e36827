"""The other servers of the engine's benchmark, and the process that asks all of them alike."""

import hashlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from appliance.ipc.messages import Load
from appliance.runner.main import ENVIRONMENT
from bench.support.asking import Round, Told
from tools import setup

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30


class Client:
    """The asking process (``asking``). ``descriptors`` are those of runners' channels."""

    def __init__(self, *descriptors: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.support.asking"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
        )

    def play(self, around: Round) -> Told:
        """Raises ``RuntimeError`` when the client has ended, whose stderr is ours and says why."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(around) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with status {self._process.wait(_STOP_SECONDS)}")
        return msgspec.json.decode(line, type=Told)

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@contextmanager
def packaged_server(model: Path, load: Load, directory: Path) -> Iterator[tuple[int, int]]:
    """llama-cpp-python's own server, its process id and its port on the loopback. It answers one after the other; that
    a new request interrupts the running one, its default, is switched off."""
    port = free_port()
    command = [str(_packaged_python()), "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    command += [
        "--interrupt_requests",
        "false",
        "--n_ctx",
        str(load.context_tokens),
        "--n_batch",
        str(load.batch_tokens),
    ]
    command += ["--n_threads", str(load.threads), "--n_threads_batch", str(load.threads)]
    environment = {**ENVIRONMENT, "HOME": str(directory)}
    with listening(command, port, environment, log=directory / "packaged.log") as pid:
        yield pid, port


@contextmanager
def listening(command: list[str], port: int, environment: dict[str, str], *, log: Path) -> Iterator[int]:
    """The process id of a server once it listens. It runs beside its ``log``, and is killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=output, stderr=output)
    try:
        limit = time.monotonic() + _START_SECONDS
        while not listens(port):
            if time.monotonic() > limit or process.poll() is not None:
                raise RuntimeError(f"{Path(command[0]).name} did not start: {log.read_text()[-1000:]}")
            time.sleep(0.1)  # it tells nobody when it is ready
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _packaged_python() -> Path:
    """The same compiled engine, and what the server needs."""
    return private_python("packaged-server", setup.REQUIREMENTS / "peer.txt", setup.engine_wheel())


def private_python(name: str, requirements: Path, wheel: Path | None = None) -> Path:
    """The interpreter of a peer's own virtual environment, made once: locked requirements, and a wheel of ours."""
    key = hashlib.sha256(requirements.read_bytes() + str(wheel).encode() + sys.version.encode()).hexdigest()[:16]
    place = setup.cache_directory() / name / key
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        setup.install(python, "--require-hashes", "--only-binary", ":all:", "-r", str(requirements))
        if wheel is not None:
            setup.install(python, "--no-deps", str(wheel))
        (place / "ready").touch()
    return python


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
