"""Dex, a real identity provider, from the login to an answer of a model; and a second Dex that nobody configured.

Its program is built from ``tests/support/dex`` with the modules that are on this machine already; where they are not,
these tests are skipped, except where CI is true: ``go mod download`` there fetches them.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import pytest

from appliance.core.records import Opened
from tests.support.appliance import GROUP, TestAppliance, appliance
from tests.support.chain_model import chain_model
from tests.support.identity_provider import Authority

SOURCE = Path(__file__).parents[2] / "support" / "dex"
CLIENT, SECRET, REDIRECT = "paddock", "not-secret-here", "https://client.example/callback"
SECONDS = 60


def go(*arguments: str, folder: Path = SOURCE) -> "subprocess.CompletedProcess[str]":
    found = shutil.which("go") or "/usr/local/go/bin/go"
    environment = {**os.environ, "GOPROXY": "off", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
    return subprocess.run(
        [found, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def absent(why: str) -> None:
    missing = f"Dex cannot be built here ({why}): run 'go mod download' in {SOURCE.relative_to(Path.cwd())}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass
class Dex:
    issuer: str
    ca_file: Path

    def token(self, nonce: str | None = None) -> str:
        """What Dex gives its mock user for the client's code (OpenID Connect Core section 3.1)."""
        asked = {"client_id": CLIENT, "redirect_uri": REDIRECT, "response_type": "code", "state": "s"}
        asked |= {"scope": "openid groups email"} | ({"nonce": nonce} if nonce else {})
        place = f"{self.issuer}/auth?{urlencode(asked)}"
        for _ in range(8):
            status, headers, _body = self._ask("GET", place)
            assert status in {302, 303}, _body
            place = urljoin(place, headers["Location"])
            if place.startswith(REDIRECT):
                break
        code = parse_qs(urlsplit(place).query)["code"][0]
        form = urlencode({"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT})
        status, _headers, body = self._ask("POST", f"{self.issuer}/token", form)
        assert status == 200, body
        token: str = json.loads(body)["id_token"]
        return token

    def is_up(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self._ask("GET", f"{self.issuer}/keys")[0] == 200
        return False

    def _ask(self, method: str, url: str, form: str | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:
        parts = urlsplit(url)
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=10, context=tls)
        headers = {"Authorization": "Basic " + b64encode(f"{CLIENT}:{SECRET}".encode()).decode()}
        headers |= {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        try:
            connection.request(method, f"{parts.path}?{parts.query}", body=form, headers=headers)
            with connection.getresponse() as answer:
                return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@contextmanager
def serving(program: Path, web: str, folder: Path) -> Iterator[Dex]:
    ca_file, certificate, key = Authority().write(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    dex = Dex(f"https://{address}/dex", ca_file)
    arguments = (dex.issuer, address, certificate, key, CLIENT, SECRET, REDIRECT, web)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *map(str, arguments)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS
        while not dex.is_up():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield dex
    finally:
        process.terminate()
        process.wait(SECONDS)


@dataclass
class Site:
    server: TestAppliance
    dex: Dex
    other: Dex


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("dex")
    program = folder / "dex"
    try:
        built = go("build", "-o", str(program), ".")
        web = go("list", "-m", "-f", "{{.Dir}}/web", "github.com/dexidp/dex")
    except OSError as error:
        absent(str(error))
    if built.returncode or web.returncode:
        absent((built.stderr + web.stderr)[-300:])
    with ExitStack() as stack:
        dex, other = (
            stack.enter_context(serving(program, web.stdout.strip(), folder / name)) for name in ("one", "two")
        )
        config = f"""
[issuer.dex]
issuer = "{dex.issuer}"
audiences = ["{CLIENT}"]
clients = ["{CLIENT}"]
ca_file = "{dex.ca_file}"
jwks_uri = "{dex.issuer}/keys"
algorithms = ["RS256"]
token_types = [""]
refused_claims = ["nonce"]
client_claim = ["aud"]
token_id_claim = []
groups_claim = ["groups"]
groups = {{ authors = "{GROUP}" }}
models = ["*"]
cooldown_seconds = 1
"""
        (folder / "appliance").mkdir()
        server = stack.enter_context(appliance(folder / "appliance", {"chain": chain_model()}, config))
        server.wait_until(lambda: "issuer dex: " in server.log, "Dex's keys")
        yield Site(server, dex, other)


def test_persons_token_from_dex_is_good_for_an_answer_and_the_record_names_the_person(site: Site) -> None:
    token = site.dex.token()
    answer = site.server.chat(token, max_tokens=2)
    assert answer.status == 200, answer.body
    actor = site.server.records(Opened)[-1].actor
    assert (actor.issuer, actor.client_id, actor.groups) == (site.dex.issuer, CLIENT, (GROUP,))
    assert actor.subject
    assert actor.token_id == str(actor.token_sha256)


def test_token_of_another_dex_is_refused(site: Site) -> None:
    answer = site.server.chat(site.other.token(), max_tokens=2)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "token-invalid")


def test_token_of_another_dex_is_refused_under_the_name_of_the_first(site: Site) -> None:
    """Its signature with the first one's header and claims."""
    head, body, _ = site.dex.token().split(".")
    signature = site.other.token().split(".")[2]
    answer = site.server.chat(f"{head}.{body}.{signature}", max_tokens=2)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "token-invalid")


def test_id_token_for_somebodys_browser_is_refused(site: Site) -> None:
    """It has a nonce: some application asked for it to sign a person in (OpenID Connect Core section 2)."""
    answer = site.server.chat(site.dex.token(nonce="of a browser"), max_tokens=2)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "token-invalid")
