"""A whole appliance for tests: its own directories, keys and port, the processes of ``paddock serve``, time limits."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from appliance import settings
from appliance.audit.fsck import LogReport, verify_log
from appliance.audit.query import read_entries
from appliance.cli import tokens
from appliance.cli.init import initialise
from appliance.core.codec import canonical_json
from appliance.core.records import Entry
from appliance.core.refusals import Fault
from appliance.models.oms import TrustedKeys, generate_signing_key, public_pem, sign_model
from appliance.models.store import ModelStore
from appliance.settings import Settings, child_environment

LIMIT_SECONDS = 60.0
GROUP = "staff"


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def chat_body(text: str = "hi", *, model: str = "chain", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


class TestAppliance:
    """One appliance. ``start`` and ``stop`` may be called more than once on the same directories."""

    __test__ = False

    def __init__(
        self, directory: Path, models: dict[str, Path], extra_config: str = "", listed: int | None = None
    ) -> None:
        self.directory = directory
        self.config_file = directory / "paddock.toml"
        self.config_file.write_text(_config(directory, extra_config))
        self.config: Settings = settings.load(self.config_file)
        initialise(self.config)
        self.write_policy_data({"groups": {GROUP: {"models": ["*"], "max_tokens": 100_000}}})
        self._key = generate_signing_key()
        (self.config.trust_dir / "tester.pem").write_bytes(public_pem(self._key.public_key()))
        for name, path in models.items():
            self.import_model(name, path)
        self._models = len(models) if listed is None else listed
        self._looks = 0
        self._process: subprocess.Popen[bytes] | None = None

    def write_policy_data(self, data: dict[str, Any]) -> None:
        document = {"closed": {"models": [], "subjects": []}, **data}
        (self.config.policy_dir / "data.json").write_bytes(canonical_json(document))

    def import_model(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            bundle = sign_model(file.fileno(), path=path.name, key=self._key)
        self.import_with(path, bundle, name)

    def import_with(self, path: Path, bundle: bytes, name: str = "another") -> None:
        with ModelStore.open(self.config.models_dir) as store, path.open("rb") as file:
            store.import_model(file.fileno(), name, bundle, TrustedKeys.load(self.config.trust_dir))

    def blob_of(self, name: str) -> Path:
        entry = json.loads((self.config.models_dir / "models" / f"{name}.json").read_bytes())
        return self.config.models_dir / "blobs" / "sha256" / entry["blob"].removeprefix("sha256:")

    # --- the processes ---------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        return (self.directory / "serve.log").read_text(errors="replace")

    def spawn(self) -> subprocess.Popen[bytes]:
        """``paddock serve`` without waiting for anything."""
        with (self.directory / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", "appliance", "serve", "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,
            )
        return self._process

    def start(self) -> None:
        self.spawn()
        self.wait_until(self.ready, "the appliance is ready")

    def start_without_models(self) -> None:
        self._models = 0
        self.start()

    def stop(self) -> int:
        """What Ctrl-C does. Returns the exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is not None:
            return process.returncode
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def pid_of(self, role: str) -> int:
        """The process of a role, the warden's starter, or the runner's own process (the innermost one)."""
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            arguments = _arguments(pid)
            if role == "runner" and "appliance.runner" in arguments and not _children(pid):
                return pid
            if role == "starter" and "appliance.warden.starter" in arguments:
                return pid
            if role != "runner" and role in arguments and "--parent" in arguments:
                return pid
        raise AssertionError(f"no {role} is running\n{self.log[-3000:]}")

    def kill(self, role: str) -> None:
        os.kill(self.pid_of(role), signal.SIGKILL)

    def ready(self) -> bool:
        with suppress(OSError, Fault, http.client.HTTPException):
            self._looks += 1  # each by another principal: looking has a rate too
            answer = self.request("GET", "/v1/models", token=self.token(f"readiness-{self._looks}"))
            return answer.status == 200 and len(answer.json()["data"]) == self._models
        return False

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not in time: {what}\n{self.log[-4000:]}")
            time.sleep(0.05)

    # --- clients ---------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Of the first listener that has one."""
        return next(one.port for one in self.config.listeners if one.host is not None)

    def token(
        self, subject: str = "alice", groups: tuple[str, ...] = (GROUP,), models: tuple[str, ...] = ("*",)
    ) -> str:
        return tokens.issue(
            self.config, subject=subject, client_id="tests", groups=groups, models=models, ttl_seconds=600
        )

    @contextmanager
    def open_request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer whose body is still to be read. Leaving the block closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        fields = dict(headers or {})
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            fields.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=data, headers=fields)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def request(self, method: str, path: str, **details: Any) -> "Answer":
        with self.open_request(method, path, **details) as response:
            return Answer(response.status, response.headers, response.read())

    def chat(self, token: str | None, text: str = "hi", **fields: Any) -> "Answer":
        return self.request("POST", "/v1/chat/completions", token=token, body=chat_body(text, **fields))

    # --- the log ---------------------------------------------------------------------------------------------------

    def verify(self) -> LogReport:
        vkey = (self.config.public_dir / "log.vkey").read_text().strip()
        return verify_log(self.config.notary_dir / "log", vkey)

    def entries(self) -> list[Entry]:
        return list(read_entries(self.config.notary_dir / "log"))

    def records(self, kind: type) -> list[Any]:
        return [entry.record for entry in self.entries() if isinstance(entry.record, kind)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _config(directory: Path, extra: str) -> str:
    listen_port = "" if "[[listen]]" in extra else f"listen_port = {free_port()}"
    return f"""\
state_dir = {json.dumps(str(directory / "state"))}
runtime_dir = {json.dumps(str(directory / "run"))}
[gateway]
{listen_port}
{extra}"""


@contextmanager
def appliance(
    directory: Path, models: dict[str, Path], extra_config: str = "", listed: int | None = None
) -> Iterator[TestAppliance]:
    """A started appliance; stopped, and its log verified, at the end. It is ready when it lists as many models as
    it was given, or ``listed``."""
    one = TestAppliance(directory, models, extra_config, listed)
    one.start()
    try:
        yield one
    finally:
        status = one.stop()
    assert status == 0, one.log
    report = one.verify()
    assert report.verdict == "intact", report
    assert report.open_requests == ()


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _arguments(pid: int) -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"))
    return ()
