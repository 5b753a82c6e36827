"""An HTTP server that sends whatever a test tells it to, and remembers what it was asked."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Asked], Iterable[bytes]]


class HostileServer:
    """``script`` gives the raw bytes of each answer, piece by piece; one request per connection."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or (lambda _asked: [answer(404)])
        self.asked: list[Asked] = []
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            left = int(headers.get("content-length", "0")) - len(body)
            while left > 0:
                left -= len(connection.recv(65536))
            asked = Asked(method, target, headers)
            self.asked.append(asked)
            for piece in self.script(asked):
                if self.ended.is_set():
                    return
                connection.sendall(piece)

    def stop(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def saw_a_credential(self) -> bool:
        return any("authorization" in asked.headers for asked in self.asked)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A well-formed answer; a header may be replaced, or left out by an empty value."""
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status} Text\r\n{lines}\r\n".encode() + body
