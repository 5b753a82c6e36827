"""Keycloak on a free loopback port, with TLS, in memory, and with the realms of ``realm.json``."""

import http.client
import http.cookiejar
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urljoin

import pytest

from tests.support.identity_provider import Authority

ROOT: Final = Path(__file__).parents[3]
REALM: Final = Path(__file__).with_name("realm.json")
START_SECONDS: Final = 240
ASK_SECONDS: Final = 30
HEAP = ("-Xms64m", "-Xmx320m", "-XX:MaxMetaspaceSize=192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
OPENED = tuple(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("util", "util.concurrent", "security"))


def distribution() -> Path:
    """Skips where it is not: nothing is fetched by a test."""
    asked = [sys.executable, "-c", "import keycloak; print(keycloak.place())"]
    found = Path(subprocess.check_output(asked, cwd=ROOT / "tools", text=True, timeout=30).strip())
    if shutil.which("java") is None or not found.exists():
        pytest.skip("there is no Keycloak here: run 'python3 tools/keycloak.py' (180 MB; Java 17 and Maven)")
    return found


class Keycloak:
    def __init__(self, folder: Path, realms: dict[str, dict[str, Any]]) -> None:
        self.ca_file, self._certificate, self._key = Authority().write(folder / "tls")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"https://127.0.0.1:{self._port}"
        self._home = folder / "home"
        (self._home / "data" / "import").mkdir(parents=True)
        for name, realm in realms.items():
            (self._home / "data" / "import" / f"{name}-realm.json").write_text(json.dumps(realm))
        self._log = folder / "log"
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))

    def issuer(self, realm: str = "staff") -> str:
        return f"{self.address}/realms/{realm}"

    @contextmanager
    def serving(self, program: Path) -> Iterator["Keycloak"]:
        for part in ("lib", "conf", "providers", "themes"):
            (self._home / part).symlink_to(program / part)
        command = [
            "java", *HEAP, *OPENED, f"-Dkc.home.dir={self._home}", f"-Djboss.server.config.dir={self._home / 'conf'}",
            f"-Djava.io.tmpdir={self._home / 'data'}", "-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
            "-cp", str(program / "lib" / "quarkus-run.jar"), "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
            "start", "--optimized", "--import-realm", "--cache=local", "--http-host=127.0.0.1",
            f"--hostname={self.address}",
            f"--https-port={self._port}", f"--https-certificate-file={self._certificate}",
            f"--https-certificate-key-file={self._key}",
        ]  # fmt: skip
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self._home
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not self._is_up():
                assert process.poll() is None, self._log.read_text()[-4000:]
                assert time.monotonic() < deadline, self._log.read_text()[-4000:]
                time.sleep(0.2)
            yield self
        finally:
            process.kill()  # there is nothing that it should keep
            process.wait(ASK_SECONDS)

    def _is_up(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self.ask("GET", f"{self.issuer()}/.well-known/openid-configuration")[0] == 200
        return False

    # --- a client --------------------------------------------------------------------------------------------------

    def ask(
        self, method: str, url: str, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=ASK_SECONDS, context=self._tls)
        headers |= {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
        body = urlencode(form) if form is not None else None
        try:
            connection.request(method, url.removeprefix(self.address), body=body, headers=headers)
            with connection.getresponse() as answer:
                data = answer.read()
                return answer.status, json.loads(data) if data.startswith(b"{") else {}
        finally:
            connection.close()

    def endpoint(self, name: str, realm: str = "staff") -> str:
        return f"{self.issuer(realm)}/protocol/openid-connect/{name}"

    def tokens(
        self, client: str = "paddock-cli", person: str = "alice", realm: str = "staff", **headers: str
    ) -> dict[str, Any]:
        """What a client gets for a person's password: the short way to a token of each kind."""
        form = {"grant_type": "password", "client_id": client, "scope": "openid"}
        form |= {"username": person, "password": f"{person}-password"}
        status, answer = self.ask("POST", self.endpoint("token", realm), form, **headers)
        assert status == 200, answer
        return answer

    def introspected(self, token: str, realm: str = "staff") -> dict[str, Any]:
        credential = "Basic " + b64encode(b"paddock:not-secret-here").decode()
        status, answer = self.ask(
            "POST", self.endpoint("token/introspect", realm), {"token": token}, Authorization=credential
        )
        assert status == 200, answer
        return answer

    # --- a person --------------------------------------------------------------------------------------------------

    def person_signs_in(self, address: str, person: str = "alice", answer: str = "accept") -> str:
        """What a browser and a person do with the address that a device shows. Returns the last page."""
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=self._tls),
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
        )

        def visit(url: str, form: dict[str, str] | None = None) -> tuple[str, str]:
            data = urlencode(form).encode() if form is not None else None
            with opener.open(url, data, timeout=ASK_SECONDS) as response:
                return response.geturl(), response.read().decode()

        def submit(url: str, page: str, **fields: str) -> tuple[str, str]:
            action = re.search(r'<form[^>]*\saction="([^"]+)"', page)
            assert action, page
            hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
            return visit(urljoin(url, unescape(action[1])), {**hidden, **fields})

        url, page = visit(address)
        url, page = submit(url, page, username=person, password=f"{person}-password")
        _url, page = submit(url, page, **{answer: "Yes"})
        return page


def realm(name: str, **attributes: str) -> dict[str, Any]:
    """A realm like ``realm.json``, under another name; ``attributes`` are changed in each of its clients."""
    document: dict[str, Any] = json.loads(REALM.read_text(encoding="utf-8")) | {"realm": name}
    for client in document["clients"]:
        client.setdefault("attributes", {}).update(attributes)
    return document
