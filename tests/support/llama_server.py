"""llama.cpp's own server as a peer: the program of ``tools/llama_server.py``, with the settings of a runner."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from appliance.ipc.messages import Load
from appliance.runner.main import ENVIRONMENT

_TOOL: Final = Path(__file__).parents[2] / "tools" / "llama_server.py"
_MICRO_BATCH_TOKENS: Final = 512
_BUILD_SECONDS: Final = 1500
_START_SECONDS: Final = 120.0
_ASK_SECONDS: Final = 60.0


def program() -> Path:
    """Built on the first call on this machine, found in the cache on all later ones."""
    done = subprocess.run(
        [sys.executable, str(_TOOL)], stdout=subprocess.PIPE, text=True, check=True, timeout=_BUILD_SECONDS
    )
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class LlamaServer:
    pid: int
    path: Path
    """Of the socket on which it speaks HTTP."""

    def ask(self, path: str, **body: Any) -> Any:
        """One request without a stream. Raises ``RuntimeError`` for anything but a 200."""
        connection = _UnixConnection(self.path)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"llama-server answered {answer.status}: {text[:300]!r}")
        return json.loads(text)


@contextmanager
def llama_server(model: Path, load: Load, directory: Path, *more: str) -> Iterator[LlamaServer]:
    """Ready to answer; ended afterwards. ``directory`` is for its socket and its log; ``more`` are more arguments.

    Threads, batch, slots and context are those of the runner's ``Load``, and so is the environment. Nothing is kept
    from one request to the next, nothing is logged per request, and every slot has a cache of its own.
    """
    path, log = directory / "llama.sock", directory / "llama.log"
    path.unlink(missing_ok=True)
    batch, micro = str(load.batch_tokens), str(min(load.batch_tokens, _MICRO_BATCH_TOKENS))
    command = [str(program()), "--model", str(model), "--host", str(path), "--offline", "--no-ui", "--log-disable"]
    command += ["--ctx-size", str(load.context_tokens * load.slots), "--parallel", str(load.slots), "--no-kv-unified"]
    command += ["--batch-size", batch, "--ubatch-size", micro, "--threads", str(load.threads), "--cache-ram", "0"]
    command += ["--no-cache-prompt", "--cache-type-k", load.kv_type, "--cache-type-v", load.kv_type]
    command += more
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, env={**ENVIRONMENT, "HOME": str(directory)})
    try:
        _await_health(process, path, log)
        yield LlamaServer(process.pid, path)
    finally:
        process.kill()
        process.wait()


def _await_health(process: "subprocess.Popen[bytes]", path: Path, log: Path) -> None:
    limit = time.monotonic() + _START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        if path.exists() and _healthy(path):
            return
        time.sleep(0.02)  # it tells nobody when it is ready
    raise RuntimeError(f"llama-server did not start: {log.read_text()[-1000:]}")


def _healthy(path: Path) -> bool:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ASK_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))
