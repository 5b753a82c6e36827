"""The wire guard: refuses hostile HTTP before anything is routed, limited or authenticated.

uvicorn with httptools already refuses broken framing (both lengths, bad chunks, bare line feeds, folded headers);
this adds what it lets through. The raw path must be the canonical one, because a router that forgives spellings and a
policy that does not would disagree (CVE-2026-26205).

Trusts: the server's parsing of the request into a scope.
Promises: one allowed Host, a canonical path, bounded target and headers, no header whose spelling another hop could
    read differently, and no credentials outside the Authorization header.
Not here: bodies (``asgi.read_body``), slow senders (the server's timeouts).
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from appliance.core.refusals import Reason, Refused
from appliance.gateway.asgi import Scope

MAX_TARGET_BYTES: Final = 4096
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64
SINGLE: Final = frozenset({b"authorization", b"content-type", b"content-length", b"transfer-encoding"})
_HEADER_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^`|~-]+")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_SEGMENT = re.compile(rb"[A-Za-z0-9._~:@-]+")


def check(scope: Scope, allowed_hosts: frozenset[str]) -> None:
    """Raises ``Refused`` for the first rule that the request breaks."""
    if scope["http_version"] not in {"1.0", "1.1"}:
        raise Refused(Reason.REQUEST_MALFORMED, "neither HTTP/1.0 nor HTTP/1.1")
    if scope["method"] == "TRACE":  # it would send the credentials back (RFC 9110 section 9.3.8)
        raise Refused(Reason.METHOD_NOT_ALLOWED, "TRACE")
    _check_sizes(scope)
    _check_headers(scope["headers"])
    _check_host(scope, allowed_hosts)
    _check_path(scope["raw_path"])
    if b"access_token=" in unquote_to_bytes(scope["query_string"]):
        raise Refused(Reason.TOKEN_MISPLACED, "a token in the query (RFC 6750 section 2.3 is not supported)")


def _check_sizes(scope: Scope) -> None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise Refused(Reason.URI_TOO_LONG)
    headers = scope["headers"]
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise Refused(Reason.HEADERS_TOO_LARGE, f"{len(headers)} headers, {size} bytes")


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    counts = Counter(name for name, _value in headers)
    for name in counts:
        if not _HEADER_NAME.fullmatch(name):  # an underscore and a dash become one name behind some servers
            raise Refused(Reason.HEADER_INVALID, f"header name {name[:80]!r}")
    for name in SINGLE:
        if counts[name] > 1:
            reason = Reason.TOKEN_MISPLACED if name == b"authorization" else Reason.HEADER_INVALID
            raise Refused(reason, f"{name.decode()} occurs {counts[name]} times")
    for name, value in headers:
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Refused(Reason.REQUEST_MALFORMED, f"transfer-encoding {value[:80]!r}")
    if counts[b"content-encoding"]:
        raise Refused(Reason.MEDIA_TYPE_UNSUPPORTED, "a compressed body")


def _check_host(scope: Scope, allowed_hosts: frozenset[str]) -> None:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or int(match["port"] or 0) > 65535:
        raise Refused(Reason.HOST_INVALID, f"{len(hosts)} Host headers" if len(hosts) != 1 else "a malformed Host")
    if hosts[0].lower() not in allowed_hosts:
        raise Refused(Reason.HOST_FOREIGN, f"host {hosts[0][:80]!r}")


def _check_path(raw_path: bytes) -> None:
    """``/`` or ``/segment/segment``: no empty, dot or encoded segments and no trailing slash."""
    if raw_path == b"/":
        return
    first, *segments = raw_path.split(b"/")
    if first or not segments:
        raise Refused(Reason.PATH_INVALID, "not an absolute path")
    for segment in segments:
        if segment in {b".", b".."} or not _SEGMENT.fullmatch(segment):
            raise Refused(Reason.PATH_INVALID, f"path segment {segment[:80]!r}")
