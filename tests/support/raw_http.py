"""HTTP over a bare socket: exactly these bytes go out, and what comes back is read as it is."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class RawAnswer:
    """``closed``: the server ended the connection after it. ``status`` is 0 where no answer came; the names of headers
    are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    def code(self) -> str:
        """Of an error, in whichever form it comes; empty for one without a body."""
        if not self.body:
            return ""
        document: dict[str, Any] = json.loads(self.body)
        if isinstance(error := document.get("error"), str):  # OAuth's (RFC 6749 section 5.2)
            return error
        if error is not None:
            return str(error["code"])
        return str(document["type"]).removeprefix("urn:paddock:")


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS) as sock:
        yield sock


def exchange(port: int, data: bytes) -> RawAnswer:
    """Sends the bytes and reads one answer, its body's end included."""
    with connected(port) as sock:
        with suppress(ConnectionError):  # refused before it had read them all: the answer is there all the same
            sock.sendall(data)
        return read_answer(sock, without_body=data.startswith(b"HEAD "))


def read_answer(sock: socket.socket, *, without_body: bool = False) -> RawAnswer:
    """One answer. Where it says that the connection closes, waits for the end and notes whether it came."""
    received = _until(sock, b"", lambda data: b"\r\n\r\n" in data)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(headers) == len(lines), "a header occurs twice"
    if "content-length" in headers and not without_body:
        length = int(headers["content-length"])
        body = _until(sock, body, lambda data: len(data) >= length)
    elif headers.get("transfer-encoding") == "chunked":
        body = _until(sock, body, lambda data: data.endswith(b"0\r\n\r\n"))
    closed = headers.get("connection") == "close" and ends(sock)
    return RawAnswer(int(first.split(" ")[1]) if first.startswith("HTTP/1.1 ") else 0, headers, body, closed)


def ends(sock: socket.socket) -> bool:
    """Waits. Whether the connection ends with nothing more on it; raises ``TimeoutError`` when it stays."""
    try:
        return sock.recv(65536) == b""
    except ConnectionError:
        return True


def _until(sock: socket.socket, data: bytes, done: Any) -> bytes:
    while not done(data):
        try:
            piece = sock.recv(65536)
        except ConnectionError:
            break
        if not piece:
            break
        data += piece
    return data
