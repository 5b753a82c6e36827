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
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from appliance.core.refusals import Reason, Refused
from appliance.gateway.asgi import Scope

MAX_TARGET_BYTES: Final = 4096
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64
SINGLE: Final = frozenset({b"authorization", b"content-type", b"content-length", b"transfer-encoding"})
_NAME_BYTES: Final = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^`|~-"
"""Without the underscore, which becomes one with the dash behind some servers."""
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(rb"/|(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~:@-]+)+")
"""``/`` or ``/segment/segment``: no empty, dot or encoded segments and no trailing slash."""


def check(scope: Scope, allowed_hosts: frozenset[str]) -> None:
    """Raises ``Refused`` for the first rule that the request breaks."""
    if scope["http_version"] not in {"1.0", "1.1"}:
        raise Refused(Reason.REQUEST_MALFORMED, "neither HTTP/1.0 nor HTTP/1.1")
    if scope["method"] == "TRACE":  # it would send the credentials back (RFC 9110 section 9.3.8)
        raise Refused(Reason.METHOD_NOT_ALLOWED, "TRACE")
    _check_sizes(scope)
    _check_headers(scope["headers"])
    _check_host(scope, allowed_hosts)
    if not _PATH.fullmatch(scope["raw_path"]):
        raise Refused(Reason.PATH_INVALID, f"path {scope['raw_path'][:80]!r}")
    if b"access_token=" in unquote_to_bytes(scope["query_string"]):
        raise Refused(Reason.TOKEN_MISPLACED, "a token in the query (RFC 6750 section 2.3 is not supported)")


def _check_sizes(scope: Scope) -> None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise Refused(Reason.URI_TOO_LONG)
    headers = scope["headers"]
    size = sum([len(name) + len(value) + 4 for name, value in headers])
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise Refused(Reason.HEADERS_TOO_LARGE, f"{len(headers)} headers, {size} bytes")


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    names = [name for name, _value in headers]
    for name in names:
        if not name or name.translate(None, _NAME_BYTES):
            raise Refused(Reason.HEADER_INVALID, f"header name {name[:80]!r}")
    for name in SINGLE:
        if (count := names.count(name)) > 1:
            reason = Reason.TOKEN_MISPLACED if name == b"authorization" else Reason.HEADER_INVALID
            raise Refused(reason, f"{name.decode()} occurs {count} times")
    for name, value in headers:
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Refused(Reason.REQUEST_MALFORMED, f"transfer-encoding {value[:80]!r}")
    if b"content-encoding" in names:
        raise Refused(Reason.MEDIA_TYPE_UNSUPPORTED, "a compressed body")


def _check_host(scope: Scope, allowed_hosts: frozenset[str]) -> None:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or int(match["port"] or 0) > 65535:
        raise Refused(Reason.HOST_INVALID, f"{len(hosts)} Host headers" if len(hosts) != 1 else "a malformed Host")
    if hosts[0].lower() not in allowed_hosts:
        raise Refused(Reason.HOST_FOREIGN, f"host {hosts[0][:80]!r}")
