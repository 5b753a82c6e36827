"""One HTTPS exchange with an identity provider: one deadline for all of it, and a bound on every byte.

No redirect, no proxy, no cookie, no cache, no compression, no connection that is used twice.

Trusts: the pinned certificate authority of the TLS context.
Promises: ``exchange`` returns the whole body of a 200 that says it is JSON, of at most ``MAX_BODY_BYTES``, or raises
    ``Unreachable``, within its time; ``converse`` a whole answer of any status.
Not here: what the bytes mean (``keys``, ``introspection``); which hosts this process can reach at all (``assemble``).
"""

import asyncio
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httptools

from appliance.core.refusals import Misconfigured
from appliance.core.values import Value

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = MAX_HEAD_BYTES + 2 * MAX_BODY_BYTES
"""With the framing of chunks and what comes after them, of which the parser keeps as much as it is sent."""
NEXT_ADDRESS_SECONDS: Final = 0.25
"""RFC 8305 section 5: one address that does not answer must not cost the whole deadline."""

_READ_BYTES: Final = 4096
_JSON: Final = frozenset({b"application/json", b"application/jwk-set+json"})


class Unreachable(Exception):
    """There was no answer, or none that can be used. The text is ours, for the operator."""


class Endpoint(Value, frozen=True, kw_only=True):
    """``host`` without brackets; ``target`` is path and query."""

    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Raises ``ValueError`` for anything but an absolute https URL without user and fragment."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.fragment or not url.isascii():
            raise ValueError("must be an absolute https URL without user and fragment")
        if any(character <= " " or character == "\x7f" for character in url):
            raise ValueError("must not have spaces or controls")
        if not all(0 < len(label) < 64 for label in parts.hostname.removesuffix(".").split(".")):  # RFC 1035, 2.3.4
            raise ValueError("must have a host with labels of 1 to 63 characters")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host=parts.hostname, port=parts.port or 443, target=target)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def tls_context(ca_file: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, names checked, with the authorities of this file and no other. Raises ``Misconfigured``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Misconfigured(f"{ca_file} is not a file of certificate authorities: {error}") from error
    return context


class Reply(Value, frozen=True, kw_only=True):
    """A whole answer. ``is_json``: it says so."""

    status: int
    body: bytes
    is_json: bool


async def exchange(
    endpoint: Endpoint, tls: ssl.SSLContext, *, timeout_seconds: float, form: bytes | None = None, credential: str = ""
) -> bytes:
    """GET, or POST of a form. ``credential`` is the whole value of ``Authorization``. Raises ``Unreachable`` unless the
    answer is a plain 200 with JSON."""
    reply = await converse(endpoint, tls, timeout_seconds=timeout_seconds, form=form, credential=credential)
    if reply.status != 200:  # a redirect would lead where nobody configured
        raise Unreachable(f"status {reply.status}")
    if not reply.is_json:
        raise Unreachable("the answer is not JSON")
    return reply.body


async def converse(
    endpoint: Endpoint, tls: ssl.SSLContext, *, timeout_seconds: float, form: bytes | None = None, credential: str = ""
) -> Reply:
    """As ``exchange``, for whoever can use more answers than a 200: errors of OAuth are bodies of a 400."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _exchange(endpoint, tls, _request(endpoint, form, credential))
    except TimeoutError:
        raise Unreachable(f"{endpoint.authority}: no answer in {timeout_seconds:g} seconds") from None
    except ssl.SSLError as error:
        raise Unreachable(f"{endpoint.authority}: TLS: {error.reason or 'failed'}") from None
    except OSError as error:
        raise Unreachable(f"{endpoint.authority}: {error.strerror or type(error).__name__}") from None


def _request(endpoint: Endpoint, form: bytes | None, credential: str) -> bytes:
    fields = {"Host": endpoint.authority, "Accept": "application/json", "Accept-Encoding": "identity"}
    fields |= {"User-Agent": "paddock", "Connection": "close"}
    if form is not None:
        fields |= {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(form))}
    if credential:
        fields["Authorization"] = credential
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    method = "GET" if form is None else "POST"
    return f"{method} {endpoint.target} HTTP/1.1\r\n{lines}\r\n".encode("ascii") + (form or b"")


async def _exchange(endpoint: Endpoint, tls: ssl.SSLContext, request: bytes) -> Reply:
    reader, writer = await asyncio.open_connection(
        endpoint.host, endpoint.port, ssl=tls, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS
    )
    try:
        writer.write(request)
        await writer.drain()
        answer = _Answer()
        while not answer.complete:
            data = await reader.read(_READ_BYTES)
            if not data:
                answer.ended()
                break
            answer.feed(data)
        return answer.reply()
    finally:
        writer.transport.abort()  # whatever else the peer would say is not waited for


class _Answer:
    """The callbacks of ``httptools.HttpResponseParser``, which refuses broken framing by itself."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, list[bytes]] = {}
        self._head_bytes = 0
        self._bytes = 0
        self._begun = 0
        self._in_body = False
        self._body = bytearray()
        self.complete = False

    def on_message_begin(self) -> None:
        self._begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.setdefault(name.lower(), []).append(value)

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.complete = True

    def feed(self, data: bytes) -> None:
        """Raises ``Unreachable``."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Unreachable("the answer asks for another protocol") from None
        except httptools.HttpParserError:
            raise Unreachable("the answer is not HTTP") from None
        if self._begun > 1:  # also one that announces another, which nobody asked for
            raise Unreachable("more than one answer")
        self._bytes += len(data)
        self._head_bytes += 0 if self._in_body else len(data)
        if self._head_bytes > MAX_HEAD_BYTES or len(self._body) > MAX_BODY_BYTES or self._bytes > MAX_ANSWER_BYTES:
            raise Unreachable("the answer is too large")

    def ended(self) -> None:
        """The peer closed. Without a length that would be a whole body, and a cut one could not be told from it."""
        raise Unreachable("the answer ended early, or does not say how long it is")

    def reply(self) -> Reply:
        """Raises ``Unreachable`` for one that would have to be unpacked."""
        if b"content-encoding" in self._headers:
            raise Unreachable("the answer is compressed")
        kinds = self._headers.get(b"content-type", [])
        is_json = len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() in _JSON
        return Reply(status=self._parser.get_status_code(), body=bytes(self._body), is_json=is_json)
