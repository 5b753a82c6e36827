"""The appliance that ``paddock demo`` shows: prepared in a directory of its own, served, and asked as a client would.

Trusts: this installation.
Promises: the key that signs the demo models exists only while it signs; when ``serving`` ends, so has every process.
Not here: what is shown (``demo_steps``).
"""

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from appliance import settings
from appliance.cli import tokens
from appliance.cli.demo_report import Report
from appliance.cli.init import demo_model, initialise
from appliance.core.codec import canonical_json
from appliance.core.refusals import Fault
from appliance.model_store import open_store
from appliance.models.oms import TrustedKeys, generate_signing_key, public_pem, sign_model
from appliance.sandbox.layers import DEGRADABLE
from appliance.settings import Settings, child_environment

CHAT: Final = "/v1/chat/completions"
MODEL: Final = "paddock-demo"
TAMPERED: Final = "paddock-tampered"
GROUP: Final = "staff"
SIGNER: Final = "demo-publisher"
BUDGET_TOKENS: Final = 1200
START_SECONDS: Final = 60.0
REQUEST_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0


def prepare(directory: Path, report: Report) -> tuple[Settings, Path]:
    """State directory, default policy with one group, two signed models, one of which is then damaged."""
    config_file = directory / "paddock.toml"
    config_file.write_text(_config_text(directory), encoding="utf-8")
    config = settings.load(config_file)
    initialise(config)
    data = {"closed": {"models": [], "subjects": []}, "groups": {GROUP: {"models": ["*"], "max_tokens": 200}}}
    (config.policy_dir / "data.json").write_bytes(canonical_json(data))
    report.note(f"state directory with the default policy; group {GROUP!r} may use every model")
    original = demo_model().read_bytes()
    twin = original.replace(MODEL.encode(), TAMPERED.encode()[: len(MODEL)], 1)  # another digest, as valid
    key = generate_signing_key()
    trusted = config.trust_dir / f"{SIGNER}.pem"
    trusted.write_bytes(public_pem(key.public_key()))
    trusted.chmod(0o644)  # whatever this user's umask is: a key that others could write is not trusted
    with open_store(config) as store:
        for name, content in ((MODEL, original), (TAMPERED, twin)):
            path = directory / f"{name}.gguf"
            path.write_bytes(content)
            with path.open("rb") as file:
                bundle = sign_model(file.fileno(), path=path.name, key=key)
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                model = store.import_model(file.fileno(), name, bundle, TrustedKeys.load(config.trust_dir))
            report.note(f"signed and imported {name} as {model.digest}")
    return config, config_file


def _config_text(directory: Path) -> str:
    """The demo must run on every supported host, so it may do without each layer that can be missed; its last outcome
    says which were on. An appliance in service names only what its own host lacks."""
    with socket.socket() as probe:  # a free port; nobody else on this machine needs to know it
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"""\
state_dir = {json.dumps(str(directory / "state"))}
runtime_dir = {json.dumps(str(directory / "run"))}
[gateway]
listen_port = {port}
[limits]
budget_tokens = {BUDGET_TOKENS}
[models]
context_tokens = 1024
default_max_tokens = 96
threads = 1
[sandbox]
allow_degraded = {json.dumps(sorted(DEGRADABLE))}
"""


@contextmanager
def serving(config_file: Path, log_file: Path) -> Iterator[None]:
    """``paddock serve`` as a child process, stopped by the signal that Ctrl-C sends."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "appliance", "serve", "--config", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
            start_new_session=True,
        )
    try:
        yield
    except (Fault, OSError):
        sys.stderr.write(log_file.read_text(errors="replace")[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Fault("the appliance did not stop on Ctrl-C") from None


class Appliance:
    """A running appliance as a client sees it. Every request has a time limit."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self._wait_until_alive()

    def token(self, subject: str, groups: tuple[str, ...] = (GROUP,)) -> str:
        """A token for any model; policy decides by group."""
        return tokens.issue(
            self.config, subject=subject, client_id="paddock-demo", groups=groups, models=("*",), ttl_seconds=600
        )

    @contextmanager
    def open_request(
        self, method: str, path: str, *, token: str | None = None, body: object = None
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own; the answer's body is still to be read."""
        gateway = self.config.gateway
        connection = http.client.HTTPConnection(gateway.listen_host, gateway.listen_port, timeout=REQUEST_SECONDS)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def request(
        self, method: str, path: str, *, token: str | None = None, body: object = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of one request."""
        with self.open_request(method, path, token=token, body=body) as response:
            return response.status, json.loads(response.read())

    def chat(self, token: str | None, question: str, model: str = MODEL) -> tuple[int, dict[str, Any]]:
        return self.request("POST", CHAT, token=token, body=chat_body(question, model=model))

    def _wait_until_alive(self) -> None:
        """Until the gateway answers and knows the models."""
        deadline = time.monotonic() + START_SECONDS
        for attempt in itertools.count():  # each under a name of its own, since looking counts against a rate too
            if time.monotonic() > deadline:
                raise Fault("the appliance did not come up in time")
            with suppress(OSError, Fault, http.client.HTTPException):
                if self._lists_models(f"demo-readiness-{attempt}"):
                    return
            time.sleep(0.1)

    def _lists_models(self, subject: str) -> bool:
        status, answer = self.request("GET", "/v1/models", token=self.token(subject))
        return status == 200 and len(answer["data"]) == 2


def chat_body(question: str, *, model: str = MODEL, stream: bool = False) -> dict[str, Any]:
    """A question at temperature 0, so that the demo says the same on every run."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 96, "stream": stream}
