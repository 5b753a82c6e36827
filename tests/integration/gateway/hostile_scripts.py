"""The rows of the table of hostile input that take time, company or a spoiled host."""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final

import wasmtime

from appliance.cli import clients
from appliance.core.records import (
    Closed,
    ModelRefused,
    Opened,
    PolicyLoaded,
    RefusedRequest,
    TokenRevoked,
    encode_entry,
)
from tests.integration.gateway.hostile_table import (
    CREDENTIALS,
    PUBLIC_URL,
    SCOPE,
    ask_token,
    asking,
    basic,
    bound_to_key,
    get,
    head,
    post,
    proof,
)
from tests.support.appliance import TestAppliance, appliance, free_port
from tests.support.chain_model import chain_model, long_script
from tests.support.hostile_tokens import Forge, base64url
from tests.support.identity_provider import IdentityProvider, new_key
from tests.support.oauth_clients import OAuthClient, register
from tests.support.public_vectors import vectors_folder
from tests.support.raw_http import RawAnswer, ends, exchange, read_answer
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder

AUTHORITY: Final = authority()
WORDS: Final = 4000
BUDGET: Final = 3000
RATE: Final = 60
OPEN: Final = "[limits]\naddress_requests_per_minute = 100_000\nprincipal_requests_per_minute = 1000\n"
CONFIG: Final = (
    f"body_timeout_seconds = 2\n{OPEN}[models]\ncontext_tokens = 16384\nmax_loaded = 3\n"
    f'[identity]\nissuer = "{PUBLIC_URL}"\npublic_url = "{PUBLIC_URL}"\n'
)
TIGHT: Final = (
    f"[limits]\naddress_requests_per_minute = 100_000\nprincipal_requests_per_minute = {RATE}\n"
    f"concurrent_requests = {RATE}\nbudget_tokens = {BUDGET}\n[models]\ncontext_tokens = 4096\n"
)


@dataclass
class Scene:
    """Appliances under test: one with room for everything, and one with little of it. What takes long by itself has
    begun when the scene is staged."""

    server: TestAppliance
    tight: TestAppliance
    slow_head: socket.socket
    idle_reader: socket.socket
    forge: Forge
    client: OAuthClient
    began: float = field(default_factory=time.monotonic)
    _names: Iterator[int] = field(default_factory=count)

    @property
    def proxied(self) -> int:
        """The port where a trusted proxy connects."""
        return self.server.config.listen[1].port

    @property
    def credentials(self) -> bytes:
        """Of the registered client, for HTTP Basic."""
        return self.client.credentials.encode()

    @property
    def servers(self) -> tuple[TestAppliance, ...]:
        return (self.server, self.tight)

    def fresh_name(self) -> str:
        """Of a principal that has asked nothing yet: rates and budgets of rows do not meet."""
        return f"caller-{next(self._names)}"

    def token(self, server: TestAppliance | None = None, subject: str | None = None, **claims: Any) -> str:
        """Signed here, so that the notary is not asked a thousand times."""
        forge = Forge((server or self.server).config)
        name = subject or self.fresh_name()
        return forge.with_claims(sub=name, jti=f"of-{name}", **claims)

    def send(self, data: bytes, *, server: TestAppliance | None = None, subject: str | None = None) -> RawAnswer:
        server = server or self.server
        return exchange(server.port, self.filled(data, server, self.token(server, subject)))

    def status_of(self, token: str) -> int:
        return exchange(self.server.port, self.filled(get(b"/v1/models", bearer=True), self.server, token)).status

    def traces(self, subject: str) -> list[str]:
        """What the log of the roomy appliance says of this subject: reasons of refusals, and outcomes of answers."""
        mine, told = set(), []
        for entry in self.server.entries():
            match entry.record:
                case RefusedRequest(actor=actor, reason=reason) if actor.subject == subject:
                    told.append(reason)
                case Opened(actor=actor, request_id=request_id) if actor.subject == subject:
                    mine.add(request_id)
                case Closed(request_id=request_id, outcome=outcome) if request_id in mine:
                    told.append(outcome)
        return told

    @staticmethod
    def filled(data: bytes, server: TestAppliance, token: str) -> bytes:
        return data.replace(b"@HOST@", b"127.0.0.1:%d" % server.port).replace(b"@TOKEN@", token.encode())


@contextmanager
def staged(directory: Path) -> Iterator[Scene]:
    for name in ("server", "tight"):
        (directory / name).mkdir()
    models = {"chain": chain_model(), "long": chain_model(long_script(WORDS)), "spoiled": chain_model("soon spoiled")}
    with ExitStack() as stage:
        issuer = stage.enter_context(IdentityProvider(directory / "issuer").serving())
        config = (
            CONFIG + issuer.settings(audience_list=True, scopes=[SCOPE], refresh_seconds=10) + _listeners(directory)
        )
        server = stage.enter_context(appliance(directory / "server", models, config))
        tight = stage.enter_context(appliance(directory / "tight", {"chain": chain_model()}, TIGHT))
        slow_head = stage.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        slow_head.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        idle_reader = stage.enter_context(socket.socket())
        # Less than one segment would leave the kernel probing a closed window for minutes after the server has closed.
        idle_reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        idle_reader.connect(("127.0.0.1", server.port))
        asked = asking(model="long", stream=True, max_tokens=WORDS, logprobs=True, top_logprobs=20)  # 2 kB a token
        idle_reader.sendall(Scene.filled(asked, server, server.token("idle-reader")))
        client = register(server, "hostile", introspects=True)
        scene = Scene(server, tight, slow_head, idle_reader, Forge(server.config, issuer), client)
        server.wait_until(lambda: scene.status_of(issuer.token(scope=SCOPE)) == 200, "the keys of the foreign issuer")
        yield scene


def _listeners(directory: Path) -> str:
    """For anybody, for a trusted proxy, and for those who know TLS."""
    folder = write_folder(directory / "tls", server_of(AUTHORITY), AUTHORITY)
    places = ("", 'trusted = ["127.0.0.1"]\n', f'tls = {json.dumps(str(folder))}\nclient_certificates = "optional"\n')
    return "".join(f'[[listen]]\nhost = "127.0.0.1"\nport = {free_port()}\n{rest}' for rest in places)


@dataclass(frozen=True)
class Script:
    """``play`` does the row and asserts what must come of it."""

    number: int
    name: str
    play: Callable[[Scene], None]


def one_record(server: TestAppliance, subject: str) -> RefusedRequest:
    (record,) = [record for record in server.records(RefusedRequest) if record.actor.subject == subject]
    assert isinstance(record, RefusedRequest)
    return record


def closed_record(server: TestAppliance, subject: str) -> Closed:
    """Of the one answer to this subject; waits for it."""

    def begun() -> list[Opened]:
        return [record for record in server.records(Opened) if record.actor.subject == subject]

    server.wait_until(lambda: begun() != [], "the opened record")
    (opened,) = begun()

    def found() -> list[Closed]:
        return [record for record in server.records(Closed) if record.request_id == opened.request_id]

    server.wait_until(lambda: found() != [], "the closed record")
    return found()[0]


# --- 1 --------------------------------------------------------------------------------------------------------------


def no_tls_where_tls_is_spoken(scene: Scene) -> None:
    """Ended without a word of HTTP, and told in one line each."""
    line, port = "refused: connection-refused: 'TLS: ", scene.server.config.listen[2].port
    before = scene.server.log.count(line)
    kinds = (get(b"/healthz"), b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff", b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n")
    for data in kinds:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(data)
            assert b"HTTP" not in all_of(sock)
    scene.server.wait_until(lambda: scene.server.log.count(line) == before + len(kinds), "the lines")


def all_of(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while piece := sock.recv(2**20):
            received += piece
    return received


# --- 16 -------------------------------------------------------------------------------------------------------------


def unknown_key_ids(scene: Scene) -> None:
    """Each is refused by itself, and whoever sends them keeps nobody out. The log of the other server has room for as
    many lines of the rows."""
    server = scene.tight
    rest = scene.token(server).partition(".")[2]
    before = server.log.count("refused: token-invalid")
    for number in range(1000):
        unknown = f"{base64url(scene.forge.header(kid=f'unknown-{number}'))}.{rest}"
        assert exchange(server.port, Scene.filled(get(b"/v1/models", bearer=True), server, unknown)).status == 401
    assert server.log.count("refused: token-invalid") == before + 1000


def unknown_key_ids_of_a_foreign_issuer(scene: Scene) -> None:
    """At most one look at its keys in a cooldown, which is a second."""
    issuer = scene.forge.foreign
    rest = issuer.token(scope=SCOPE).partition(".")[2]
    before, began = issuer.asked_for("/keys"), time.monotonic()
    for number in range(1000):
        assert scene.status_of(f"{base64url(scene.forge.header(kid=f'unknown-{number}'))}.{rest}") == 401
    assert 1 <= issuer.asked_for("/keys") - before <= time.monotonic() - began + 1
    assert scene.status_of(issuer.token(scope=SCOPE)) == 200


# --- 21 -------------------------------------------------------------------------------------------------------------


def rotated_out_key(scene: Scene) -> None:
    """A key that its issuer publishes no more verifies nothing once the keys are read again, also what it has verified
    before; a good token of the new key is what has them read before ``refresh_seconds`` are over."""
    issuer = scene.forge.foreign
    old = issuer.keys
    token = issuer.token(scope=SCOPE)
    assert scene.status_of(token) == 200
    try:
        issuer.keys = {"two": new_key("ES256")}
        fresh = issuer.token(scope=SCOPE, key_id="two")
        scene.server.wait_until(lambda: scene.status_of(fresh) == 200, "the new key")
        assert scene.status_of(token) == 401
    finally:
        issuer.keys = old
        scene.server.wait_until(lambda: scene.status_of(issuer.token(scope=SCOPE)) == 200, "the old key again")


def revoked_token(scene: Scene) -> None:
    token = scene.client.token()
    assert scene.status_of(token) == 200
    assert scene.client.ask("/oauth/revoke", {"token": token}).status == 200
    ends_within_a_second(scene, token)


def disabled_client(scene: Scene) -> None:
    client = register(scene.server, "soon-disabled")
    token = client.token()
    assert scene.status_of(token) == 200
    clients.change(scene.server.config, client.client_id, disabled=True)
    ends_within_a_second(scene, token)
    answer = client.ask("/oauth/token", {"grant_type": "client_credentials"})
    assert (answer.status, answer.json()["error"]) == (401, "invalid_client")


def ends_within_a_second(scene: Scene, token: str) -> None:
    deadline = time.monotonic() + 1
    while (status := scene.status_of(token)) != 401:
        assert time.monotonic() < deadline, status


# --- 26 to 29: the authorization server -----------------------------------------------------------------------------


def unknown_and_wrong_clients(scene: Scene) -> None:
    """Who does not prove who he is learns nothing of who is registered, nor how."""
    register(scene.server, "disabled", disabled=True)
    register(scene.server, "by-form", authentication="client_secret_post")
    answers = [
        scene.send(ask_token(CREDENTIALS, client=basic(client_id, "x" * 43)))
        for client_id in ("nobody", "hostile", "disabled", "by-form")
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(401, answers[0].body)}
    assert {frozenset(answer.headers) for answer in answers} == {frozenset(answers[0].headers)}
    assert answers[0].code() == "invalid_client"


def refresh_token_used_twice(scene: Scene) -> None:
    """Whoever has an old one has it by theft, or was robbed: nobody gets anything more (RFC 9700 section 4.14.2)."""
    client = scene.client
    first = client.family()
    assert scene.status_of(first["access_token"]) == 200
    second = client.refreshed(first["refresh_token"]).json()
    again = client.refreshed(first["refresh_token"])
    assert (again.status, again.json()["error"]) == (400, "invalid_grant")
    after = client.refreshed(second["refresh_token"])
    assert (after.status, after.json()["error"]) == (400, "invalid_grant")
    for token in (first["access_token"], second["access_token"]):
        ends_within_a_second(scene, token)
    assert "refresh-token-reused" in {record.why for record in scene.server.records(TokenRevoked)}


def tokens_that_are_looked_into(scene: Scene) -> None:
    mine = scene.client.token()
    assert scene.client.introspected(mine)["active"] is True
    for token in (
        scene.forge.with_claims(aud="another"),
        scene.forge.with_claims(exp=int(time.time()) - 3600, iat=int(time.time()) - 7200),
        scene.forge.with_hmac(),
        scene.forge.foreign.token(scope=SCOPE),
        mine[:-4] + "AAAA",
        mine.rpartition(".")[0],
    ):
        assert scene.client.introspected(token) == {"active": False}
    blind = register(scene.server, "blind")
    assert blind.introspected(mine) == {"active": False}


# --- 9, 23, 24: what comes with a token -----------------------------------------------------------------------------


def addresses_of_clients(scene: Scene) -> None:
    """What stands in the record is the kernel's word, or a trusted proxy's, and of the latter the last hop it saw."""
    lie = b"X-Forwarded-For: 198.51.100.1, 203.0.113.9"
    for port, said in ((scene.server.port, "127.0.0.1"), (scene.proxied, "203.0.113.9")):
        subject = scene.fresh_name()
        data = get(b"/v1/models/none", lie, bearer=True)
        assert exchange(port, Scene.filled(data, scene.server, scene.token(subject=subject))).status == 404
        assert one_record(scene.server, subject).peer.address == said


def proof_used_twice(scene: Scene) -> None:
    token = bound_to_key(scene.forge)
    data = head(b"GET /v1/models HTTP/1.1", b"Authorization: DPoP @TOKEN@", b"DPoP: " + proof(token).encode())
    answers = [exchange(scene.server.port, Scene.filled(data, scene.server, token)) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 401]
    assert 'error="invalid_dpop_proof"' in answers[1].headers["www-authenticate"]


def token_over_another_connection_than_its_own(scene: Scene) -> None:
    """Bound to a certificate (RFC 8705), at our own TLS."""
    owner, other = client_of(AUTHORITY), client_of(AUTHORITY)
    token = scene.forge.with_claims(cnf={"x5t#S256": base64url(sha256(owner.der).digest())})
    data = Scene.filled(get(b"/v1/models", b"Connection: close", bearer=True), scene.server, token)
    for certificate, status in ((owner, 200), (other, 401), (None, 401)):
        context = client_context(scene.server.directory, AUTHORITY, certificate)
        port = scene.server.config.listen[2].port
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as over_tls,
        ):
            over_tls.sendall(data)
            assert int(over_tls.recv(4096).split(b" ", 2)[1]) == status


# --- 34 -------------------------------------------------------------------------------------------------------------


def texts_of_a_suite(scene: Scene) -> None:
    """JSONTestSuite, as bodies: not one of its texts is what a route asks for, and none is a fault of ours."""
    token = scene.token()
    texts = sorted((vectors_folder("json") / "test_parsing").glob("*.json"))
    assert len(texts) == 318
    for text in texts:
        answer = exchange(scene.server.port, Scene.filled(post(text.read_bytes()), scene.server, token))
        assert answer.status == 400, text.name
        assert answer.code() in {"json-invalid", "field-invalid", "field-unknown"}, text.name
        assert text.name[0] == "y" or answer.code() == "json-invalid" or text.name in TAKEN, text.name


TAKEN: Final = frozenset({"i_number_double_huge_neg_exp.json", "i_number_real_underflow.json"})
"""Numbers that are too small to be more than zero."""


# --- 39 -------------------------------------------------------------------------------------------------------------


def unknown_and_forbidden_models(scene: Scene) -> None:
    """Alike for whoever may not list them: confined by the token, and by policy."""
    for groups, models in ((("staff",), ("other",)), (("visitors",), ("*",))):
        token = scene.token(groups=groups, models=models)
        for ask in (
            lambda name: asking(model=name),
            lambda name: asking(model=name, messages=[{"role": "user", "content": "x" * 250_000}]),
            lambda name: post(b'{"model":"%s","input":"a"}' % name.encode(), path=b"/v1/embeddings"),
            lambda name: get(b"/v1/models/" + name.encode(), bearer=True),
        ):
            forbidden, absent = (
                exchange(scene.server.port, Scene.filled(ask(name), scene.server, token)) for name in ("chain", "none")
            )
            assert (forbidden.status, forbidden.body) == (absent.status, absent.body)
            assert forbidden.status == 404
            assert forbidden.headers.keys() == absent.headers.keys()


# --- 42 to 45: budgets ----------------------------------------------------------------------------------------------


def too_often(scene: Scene) -> None:
    data = get(b"/v1/models", bearer=True)
    subject = scene.fresh_name()
    answers = [scene.send(data, server=scene.tight, subject=subject) for _ in range(RATE + 3)]
    assert [answer.status for answer in answers] == [200] * RATE + [429] * 3
    assert answers[-1].code() == "rate-limited"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert [r for r in scene.tight.records(RefusedRequest) if r.actor.subject == subject] == []  # counted


def budget_spent(scene: Scene) -> None:
    subject = scene.fresh_name()
    asked = asking(max_tokens=1000)
    statuses = []
    for _ in range(RATE):
        answer = scene.send(asked, server=scene.tight, subject=subject)
        statuses.append(answer.status)
        if answer.status != 200:
            break
    assert statuses == [200] * (len(statuses) - 1) + [429]
    assert answer.code() == "budget-exhausted"
    assert one_record(scene.tight, subject).reason == "budget-exhausted"


def more_than_the_whole_budget(scene: Scene) -> None:
    subject = scene.fresh_name()
    answer = scene.send(asking(max_tokens=BUDGET + 1), server=scene.tight, subject=subject)
    assert (answer.status, answer.code()) == (400, "budget-too-small")
    assert one_record(scene.tight, subject).reason == "budget-too-small"


def no_max_tokens(scene: Scene) -> None:
    subject = scene.fresh_name()
    assert scene.send(asking(), subject=subject).status == 200
    (opened,) = [record for record in scene.server.records(Opened) if record.actor.subject == subject]
    assert opened.reserved_tokens > scene.server.config.models.default_max_tokens


def parallel_calls(scene: Scene) -> None:
    """Each reserves more than half of the budget, and what the first gives back does not make room for a second."""
    subject = scene.fresh_name()
    token = scene.token(scene.tight, subject)
    data = Scene.filled(asking(max_tokens=BUDGET - 300), scene.tight, token)
    with ExitStack() as held:
        socks = [held.enter_context(socket.create_connection(("127.0.0.1", scene.tight.port), 20)) for _ in range(50)]
        for sock in socks:
            sock.sendall(data[:-1])
        for sock in socks:
            sock.sendall(data[-1:])
        with ThreadPoolExecutor(50) as readers:
            answers = list(readers.map(read_answer, socks))
    assert sorted(answer.status for answer in answers) == [200] + [429] * 49
    assert {answer.code() for answer in answers if answer.status == 429} == {"budget-exhausted"}
    assert len([record for record in scene.tight.records(Opened) if record.actor.subject == subject]) == 1


def stream_left_by_its_client(scene: Scene) -> None:
    subject = scene.fresh_name()
    data = Scene.filled(asking(model="long", stream=True, max_tokens=WORDS), scene.server, scene.token(subject=subject))
    with socket.create_connection(("127.0.0.1", scene.server.port), 20) as sock:
        sock.sendall(data)
        assert b" 200 " in sock.recv(4096)
    closed = closed_record(scene.server, subject)
    assert closed.outcome == "cancelled"
    assert closed.prompt_tokens > 0
    assert closed.completion_tokens < WORDS


def stream_at_its_end_of_tokens(scene: Scene) -> None:
    """What was reserved is never exceeded, so the end is the caller's own bound or policy's; the stream tells it."""
    subject = scene.fresh_name()
    answer = scene.send(asking(model="long", stream=True, max_tokens=5), subject=subject)
    assert b'"finish_reason":"length"' in answer.body
    assert b"data: [DONE]" in answer.body
    closed = closed_record(scene.server, subject)
    assert (closed.outcome, closed.completion_tokens) == ("truncated", 5)


def stream_whose_runner_dies(scene: Scene) -> None:
    server, subject = scene.tight, scene.fresh_name()
    asked = asking(stream=True, max_tokens=BUDGET - 500, ignore_eos=True)
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(Scene.filled(asked, server, scene.token(server, subject)))
        received = sock.recv(4096)
        server.kill("runner")
        while not received.endswith(b"0\r\n\r\n"):
            received += (piece := sock.recv(65536))
            assert piece, received[-300:]
    assert b'"code":"runner-lost"' in received
    assert closed_record(server, subject).outcome == "runner-lost"


# --- 46 to 48: what we depend on ------------------------------------------------------------------------------------


def policy_without_an_answer(scene: Scene) -> None:
    """Undefined, of another type, endless, or none at all: never a yes, and never a no that looks like policy's own."""
    server = scene.tight
    place = server.config.policy_dir / "policy.wasm"
    good = place.read_bytes()
    kinds = {
        "undefined": _module("[]"),
        "text": _module('[{"result":{"allow":"true","reasons":["group-permits-model"],"obligations":{}}}]'),
        "page": _module('[{"result":"<html>"}]'),
        "endless": _module("[]", "(loop $again br $again) unreachable"),
    }
    try:
        for kind, module in kinds.items():
            _replace_policy(server, place, module)
            for data in (asking(), get(b"/v1/models", bearer=True), get(b"/metrics", bearer=True)):
                subject = scene.fresh_name()
                answer = scene.send(data, server=server, subject=subject)
                assert (answer.status, answer.code()) == (503, "policy-unavailable"), kind
                assert int(answer.headers["retry-after"]) >= 1
                assert one_record(server, subject).reason == "policy-unavailable"
    finally:
        _replace_policy(server, place, good)


def _replace_policy(server: TestAppliance, place: Path, module: bytes) -> None:
    known = len(server.records(PolicyLoaded))
    fresh = place.with_suffix(".fresh")
    fresh.write_bytes(module)
    fresh.rename(place)
    server.wait_until(lambda: len(server.records(PolicyLoaded)) > known, "the changed policy")
    time.sleep(0.1)  # the record comes first, then the policy decides


def _module(answer: str, evaluate: str = "i32.const 4096") -> bytes:
    """The smallest module that looks like OPA's and gives this answer to everything."""
    texts = {1024: "{}", 2048: '{"paddock/decision":0}', 4096: answer}
    data = "".join(
        f'(data (i32.const {place}) "{"".join(f"{chr(92)}{byte:02x}" for byte in (*text.encode(), 0))}")'
        for place, text in texts.items()
    )
    return bytes(
        wasmtime.wat2wasm(f"""(module
            (import "env" "memory" (memory 2))
            (import "env" "opa_abort" (func $abort (param i32)))
            (export "memory" (memory 0))
            (global (export "opa_wasm_abi_version") i32 (i32.const 1))
            (global (export "opa_wasm_abi_minor_version") i32 (i32.const 3))
            {data}
            (func (export "builtins") (result i32) i32.const 1024)
            (func (export "entrypoints") (result i32) i32.const 2048)
            (func (export "opa_json_dump") (param i32) (result i32) local.get 0)
            (func (export "opa_json_parse") (param i32 i32) (result i32) i32.const 8)
            (func (export "opa_malloc") (param i32) (result i32) i32.const 70000)
            (func (export "opa_heap_ptr_get") (result i32) i32.const 80000)
            (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32) {evaluate}))""")
    )


def log_that_cannot_be_written(scene: Scene) -> None:
    server = scene.tight
    token, notary = scene.token(server), server.pid_of("notary")
    opened = len(server.records(Opened))
    whole = resource.prlimit(notary, resource.RLIMIT_FSIZE)
    resource.prlimit(notary, resource.RLIMIT_FSIZE, (0, whole[1]))  # every write fails, as on a full disk
    try:
        answer = exchange(server.port, Scene.filled(asking(), server, token))
    finally:
        resource.prlimit(notary, resource.RLIMIT_FSIZE, whole)
    assert (answer.status, answer.code()) == (503, "audit-unavailable")
    server.wait_until(lambda: server.chat(token, max_tokens=1).status == 200, "service once the log can be written")
    assert len(server.records(Opened)) == opened + 1


def model_that_changed_after_it_was_signed(scene: Scene) -> None:
    blob = scene.server.blob_of("spoiled")
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    answer = scene.send(asking(model="spoiled"))
    assert (answer.status, answer.code()) == (503, "model-not-verified"), answer
    scene.server.wait_until(lambda: scene.server.records(ModelRefused) != [], "the record of the refused model")
    assert [record.name for record in scene.server.records(ModelRefused)] == ["spoiled"]


# --- 49 -------------------------------------------------------------------------------------------------------------


def names_that_want_to_be_more_stay_in_their_record(scene: Scene) -> None:
    odd = "=cmd|'/C calc'!A0\r\n{\"v\":1}\x1b[2J\u2028\u202e"
    assert scene.send(asking(model=odd), subject=odd).status == 404
    record = one_record(scene.server, odd)
    assert record.model_name == odd
    (leaf,) = [encode_entry(entry) for entry in scene.server.entries() if entry.record == record]
    assert json.loads(leaf)["record"]["actor"]["subject"] == odd
    assert leaf.splitlines() == [leaf]
    assert not set(leaf) & {*range(32), 127}


# --- 54 -------------------------------------------------------------------------------------------------------------


def slow_head(scene: Scene) -> None:
    assert ends(scene.slow_head)
    assert time.monotonic() - scene.began > 5


def slow_body(scene: Scene) -> None:
    subject = scene.fresh_name()
    whole = asking()
    answer = scene.send(whole[:-5], subject=subject)
    assert (answer.status, answer.code()) == (408, "body-timeout")
    assert one_record(scene.server, subject).reason == "body-timeout"


def idle_reader(scene: Scene) -> None:
    """It may have been cut at the last token, of an answer that lay ready for it; it never gets the rest."""
    assert closed_record(scene.server, "idle-reader").outcome in {"cancelled", "truncated"}
    received = all_of(scene.idle_reader)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"data: [DONE]" not in received


def many_streams(scene: Scene) -> None:
    subject = scene.fresh_name()
    data = Scene.filled(asking(model="long", stream=True, max_tokens=WORDS), scene.server, scene.token(subject=subject))
    with ExitStack() as held:
        socks = [held.enter_context(socket.create_connection(("127.0.0.1", scene.server.port), 20)) for _ in range(8)]
        for sock in socks:
            sock.sendall(data)
        statuses = [int(sock.recv(4096).split(b" ", 2)[1]) for sock in socks]
    allowed = scene.server.config.models.slots - 1
    assert sorted(statuses) == [200] * allowed + [429] * (8 - allowed)


SCRIPTS: Final = (
    Script(1, "no TLS where TLS is spoken", no_tls_where_tls_is_spoken),
    Script(9, "addresses of clients", addresses_of_clients),
    Script(16, "a thousand unknown key ids", unknown_key_ids),
    Script(16, "a thousand unknown key ids of a foreign issuer", unknown_key_ids_of_a_foreign_issuer),
    Script(21, "rotated-out key", rotated_out_key),
    Script(21, "revoked token", revoked_token),
    Script(21, "disabled client", disabled_client),
    Script(26, "unknown and wrong clients look alike", unknown_and_wrong_clients),
    Script(28, "refresh token used twice", refresh_token_used_twice),
    Script(29, "tokens that are looked into", tokens_that_are_looked_into),
    Script(23, "proof used twice", proof_used_twice),
    Script(24, "token over another connection than its own", token_over_another_connection_than_its_own),
    Script(34, "texts of JSONTestSuite", texts_of_a_suite),
    Script(39, "unknown and forbidden models look alike", unknown_and_forbidden_models),
    Script(42, "over the rate", too_often),
    Script(42, "over the budget", budget_spent),
    Script(42, "more than the whole budget", more_than_the_whole_budget),
    Script(43, "no max_tokens", no_max_tokens),
    Script(44, "50 parallel calls where one fits", parallel_calls),
    Script(45, "stream left by its client", stream_left_by_its_client),
    Script(45, "stream at the end of its tokens", stream_at_its_end_of_tokens),
    Script(45, "stream whose runner dies", stream_whose_runner_dies),
    Script(46, "policy without an answer", policy_without_an_answer),
    Script(47, "log that cannot be written", log_that_cannot_be_written),
    Script(48, "model that changed after it was signed", model_that_changed_after_it_was_signed),
    Script(49, "names in records", names_that_want_to_be_more_stay_in_their_record),
    Script(54, "slow headers", slow_head),
    Script(54, "slow body", slow_body),
    Script(54, "reader that does not read", idle_reader),
    Script(54, "many streams of one principal", many_streams),
)
