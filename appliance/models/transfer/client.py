"""One HTTP/1.1 exchange with a hostile server: every wait has an end and every body a bound that is known before.

A connection serves one exchange. Time is limited twice: the head and every small body as a whole, and a blob by its
pace (so many bytes in each window), because a timeout per read lets a server that sends one byte at a time hold us for
days. No proxy, no cookie, no cache, no compression, no redirect: those are decisions, and they are made elsewhere.

Trusts: the certificate authorities of the host, or the one that was pinned.
Promises: whatever the server does ends in a response, or in ``TransferRefused``, within the ``Patience`` given.
Not here: which URL, and with what credential (``registry``).
"""

import http.client
import io
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from time import monotonic
from types import TracebackType
from typing import IO, Any, Final

from appliance.core.values import Value
from appliance.models.transfer.origin import Url
from appliance.models.transfer.refusal import TransferRefused

CHUNK_BYTES: Final = 1024 * 1024

_BLOB_READ_BYTES: Final = (
    256 * 1024
)  # a buffer of this size is made for each read: larger ones cost more than they save

Progress = Callable[[int], None]
"""Called with the number of bytes that came or went since the last call."""


class Pace(Value, frozen=True, kw_only=True):
    """How slow a server may be: ``window_bytes`` of a blob in each window, or all that is left of it."""

    connect_seconds: float = 15
    answer_seconds: float = 30
    window_seconds: float = 30
    window_bytes: int = 64 * 1024


class Upload(Value, frozen=True, kw_only=True):
    """A body that is read from the start of a file."""

    fd: int
    size_bytes: int
    progress: Progress


class Patience:
    """A deadline that bytes can move."""

    def __init__(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._earned = 0

    def left(self) -> float:
        """Seconds until the deadline. Raises ``TransferRefused("too-slow")`` when there are none."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TransferRefused("too-slow", "the server took too long")
        return left

    def restart(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._earned = 0

    def earn(self, n_bytes: int, pace: Pace) -> None:
        self._earned += n_bytes
        if self._earned >= pace.window_bytes:
            self.restart(pace.window_seconds)


class _PatientReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, patience: Patience) -> None:
        self._socket = connected
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._patience.left())
        return self._socket.recv_into(buffer)


class _PatientSocket:
    """The few methods of a socket that ``http.client`` uses. It closes nothing: ``Response`` does."""

    def __init__(self, connected: socket.socket, patience: Patience) -> None:
        self._socket = connected
        self._patience = patience

    def makefile(self, _mode: str) -> IO[bytes]:
        return io.BufferedReader(_PatientReader(self._socket, self._patience), 64 * 1024)

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(self._patience.left())
        self._socket.sendall(data)

    def close(self) -> None:
        pass


class Client:
    """Makes exchanges. ``tls`` None is for plain loopback registries only; ``origin`` lets no other be plain."""

    def __init__(self, tls: ssl.SSLContext | None, pace: Pace | None = None) -> None:
        self._tls = tls
        self.pace: Final = pace or Pace()

    def exchange(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Upload | None = None
    ) -> "Response":
        """Sends one request and reads the head of its answer. Raises ``TransferRefused``. The caller closes it."""
        patience = Patience(self.pace.answer_seconds)
        with wire():
            connected = self._connect(url)
            try:
                connection = http.client.HTTPConnection(url.origin.authority)
                connection.sock = _PatientSocket(connected, patience)
                _send(connection, method, url, headers, body, patience, self.pace)
                patience.restart(self.pace.answer_seconds)
                return Response(connection.getresponse(), connected, patience, self.pace)
            except BaseException:
                connected.close()
                raise

    def _connect(self, url: Url) -> socket.socket:
        host = url.origin.host.strip("[]")
        connected = socket.create_connection((host, url.origin.port), self.pace.connect_seconds)
        if url.origin.scheme == "http":
            return connected
        try:
            if self._tls is None:
                raise TransferRefused("tls-failed", "this client speaks plain HTTP only")
            connected.settimeout(self.pace.answer_seconds)  # of the whole handshake
            return self._tls.wrap_socket(connected, server_hostname=host)
        except BaseException:
            connected.close()
            raise


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    url: Url,
    headers: Mapping[str, str],
    body: bytes | Upload | None,
    patience: Patience,
    pace: Pace,
) -> None:
    connection.putrequest(method, url.target, skip_host=True, skip_accept_encoding=True)
    size = len(body) if isinstance(body, bytes) else body.size_bytes if body else 0
    fixed = {
        "Host": url.origin.authority,
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": "paddock",
    }
    if body is not None or method not in {"GET", "HEAD"}:
        fixed["Content-Length"] = str(size)
    for name, value in {**fixed, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    if isinstance(body, bytes):
        connection.send(body)
    elif body is not None:
        _send_file(connection, body, patience, pace)


def _send_file(connection: http.client.HTTPConnection, body: Upload, patience: Patience, pace: Pace) -> None:
    position = 0
    while position < body.size_bytes:
        piece = os.pread(body.fd, min(CHUNK_BYTES, body.size_bytes - position), position)
        if not piece:
            raise OSError(0, "the file became shorter while it was sent")
        patience.restart(pace.window_seconds)
        connection.send(piece)
        position += len(piece)
        body.progress(len(piece))


class Response(AbstractContextManager["Response"]):
    """The head of an answer, and its body in one of two ways."""

    def __init__(
        self, answer: http.client.HTTPResponse, connected: socket.socket, patience: Patience, pace: Pace
    ) -> None:
        self._answer = answer
        self._socket = connected
        self._patience = patience
        self._pace = pace
        self.status: Final = answer.status

    def close(self) -> None:
        with suppress(OSError):
            self._answer.close()
        self._socket.close()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def header(self, name: str) -> str | None:
        """A field that occurs at most once. Raises ``TransferRefused`` if it does more often, with another value."""
        values = set(self._answer.headers.get_all(name) or [])
        if len(values) > 1:
            raise TransferRefused("header-ambiguous", f"the server sent {name} more than once")
        return str(values.pop()) if values else None

    def headers(self, name: str) -> tuple[str, ...]:
        return tuple(str(value) for value in self._answer.headers.get_all(name) or [])

    def small_body(self, at_most_bytes: int) -> bytes:
        """The whole body. Raises ``TransferRefused`` when it is longer, encoded or cut off."""
        self._check_identity()
        declared = self._declared_bytes()
        if declared is not None and declared > at_most_bytes:
            raise TransferRefused("body-too-large", f"the server announces more than {at_most_bytes} bytes")
        pieces: list[bytes] = []
        total = 0
        with wire():
            while piece := self._answer.read1(min(CHUNK_BYTES, at_most_bytes + 1 - total)):
                pieces.append(piece)
                total += len(piece)
                if total > at_most_bytes:
                    raise TransferRefused("body-too-large", f"the server sent more than {at_most_bytes} bytes")
        if declared is not None and total != declared:
            raise TransferRefused("truncated", "the body ended early")
        return b"".join(pieces)

    def blob(self, n_bytes: int) -> Iterator[bytes]:
        """Exactly ``n_bytes``, which the server must have announced. Raises ``TransferRefused`` at any difference."""
        self._check_identity()
        declared = self._declared_bytes()
        if declared is None:
            raise TransferRefused("size-unknown", "the server does not say how many bytes it sends")
        if declared != n_bytes:
            raise TransferRefused("size-mismatch", "the server announces another number of bytes than the manifest")
        self._patience.restart(self._pace.window_seconds)
        left = n_bytes
        while left:
            with wire():
                piece = self._answer.read1(min(_BLOB_READ_BYTES, left))
            if not piece:
                raise TransferRefused(
                    "truncated", "the connection ended early: run the command again to go on from here"
                )
            left -= len(piece)
            self._patience.earn(len(piece), self._pace)
            yield piece

    def _check_identity(self) -> None:
        if (self.header("Content-Encoding") or "identity").lower() != "identity":
            raise TransferRefused("content-encoded", "the server compressed what must come as it is")

    def _declared_bytes(self) -> int | None:
        text = self.header("Content-Length")
        if self.header("Transfer-Encoding") is not None:
            if text is not None:
                raise TransferRefused("header-ambiguous", "the server gives two framings of one body")
            return None
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise TransferRefused("protocol-violation", "the length of the body is not a number")
        return int(text)


@contextmanager
def wire() -> Iterator[None]:
    """What the network can do to us -> ``TransferRefused``."""
    try:
        yield
    except http.client.HTTPException:
        raise TransferRefused("protocol-violation", "the server does not speak HTTP as it should") from None
    except TimeoutError:
        raise TransferRefused("too-slow", "the server took too long") from None
    except ssl.SSLCertVerificationError as error:
        raise TransferRefused("certificate-invalid", f"the server's certificate: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise TransferRefused("tls-failed", f"TLS failed: {error.reason or 'no reason given'}") from None
    except socket.gaierror as error:
        raise TransferRefused("host-unknown", f"the name does not resolve ({error.strerror})") from None
    except OSError as error:
        raise TransferRefused("connection-failed", os.strerror(error.errno) if error.errno else "it broke") from None


def tls_context(ca_pem: str | None) -> ssl.SSLContext:
    """TLS 1.2 or later, with the host's authorities or only the given one. Raises ``TransferRefused``."""
    if ca_pem is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError):
        raise TransferRefused("ca-invalid", "the certificate authority is not a PEM certificate") from None
    return context
