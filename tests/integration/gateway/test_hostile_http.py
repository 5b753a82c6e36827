# ruff: noqa: E501 - one row of a table is one line
"""Hostile bytes at the real server, over raw sockets: the status that each must get, and that the server lives on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.appliance import TestAppliance, appliance
from tests.support.chain_model import chain_model

LIMIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    directory: Path = tmp_path_factory.mktemp("hostile")
    with appliance(directory, {"chain": chain_model()}, "body_timeout_seconds = 2\n") as one:
        yield one


def exchange(server: TestAppliance, data: bytes) -> bytes:
    """Sends the bytes as they are and returns what comes until the server closes or answers."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_SECONDS) as sock:
        sock.sendall(data)
        received = b""
        while b"\r\n\r\n" not in received:
            piece = sock.recv(65536)
            if not piece:
                break
            received += piece
        return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def request(host: bytes, *, line: bytes = b"GET /v1/models HTTP/1.1", headers: bytes = b"", body: bytes = b"") -> bytes:
    return line + b"\r\nHost: " + host + b"\r\n" + headers + b"\r\n" + body


BODY = b'{"model":"chain","messages":[{"role":"user","content":"hi"}]}'
POST = b"POST /v1/chat/completions HTTP/1.1"

RAW = [
    ("both lengths", b"POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("two content lengths", b"POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
    ("list of lengths", b"POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 2, 2\r\n\r\nxx", 400),
    ("signed length", b"POST / HTTP/1.1\r\nHost: H\r\nContent-Length: +2\r\n\r\nxx", 400),
    ("bare line feeds", b"GET / HTTP/1.1\nHost: H\n\n", 400),
    ("folded header", b"GET / HTTP/1.1\r\nHost: H\r\nX: a\r\n b\r\n\r\n", 400),
    ("space before colon", b"GET / HTTP/1.1\r\nHost : H\r\n\r\n", 400),
    ("NUL in header", b"GET / HTTP/1.1\r\nHost: H\r\nX: a\x00b\r\n\r\n", 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", b"GET / HTTP/1.1\r\nHost: H\r\nHost: H\r\n\r\n", 400),
    ("foreign host", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    ("host with a path", b"GET / HTTP/1.1\r\nHost: H/x\r\n\r\n", 400),
    ("host with userinfo", b"GET / HTTP/1.1\r\nHost: a@H\r\n\r\n", 400),
    ("HTTP/1.0 without host", b"GET / HTTP/1.0\r\n\r\n", 400),
    ("double slash", b"GET //v1/models HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("trailing slash", b"GET /v1/models/ HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("dot segment", b"GET /v1/../healthz HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("encoded slash", b"GET /v1%2fmodels HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("absolute form", b"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("another's absolute form", b"GET http://evil.example/healthz HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("star", b"OPTIONS * HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("fragment", b"GET /healthz#x HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("trailer", b"POST /healthz HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\n\r\n", 400),
    ("no version", b"GET /healthz\r\n\r\n", 400),
    ("OPTIONS of the public path", b"OPTIONS /healthz HTTP/1.1\r\nHost: H\r\n\r\n", 401),
    ("encoded letter", b"GET /%68ealthz HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("path parameter", b"GET /v1/models;x=1 HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("long target", b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: H\r\n\r\n", 414),
    ("many headers", b"GET / HTTP/1.1\r\nHost: H\r\n" + b"X: 1\r\n" * 100 + b"\r\n", 431),
    ("large header", b"GET / HTTP/1.1\r\nHost: H\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
    ("underscore in a name", b"GET /healthz HTTP/1.1\r\nHost: H\r\nX_Forwarded_For: 1\r\n\r\n", 400),
    ("two authorizations", b"GET / HTTP/1.1\r\nHost: H\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n", 400),
    ("token in the query", b"GET /v1/models?access_token=x HTTP/1.1\r\nHost: H\r\n\r\n", 400),
    ("no token", b"GET /v1/models HTTP/1.1\r\nHost: H\r\n\r\n", 401),
    ("no token on an unknown path", b"GET /admin HTTP/1.1\r\nHost: H\r\n\r\n", 401),
    ("OPTIONS without a token", b"OPTIONS /v1/models HTTP/1.1\r\nHost: H\r\n\r\n", 401),
    ("HEAD without a token", b"HEAD /v1/models HTTP/1.1\r\nHost: H\r\n\r\n", 401),
    ("two tokens in one header", b"GET / HTTP/1.1\r\nHost: H\r\nAuthorization: Bearer a, Bearer b\r\n\r\n", 400),
    ("Basic", b"GET /v1/models HTTP/1.1\r\nHost: H\r\nAuthorization: Basic YTpi\r\n\r\n", 401),
    ("token in another header", b"GET /v1/models HTTP/1.1\r\nHost: H\r\nX-Api-Key: T\r\n\r\n", 401),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
def test_hostile_request_is_refused(server: TestAppliance, data: bytes, status: int) -> None:
    answer = exchange(
        server,
        data.replace(b"H\r\n", b"127.0.0.1:%d\r\n" % server.port).replace(b": H/x", b": 127.0.0.1:%d/x" % server.port),
    )
    assert status_of(answer) == status, answer[:300]
    assert b"Traceback" not in answer
    assert server.request("GET", "/healthz").status == 200


BODIES = [
    ("duplicate key", b'{"model":"chain","model":"x","messages":[{"role":"user","content":"a"}]}', 400, "json-invalid"),
    ("duplicate key, escaped", b'{"model":"chain","\\u006dodel":"x","messages":[]}', 400, "json-invalid"),
    ("unknown key", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"foo":1}', 400, "field-unknown"),
    ("tools", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"tools":[{"type":"mcp"}]}', 400, "field-invalid"),
    ("case variant", b'{"Model":"chain","messages":[{"role":"user","content":"a"}]}', 400, "field-unknown"),
    ("wrong type", b'{"model":7,"messages":[{"role":"user","content":"a"}]}', 400, "field-invalid"),
    ("no messages", b'{"model":"chain","messages":[]}', 400, "field-invalid"),
    ("n", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"n":17}', 400, "field-invalid"),
    ("negative max_tokens", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"max_tokens":-1}', 400, "field-invalid"),
    ("boolean max_tokens", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"max_tokens":true}', 400, "field-invalid"),
    ("huge integer", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"seed":99999999999999999999999}', 400, "json-invalid"),
    ("NaN", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"top_p":NaN}', 400, "json-invalid"),
    ("1e400", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"top_p":1e400}', 400, "json-invalid"),
    ("image", b'{"model":"chain","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]}', 400, "field-invalid"),
    ("deep nesting", b"[" * 5000 + b"]" * 5000, 400, "json-invalid"),
    ("invalid UTF-8", b'{"model":"\xff"}', 400, "json-invalid"),
    ("lone surrogate", b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}', 400, "json-invalid"),
    ("byte-order mark", b'\xef\xbb\xbf{"model":"chain"}', 400, "json-invalid"),
    ("trailing bytes", b'{"model":"chain","messages":[{"role":"user","content":"a"}]} x', 400, "json-invalid"),
    ("empty", b"", 400, "json-invalid"),
    ("unknown model", b'{"model":"../etc/passwd","messages":[{"role":"user","content":"a"}]}', 404, "model-not-found"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_hostile_body_is_refused(server: TestAppliance, body: bytes, status: int, code: str) -> None:
    answer = server.request("POST", "/v1/chat/completions", token=server.token(), body=body)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_media_type_is_refused(server: TestAppliance, media_type: str) -> None:
    answer = server.request(
        "POST", "/v1/chat/completions", token=server.token(), body=BODY, headers={"Content-Type": media_type}
    )
    assert answer.status == 415


def test_compressed_body_is_refused(server: TestAppliance) -> None:
    answer = server.request(
        "POST", "/v1/chat/completions", token=server.token(), body=BODY, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status == 415


def test_oversize_body_is_refused_by_its_length_and_by_counting(server: TestAppliance) -> None:
    host = b"127.0.0.1:%d" % server.port
    bearer = b"Authorization: Bearer " + server.token().encode() + b"\r\nContent-Type: application/json\r\n"
    declared = request(host, line=POST, headers=bearer + b"Content-Length: 10000000000\r\n")
    assert status_of(exchange(server, declared)) == 413
    chunks = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    chunked = request(host, line=POST, headers=bearer + b"Transfer-Encoding: chunked\r\n", body=chunks * 5)
    assert status_of(exchange(server, chunked)) == 413


def test_slow_body_is_given_up(server: TestAppliance) -> None:
    host = b"127.0.0.1:%d" % server.port
    bearer = b"Authorization: Bearer " + server.token().encode() + b"\r\nContent-Type: application/json\r\n"
    slow = request(host, line=POST, headers=bearer + b"Content-Length: 100\r\n", body=b'{"model"')
    assert status_of(exchange(server, slow)) == 408


def test_upgrade_to_h2c_is_not_followed(server: TestAppliance) -> None:
    host = b"127.0.0.1:%d" % server.port
    answer = exchange(
        server, request(host, line=b"GET /healthz HTTP/1.1", headers=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    )
    assert status_of(answer) == 200


def test_wrong_method_names_the_right_one(server: TestAppliance) -> None:
    answer = server.request("GET", "/v1/chat/completions", token=server.token())
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert server.request("DELETE", "/v1/models", token=server.token()).status == 405


def test_forbidden_and_absent_models_look_alike(server: TestAppliance) -> None:
    token = server.token(models=("other",))
    forbidden = server.request("GET", "/v1/models/chain", token=token)
    absent = server.request("GET", "/v1/models/nothing", token=token)
    assert (forbidden.status, forbidden.body) == (absent.status, absent.body)
    assert forbidden.status == 404
