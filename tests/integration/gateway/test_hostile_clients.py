"""Clients that try to use up the real server: none keeps others from an answer, fills its memory or steers its log."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from msgspec import UNSET

from appliance.core.records import Closed, Opened, RefusalSummary, RefusedRequest
from tests.support.appliance import TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model, long_script

LIMIT_SECONDS = 20.0
WORDS = 5000
CONFIG = (
    "[models]\ncontext_tokens = 16384\nthreads = 1\n"
    "[limits]\nbudget_tokens = 100_000_000\nprincipal_requests_per_minute = 1000\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("clients"), {"chain": chain_model(long_script(WORDS))}, CONFIG) as one:
        assert one.chat(one.token("warm-up"), max_tokens=1).status == 200
        yield one


@contextmanager
def connected(server: TestAppliance) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_SECONDS) as sock:
        yield sock


def stream_request(server: TestAppliance, token: str) -> bytes:
    body = json.dumps(chat_body(stream=True, max_tokens=WORDS)).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (server.port, token.encode(), len(body), body)
    )


def status_of(sock: socket.socket) -> int:
    """Reads the status line and no more than the first piece of the answer."""
    return int(sock.recv(4096).split(b" ", 2)[1])


def resident_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


# --- without a token ------------------------------------------------------------------------------------------------


def test_thousand_idle_connections_keep_nobody_out(server: TestAppliance) -> None:
    with ExitStack() as idle:
        for _ in range(1000):
            with suppress(ConnectionError):
                idle.enter_context(connected(server))
        assert server.request("GET", "/healthz").status == 200
        assert server.chat(server.token(), max_tokens=1).status == 200
    assert server.request("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    ("begin", "more", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a: bbbbbbbbbbbb\r\n" * 4000, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\na: ", b"a" * 65536, 431),
        (b"GET /", b"a" * 65536, 414),
    ],
    ids=["headers", "one header", "target"],
)
def test_request_without_an_end_does_not_fill_the_memory(
    server: TestAppliance, begin: bytes, more: bytes, status: int
) -> None:
    pid = server.pid_of("gateway")
    before = resident_bytes(pid)
    for _ in range(20):
        with connected(server) as sock:
            sock.sendall(begin)
            with suppress(ConnectionError):
                for _ in range(16):
                    sock.sendall(more)
            assert status_of(sock) == status
    assert resident_bytes(pid) - before < 16 * 1024 * 1024
    assert server.request("GET", "/healthz").status == 200


# --- with a token ---------------------------------------------------------------------------------------------------


def test_client_that_sends_another_request_and_leaves_stops_its_answer(server: TestAppliance) -> None:
    known = {record.request_id for record in server.records(Opened)}
    with connected(server) as sock:
        sock.sendall(stream_request(server, server.token("leaver")))
        assert status_of(sock) == 200
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port)
    (mine,) = {record.request_id for record in server.records(Opened)} - known

    def closed() -> list[Closed]:
        return [record for record in server.records(Closed) if record.request_id == mine]

    server.wait_until(lambda: closed() != [], "the closed record")
    assert closed()[0].outcome == "cancelled"
    assert closed()[0].completion_tokens < WORDS


def test_streams_of_one_principal_keep_nobody_else_from_an_answer(server: TestAppliance) -> None:
    request = stream_request(server, server.token("crowder"))
    with ExitStack() as held:
        socks = [held.enter_context(connected(server)) for _ in range(30)]
        for sock in socks:
            sock.sendall(request)
        statuses = [status_of(sock) for sock in socks]
        assert statuses.count(200) == server.config.models.slots - 1
        assert statuses.count(429) == 30 - statuses.count(200)
        assert server.chat(server.token("bob"), max_tokens=1).status == 200
        opened = {record.request_id for record in server.records(Opened) if record.actor.subject == "crowder"}
        assert not opened & {record.request_id for record in server.records(Closed)}  # bob waited for none of them

    def free_again() -> bool:
        return server.chat(server.token("crowder"), max_tokens=1).status == 200

    server.wait_until(free_again, "the slots are free again")
    assert [record for record in server.records(RefusedRequest) if record.actor.subject == "crowder"] == []


def test_broken_answer_is_no_error_of_ours(server: TestAppliance) -> None:
    with connected(server) as sock:
        sock.sendall(stream_request(server, server.token()))
        assert status_of(sock) == 200
        server.kill("runner")
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65536)
            assert piece, received[-300:]
            received += piece
    assert b'"code":"runner-lost"' in received
    assert "Traceback" not in server.log
    assert "ASGI" not in server.log


# --- the size of the log --------------------------------------------------------------------------------------------


def test_refusals_beyond_the_rate_are_one_record_whatever_was_asked(tmp_path: Path) -> None:
    extra = "[limits]\nprincipal_requests_per_minute = 8\n"
    with appliance(tmp_path, {"chain": chain_model()}, extra) as server:
        token = server.token("noisy")
        for _ in range(2):
            assert server.request("POST", "/v1/chat/completions", token=token, body=b"{").status == 400
            assert server.request("GET", "/v1/models/absent", token=token).status == 404
            assert server.request("DELETE", "/v1/models", token=token).status == 405
            assert server.request("GET", "/v1/models", token=token).status == 200
        for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/absent")] * 10:
            answer = server.request(method, path, token=token, body=b"{" if method == "POST" else None)
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) >= 1
        assert server.request("GET", "/v1/models", token=server.token("quiet")).status == 200
        assert server.request("GET", "/v1/models").status == 401
    reasons = [record.reason for record in server.records(RefusedRequest) if record.actor.subject == "noisy"]
    assert sorted(reasons) == sorted(["json-invalid", "model-not-found", "method-not-allowed"] * 2)
    known = [record for record in server.records(RefusalSummary) if record.actor is not UNSET]
    assert [(record.actor.subject, record.counts) for record in known] == [("noisy", {"rate-limited": 30})]
    strangers = [record.counts for record in server.records(RefusalSummary) if record.actor is UNSET]
    assert {"token-missing": 1} in strangers
