"""Whatever an identity provider does ends in the whole body of a JSON answer or in ``Unreachable``, in time."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.refusals import Misconfigured
from appliance.identity import https
from appliance.identity.https import Endpoint, Unreachable, exchange, tls_context
from tests.support.identity_provider import Authority

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Serve = Callable[[bytes], None]


class Raw:
    """A TLS server that says given bytes to one client after another, whatever these ask."""

    def __init__(self, folder: Path) -> None:
        self.ca_file, certificate, key = Authority().write(folder)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.pieces: list[bytes] = []
        self.pause_seconds = 0.0
        self.stays = threading.Event()
        self.asked = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listening.accept()
            except OSError:
                return
            try:
                with plain, self._tls.wrap_socket(plain, server_side=True) as peer:
                    self.asked = peer.recv(65536)
                    for piece in self.pieces:
                        peer.sendall(piece)
                        time.sleep(self.pause_seconds)
            except OSError:
                continue

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self._thread.join(10)

    def endpoint(self, host: str = "127.0.0.1") -> Endpoint:
        return Endpoint(host=host, port=self.listening.getsockname()[1], target="/keys?a=b")


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Raw]:
    one = Raw(tmp_path)
    yield one
    one.close()


def ask(raw: Raw, timeout_seconds: float = 5.0, ca_file: Path | None = None, **options: object) -> bytes:
    tls = tls_context(ca_file or raw.ca_file)
    return asyncio.run(exchange(raw.endpoint(), tls, timeout_seconds=timeout_seconds, **options))  # type: ignore[arg-type]


def refused(raw: Raw, *pieces: bytes, **options: object) -> str:
    raw.pieces = list(pieces)
    with pytest.raises(Unreachable) as caught:
        ask(raw, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_whole_answer_is_returned_and_the_question_says_what_it_must(raw: Raw) -> None:
    raw.pieces = [HEAD, b"Content-Length: 2\r\n\r\n{", b"}"]
    assert ask(raw) == b"{}"
    port = raw.endpoint().port
    assert raw.asked.startswith(b"GET /keys?a=b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)
    assert b"Authorization" not in raw.asked


def test_form_is_posted_with_the_credential(raw: Raw) -> None:
    raw.pieces = [HEAD, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
    assert ask(raw, form=b"token=x", credential="Basic YTpi") == b"{}"
    assert raw.asked.startswith(b"POST /keys")
    assert raw.asked.endswith(b"Authorization: Basic YTpi\r\n\r\ntoken=x")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 301 Moved\r\nLocation: https://evil.example\r\nContent-Length: 0\r\n\r\n", "status 301"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}", "more than one"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "another protocol"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "compressed"),
        (HEAD + b"Content-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", "not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not JSON"),
        (HEAD + b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", "not JSON"),
        (HEAD + b"\r\n{}", "does not say how long"),
        (HEAD + b"Content-Length: 3\r\n\r\n{}", "ended early"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "not HTTP"),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", "not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 2\r\n\r\n{}" + HEAD + b"Content-Length: 2\r\n\r\n[]", "more than one"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"", "ended early"),
        (HEAD + b"X: " + b"x" * 30_000 + b"\r\nContent-Length: 2\r\n\r\n{}", "too large"),
        (HEAD + b"Content-Length: 70000\r\n\r\n" + b" " * 70_000, "too large"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 200_000, "too large"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 40_000, "too large"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000, "too large"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%s\r\n" % (b" " * 1024) * 70, "too large"),
    ],
    ids=lambda value: ascii(value[:60]) if isinstance(value, bytes) else value,
)
def test_bad_answer_is_refused(raw: Raw, answer: bytes, told: str) -> None:
    assert told in refused(raw, answer)


def test_answer_that_never_ends_is_given_up_at_the_deadline(raw: Raw) -> None:
    """A byte at a time, each in good time by itself."""
    raw.pause_seconds = 0.05
    began = time.monotonic()
    assert "no answer in 0.3 seconds" in refused(raw, HEAD, *([b"X: y\r\n"] * 200), timeout_seconds=0.3)
    assert time.monotonic() - began < 5


def test_other_authority_is_not_believed(raw: Raw, tmp_path: Path) -> None:
    other, _, _ = Authority().write(tmp_path / "other")
    assert "CERTIFICATE_VERIFY_FAILED" in refused(raw, HEAD, ca_file=other)


def test_certificate_for_another_name_is_not_believed(raw: Raw) -> None:
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(exchange(raw.endpoint("localhost"), tls_context(raw.ca_file), timeout_seconds=5))


def test_nobody_there_is_said_so(raw: Raw) -> None:
    tls = tls_context(raw.ca_file)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(Unreachable):
        asyncio.run(exchange(Endpoint(host="127.0.0.1", port=port, target="/"), tls, timeout_seconds=5))


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff"])
def test_file_without_authorities_is_the_operators_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match="certificate authorities"):
        https.tls_context(path)


@pytest.mark.parametrize(
    "url",
    ["http://a/", "https://", "https:///x", "https://u@a/", "https://u:p@a/", "https://a/#x", "https://a/ b",
     "https://a:99999/", "ftp://a/", "//a/", "https://ä/", "https://a/\r\nX: y",
     "https://a..b/", f"https://{'a' * 64}.example/", "https://./"],
)  # fmt: skip
def test_address_that_is_no_plain_https_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(url)


def test_address_is_split_as_it_stands() -> None:
    assert Endpoint.parse("https://[::1]:8443/a/b?c=d") == Endpoint(host="::1", port=8443, target="/a/b?c=d")
    assert Endpoint.parse("https://[::1]:8443").authority == "[::1]:8443"
    assert Endpoint.parse("https://a.example").authority == "a.example"
