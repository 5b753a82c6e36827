# ruff: noqa: E501 - one row of a table is one line
"""The table of hostile input: what is sent to the real server byte for byte, and what must come back.

The numbers are those of the project's list of hostile input. A row that one exchange of bytes can show stands here; one
that takes time, company or a spoiled host is a function of ``hostile_scripts``. What of a number cannot be shown yet,
because the part that it is about is not there, stands in ``NOT_BUILT`` and nowhere else.

The server is known as ``PUBLIC_URL``, issues tokens itself under that name, and believes one foreign issuer, whose
tokens name audiences in a list and need the scope ``SCOPE``. It listens at three places: for anybody, for a proxy that it trusts, and with TLS.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from tests.support.hostile_tokens import MISSING, Forge, base64url, in_seconds
from tests.support.identity_provider import new_key, proof_for, public_jwk, thumbprint

NOT_BUILT: Final[dict[int, str]] = {
    46: "a limiter's store and a policy engine in processes of their own",
    49: "export as CSV",
    51: "remote engines",
}
"""Number -> what of it. Whoever builds one of these empties its line and adds its rows."""

ELSEWHERE: Final[dict[int, str]] = {
    53: "test_reverse_proxies.py::test_no_token_waits_for_the_next_one",
}
"""What takes another server in between."""

ALL_NUMBERS: Final = frozenset(range(1, 56))

Told = Literal["line", "record", "closed", "nothing"]
"""Where a row leaves its trace, and exactly one there: a line of the gateway's log while nobody is identified, a record
of a known principal's refusal, or the closed record of one that the runner refused. ``nothing`` is an answer, not a
refusal."""

PATH: Final = b"/v1/chat/completions"
GOOD: Final[dict[str, Any]] = {"model": "chain", "messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True)
class Row:
    """One exchange. In ``data``, ``@HOST@`` and ``@TOKEN@`` stand for the server's and a good token's; ``token`` makes
    another, and ``proof`` what stands for ``@PROOF@``, for a token. ``@CLIENT@`` are the credentials of a registered
    client, for HTTP Basic. ``code`` is what the answer says; where that is a word of OAuth's, ``reason`` is ours, which
    the line has. ``headers`` are what the answer's must begin with,
    by name in lower case, None for one that must not be there. ``closes``: the server ends the connection after its
    answer. ``stripped`` are the headers that it says, in a line before any other, to have taken away. ``by_proxy``: it
    comes where a trusted proxy does."""

    number: int
    name: str
    data: bytes
    status: int
    code: str
    told: Told
    token: Callable[[Forge], str] | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    param: str | None = None
    closes: bool = False
    proof: Callable[[str], str] | None = None
    stripped: str = ""
    by_proxy: bool = False
    reason: str = ""


# --- how bytes are written ------------------------------------------------------------------------------------------


def head(line: bytes, *fields: bytes, host: bytes | None = b"Host: @HOST@") -> bytes:
    return b"\r\n".join([line, *([] if host is None else [host]), *fields, b"", b""])


def get(target: bytes, *fields: bytes, bearer: bool = False, method: bytes = b"GET") -> bytes:
    return head(b"%s %s HTTP/1.1" % (method, target), *([b"Authorization: Bearer @TOKEN@"] if bearer else []), *fields)


def post(body: bytes, *fields: bytes, media_type: bytes = b"application/json", path: bytes = PATH) -> bytes:
    typed = [b"Content-Type: " + media_type] if media_type else []
    return get(path, *typed, b"Content-Length: %d" % len(body), *fields, bearer=True, method=b"POST") + body


def asking(**fields: Any) -> bytes:
    return post(json.dumps({**GOOD, **fields}).encode())


FORM: Final = b"application/x-www-form-urlencoded"


def ask_token(form: bytes, *fields: bytes, path: bytes = b"/oauth/token", client: bytes = b"@CLIENT@") -> bytes:
    """A request of an OAuth client; ``client`` are its credentials for HTTP Basic, if any."""
    basic = [b"Authorization: Basic " + client] if client else []
    length = b"Content-Length: %d" % len(form)
    return get(path, b"Content-Type: " + FORM, length, *basic, *fields, method=b"POST") + form


PUBLIC_URL: Final = "https://llm.example"
SCOPE: Final = "llm"
POINTER: Final = f'resource_metadata="{PUBLIC_URL}/.well-known/oauth-protected-resource"'
KEY: Final = new_key("ES256")
CERTIFICATE: Final = b"0\x03\x02\x01\x00"
"""Nothing here reads it: its bytes are what a token is bound to."""
PROVEN: Final = b"DPoP: @PROOF@"


MISPLACED: Final = {"www-authenticate": f'Bearer realm="paddock", error="invalid_request", {POINTER}'}
NO_SCOPE: Final = {
    "www-authenticate": f'Bearer realm="paddock", error="insufficient_scope", {POINTER}, scope="{SCOPE}"'
}
INVALID: Final = {"www-authenticate": f'Bearer realm="paddock", error="invalid_token", {POINTER}'}


def bound_to_key(forge: Forge) -> str:
    return forge.with_claims(cnf={"jkt": thumbprint(KEY)})


def bound_to_certificate(forge: Forge) -> str:
    return forge.with_claims(cnf={"x5t#S256": base64url(sha256(CERTIFICATE).digest())})


def proof(token: str, **changes: Any) -> str:
    return proof_for(KEY, token, **({"url": f"{PUBLIC_URL}/v1/models"} | changes))


def client_cert(certificate: bytes) -> bytes:
    """RFC 9440."""
    return b"Client-Cert: :%s:" % b64encode(certificate)


# --- rows -----------------------------------------------------------------------------------------------------------


def refused(number: int, name: str, data: bytes, status: int, code: str, **more: Any) -> Row:
    """By the wire or the guard, before anybody is identified."""
    return Row(number, name, data, status, code, "line", closes=True, **more)


def denied(number: int, name: str, token: Callable[[Forge], str], data: bytes | None = None, **more: Any) -> Row:
    """A token that is none."""
    return Row(
        number, name, data or get(b"/v1/models", bearer=True), 401, "token-invalid", "line", token,
        INVALID, closes=True, **more,
    )  # fmt: skip


def unproven(name: str, proof: Callable[[str], str], *fields: bytes, scheme: bytes = b"DPoP") -> Row:
    """A token that is bound to ``KEY``, sent by one who does not show that he has it."""
    return Row(
        23, name, head(b"GET /v1/models HTTP/1.1", b"Authorization: %s @TOKEN@" % scheme, *fields), 401, "proof-invalid", "line",
        bound_to_key, {"www-authenticate": 'DPoP realm="paddock", error="invalid_dpop_proof", algs="'}, closes=True, proof=proof,
    )  # fmt: skip


def bad(number: int, name: str, data: bytes, code: str = "field-invalid", status: int = 400, **more: Any) -> Row:
    """By what a known principal asked."""
    return Row(number, name, data, status, code, "record", **more)


def raw(number: int, name: str, body: bytes) -> Row:
    return bad(number, name, post(body), "json-invalid")


def field_of(number: int, name: str, param: str | None = None, **fields: Any) -> Row:
    return bad(number, name, asking(**fields), param=param or next(iter(fields)))


def no_token(number: int, name: str, data: bytes, error: str, reason: str, status: int = 400, **more: Any) -> Row:
    """By the authorization server, or on the way to it."""
    return Row(number, name, data, status, error, "line", reason=reason, **more)


def no_form(name: str, data: bytes, status: int, reason: str = "oauth-request-invalid", **more: Any) -> Row:
    """Before the authorization server is asked."""
    return no_token(25, name, data, "invalid_request", reason, status, closes=True, **more)


def no_client(name: str, data: bytes) -> Row:
    return no_token(26, name, data, "invalid_client", "client-invalid", 401, headers=NO_CLIENT)


def unfit(name: str, **fields: Any) -> Row:
    """By the runner, which alone knows grammars."""
    return Row(41, name, asking(**fields), 400, "field-invalid", "closed")


LENGTH = b"Content-Length: 2"
CHUNKED = b"Transfer-Encoding: chunked"
NO_CLIENT = {"www-authenticate": 'Basic realm="paddock"'}
NO_TOKEN = {"www-authenticate": f'Bearer realm="paddock", {POINTER}, DPoP realm="paddock", algs="'}

WIRE = [
    refused(1, "both framings", get(b"/", LENGTH, CHUNKED, method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    refused(1, "both framings, the other way round", get(b"/", CHUNKED, LENGTH, method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    refused(1, "two lengths", get(b"/", LENGTH, b"Content-Length: 3", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "one length twice", get(b"/", LENGTH, LENGTH, method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "list of lengths", get(b"/", b"Content-Length: 2, 2", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "signed length", get(b"/", b"Content-Length: +2", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "negative length", get(b"/", b"Content-Length: -2", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "hexadecimal length", get(b"/", b"Content-Length: 0x2", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "length beyond 64 bits", get(b"/", b"Content-Length: 18446744073709551618", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "empty length", get(b"/", b"Content-Length: ", method=b"POST") + b"xx", 400, "request-malformed"),
    refused(1, "unknown coding", get(b"/", b"Transfer-Encoding: xchunked", method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    refused(1, "chunked, but not last", get(b"/", b"Transfer-Encoding: chunked, gzip", method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    refused(1, "two codings", get(b"/", CHUNKED, b"Transfer-Encoding: identity", method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    refused(1, "trailer", get(b"/healthz", CHUNKED, method=b"POST") + b"0\r\nAuthorization: x\r\n\r\n", 400, "header-invalid"),
    refused(1, "bare line feeds", b"GET / HTTP/1.1\nHost: @HOST@\n\n", 400, "request-malformed"),
    refused(1, "one bare line feed", b"GET / HTTP/1.1\r\nHost: @HOST@\nX: 1\r\n\r\n", 400, "request-malformed"),
    refused(1, "folded header", get(b"/", b"X: a\r\n b"), 400, "request-malformed"),
    refused(1, "NUL in a header", get(b"/", b"X: a\x00b"), 400, "request-malformed"),
    refused(1, "CR in a header", get(b"/", b"X: a\rb"), 400, "request-malformed"),
    refused(1, "NUL in a header's name", get(b"/", b"X\x00: a"), 400, "request-malformed"),
    refused(1, "space before the colon", head(b"GET / HTTP/1.1", host=b"Host : @HOST@"), 400, "request-malformed"),
    refused(1, "no colon", get(b"/", b"X"), 400, "request-malformed"),
    refused(1, "empty name", get(b"/", b": x"), 400, "request-malformed"),
    refused(1, "space before the first header", b"GET / HTTP/1.1\r\n Host: @HOST@\r\n\r\n", 400, "request-malformed"),
    refused(2, "no host", head(b"GET / HTTP/1.1", host=None), 400, "host-invalid"),
    refused(2, "empty host", head(b"GET / HTTP/1.1", host=b"Host: "), 400, "host-invalid"),
    refused(2, "two hosts", get(b"/", b"Host: @HOST@"), 400, "host-invalid"),
    refused(2, "another's host", head(b"GET / HTTP/1.1", host=b"Host: evil.example"), 421, "host-foreign"),
    refused(2, "host without our port", head(b"GET / HTTP/1.1", host=b"Host: 127.0.0.1"), 421, "host-foreign"),
    refused(2, "host of IPv6", head(b"GET / HTTP/1.1", host=b"Host: [::1]:1"), 421, "host-foreign"),
    *[
        refused(2, f"host with {mark.decode()}", head(b"GET / HTTP/1.1", host=b"Host: @HOST@" + mark + b"x"), 400, "host-invalid")
        for mark in (b"/", b"#", b"?", b"@", b"\\", b",", b" ")
    ],
    refused(2, "host with a user", head(b"GET / HTTP/1.1", host=b"Host: a@@HOST@"), 400, "host-invalid"),
    refused(2, "port beyond 65535", head(b"GET / HTTP/1.1", host=b"Host: a:99999"), 400, "host-invalid"),
    refused(2, "port that is no number", head(b"GET / HTTP/1.1", host=b"Host: a:80x"), 400, "host-invalid"),
    refused(3, "HTTP/0.9", b"GET /healthz\r\n\r\n", 400, "request-malformed"),
    refused(3, "HTTP/1.0 without a host", head(b"GET /healthz HTTP/1.0", host=None), 400, "host-invalid"),
    refused(3, "HTTP/2.0", head(b"GET /healthz HTTP/2.0"), 400, "request-malformed"),
    refused(3, "HTTP/9.9", head(b"GET /healthz HTTP/9.9"), 400, "request-malformed"),
    refused(3, "preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request-malformed"),
    refused(3, "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400, "request-malformed"),
    Row(4, "h2c", get(b"/healthz", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), 200, "", "nothing", headers={"upgrade": None}),
    Row(4, "h2c on a route with a token", get(b"/v1/models", b"Connection: Upgrade", b"Upgrade: h2c", bearer=True), 200, "", "nothing", headers={"upgrade": None}),
    Row(4, "websocket", get(b"/healthz", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 200, "", "nothing", headers={"upgrade": None}),
    refused(5, "100 fields", get(b"/", *[b"X: 1"] * 100), 431, "headers-too-large"),
    refused(5, "65 fields", get(b"/healthz", *[b"X: 1"] * 64), 431, "headers-too-large"),
    Row(5, "64 fields", get(b"/healthz", *[b"X: 1"] * 63), 200, "", "nothing"),
    refused(5, "17 kB in one field", get(b"/", b"X: " + b"a" * 17_000), 431, "headers-too-large"),
    refused(5, "17 kB in many fields", get(b"/", *[b"X: " + b"a" * 1000] * 17), 431, "headers-too-large"),
    refused(5, "70 kB", get(b"/", b"X: " + b"a" * 70_000), 431, "headers-too-large"),
    refused(6, "path of 5 kB", get(b"/" + b"a" * 5000), 414, "uri-too-long"),
    refused(6, "query of 5 kB", get(b"/healthz?" + b"a" * 5000), 414, "uri-too-long"),
    *[
        refused(7, f"path {path.decode('latin-1')!r}", get(path), 400, "path-invalid")
        for path in (
            b"//v1/models", b"/v1//models", b"/v1/models/", b"/v1/./models", b"/v1/../healthz", b"/./healthz", b"/..",
            b"/v1%2fmodels", b"/v1%2Fmodels", b"/v1%5cmodels", b"/v1/models%00", b"/%2e%2e/healthz", b"/%68ealthz",
            b"/v1/models%23", b"/v1/models%3f", b"/v1/models%", b"/v1/models;x=1", b"/v1/models\\x", b"/healthz#x",
            b"http://@HOST@/healthz", b"http://evil.example/healthz", b"//evil.example/healthz",
        )
    ],
    refused(7, "path with a byte above 127", get(b"/v1/mod\xe9ls"), 400, "request-malformed"),
    refused(7, "star", head(b"OPTIONS * HTTP/1.1"), 400, "path-invalid"),
    refused(7, "authority", head(b"CONNECT evil.example:443 HTTP/1.1"), 400, "path-invalid"),
    refused(8, "unknown path, no token", get(b"/admin"), 401, "token-missing", headers=NO_TOKEN),
    refused(8, "wrong method, no token", get(b"/v1/models", method=b"DELETE"), 401, "token-missing", headers=NO_TOKEN),
    bad(8, "unknown path", get(b"/admin", bearer=True), "not-found", 404),
    bad(8, "unknown path below a known one", get(b"/v1/models/a/b", bearer=True), "not-found", 404),
    bad(8, "path of another case", get(b"/V1/models", bearer=True), "not-found", 404),
    bad(8, "wrong method", get(PATH, bearer=True), "method-not-allowed", 405, headers={"allow": "POST"}),
    bad(8, "other wrong method", get(b"/v1/models", bearer=True, method=b"DELETE"), "method-not-allowed", 405, headers={"allow": "GET"}),
    bad(8, "unknown method of HTTP", get(b"/v1/models", bearer=True, method=b"PROPFIND"), "method-not-allowed", 405, headers={"allow": "GET"}),
    refused(8, "method that is none", head(b"FROBNICATE / HTTP/1.1"), 400, "request-malformed"),
    refused(8, "method in small letters", head(b"get /healthz HTTP/1.1"), 400, "request-malformed"),
    refused(9, "underscore", get(b"/healthz", b"X_Forwarded_For: 1"), 400, "header-invalid"),
    refused(9, "underscore beside the dash", get(b"/healthz", b"X-Forwarded-For: 1", b"X_Forwarded_For: 2"), 400, "header-invalid"),
    refused(9, "underscore in a name that is ours", get(b"/v1/models", b"Content_Length: 1", bearer=True), 400, "header-invalid"),
    *[
        Row(9, f"{name} of a stranger", get(b"/v1/models", name.encode() + b": root", bearer=True), 200, "", "nothing", stripped=name.lower())
        for name in (
            "X-User", "X-User-Id", "X-User-Groups", "X-Tenant", "X-Tenant-Id", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-User",
            "X-Forwarded-Uri", "Forwarded", "X-Real-IP", "X-Original-URL", "Client-Cert", "X-SSL-Client-Cert", "Remote-User", "X-Auth-Request-User",
            "X-OpenWebUI-User-Id", "X-OpenWebUI-User-Name", "X-OpenWebUI-User-Email", "X-OpenWebUI-User-Role",
        )
    ],
    Row(9, "all at once", get(b"/v1/models", b"X-User: root", b"X-Forwarded-For: \xff", b"x-forwarded-for: 1", bearer=True), 200, "", "nothing", stripped="x-user, x-forwarded-for, x-forwarded-for"),
    Row(9, "a name of 15 kB", get(b"/v1/models", b"X-User-" + b"a" * 15_000 + b": 1", bearer=True), 200, "", "nothing", stripped="x-user-" + "a" * 15_000),
    refused(9, "of a stranger without a token", get(b"/v1/models", b"X-Forwarded-User: root"), 401, "token-missing", headers=NO_TOKEN, stripped="x-forwarded-user"),
    refused(9, "of a stranger, for the public path", get(b"/healthz", b"X-User: a", method=b"POST"), 401, "token-missing", headers=NO_TOKEN, stripped="x-user"),
    *[
        bad(9, f"a user's {name} from one who may not", get(b"/v1/models", *lines, bearer=True), "delegation-refused", 403, headers={"www-authenticate": None})
        for name, lines in {
            "signed name": (b"X-OpenWebUI-User-Jwt: a.b.c",),
            "token": (b"X-Paddock-User-Token: @TOKEN@",),
            "token, twice": (b"X-Paddock-User-Token: @TOKEN@",) * 2,
            "token, empty": (b"x-paddock-user-token:",),
        }.items()
    ],
    refused(9, "a user's token and no other", get(b"/v1/models", b"X-Paddock-User-Token: @TOKEN@"), 401, "token-missing", headers=NO_TOKEN),
    Row(9, "user named by a trusted proxy", get(b"/v1/models", b"X-User: root", b"X-Tenant: x", bearer=True), 200, "", "nothing", by_proxy=True),
    refused(9, "user named by a trusted proxy, and no token", get(b"/v1/models", b"X-User: root"), 401, "token-missing", headers=NO_TOKEN, by_proxy=True),
    *[
        refused(9, f"trusted proxy that says {line.decode('latin-1')!r}"[:60], get(b"/v1/models", line, bearer=True), 400, "header-invalid", by_proxy=True)
        for line in (
            b"X-Forwarded-For: evil", b"X-Forwarded-For: 203.0.113.9:80", b"X-Forwarded-For: ,", b"X-Forwarded-For: 203.0.113.9, 0x7f.1",
            b"X-Forwarded-For: fe80::1%eth0", b"X-Forwarded-Proto: ftp", b"X-Forwarded-Proto: https, http", b"Client-Cert: MAMCAQA=", b"Client-Cert: :MAMCAQA:",
        )
    ],
]  # fmt: skip

TOKENS = [
    refused(10, "two headers", get(b"/v1/models", b"Authorization: Bearer a", b"Authorization: Bearer b"), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "a good one and another", get(b"/v1/models", b"Authorization: Bearer b", bearer=True), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "two in one header", get(b"/v1/models", b"Authorization: Bearer a, Bearer b"), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "a good one and another in one header", get(b"/v1/models", b"Authorization: Bearer @TOKEN@,Basic b"), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "in the query", get(b"/v1/models?access_token=@TOKEN@"), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "in the query and the header", get(b"/v1/models?access_token=@TOKEN@", bearer=True), 400, "token-misplaced", headers=MISPLACED),
    refused(10, "in the query, escaped", get(b"/v1/models?a=1&access%5Ftoken=@TOKEN@", bearer=True), 400, "token-misplaced", headers=MISPLACED),
    bad(10, "in the body", asking(access_token="x"), "field-unknown"),
    bad(10, "in a form", post(b"access_token=@TOKEN@", media_type=b"application/x-www-form-urlencoded"), "media-type-unsupported", 415),
    refused(11, "none", get(b"/v1/models"), 401, "token-missing", headers=NO_TOKEN),
    refused(11, "none, in another header", get(b"/v1/models", b"X-Api-Key: @TOKEN@"), 401, "token-missing", headers=NO_TOKEN),
    refused(11, "none, as a cookie", get(b"/v1/models", b"Cookie: access_token=@TOKEN@"), 401, "token-missing", headers=NO_TOKEN),
    refused(11, "none, for the proxy", get(b"/v1/models", b"Proxy-Authorization: Bearer @TOKEN@"), 401, "token-missing", headers=NO_TOKEN),
    refused(11, "other scheme", get(b"/v1/models", b"Authorization: Basic YTpi"), 401, "token-invalid", headers=INVALID),
    denied(12, "8 kB", lambda forge: forge.with_claims(groups=["a" * 255] * 30)),
    denied(12, "empty", lambda _: ""),
    denied(12, "one segment", lambda _: "abc"),
    denied(12, "two segments", lambda forge: forge.token().rpartition(".")[0]),
    denied(12, "four segments", lambda forge: forge.token() + ".x"),
    denied(12, "five segments, as of JWE", lambda forge: forge.token() + ".x.y"),
    denied(12, "empty signature", lambda forge: forge.token().rpartition(".")[0] + "."),
    denied(12, "padded", lambda forge: forge.token() + "="),
    denied(12, "space within", lambda forge: forge.token().replace(".", ". ", 1)),
    denied(12, "two spaces before", lambda forge: " " + forge.token()),
    denied(12, "plain base64", lambda forge: "+" + forge.token()[1:]),
    denied(12, "plain base64, in the signature", lambda forge: forge.token()[:-1] + "/"),
    denied(12, "not UTF-8 inside", lambda forge: forge.token(b'{"alg":"\xff"}')),
    denied(13, "none", lambda forge: forge.with_header(alg="none")),
    denied(13, "none, without a signature", lambda forge: base64url(forge.header(alg="none")) + "." + base64url(forge.claims()) + "."),
    denied(13, "None", lambda forge: forge.with_header(alg="None")),
    denied(13, "HS256 with the public key", lambda forge: forge.with_hmac()),
    denied(13, "RS256", lambda forge: forge.with_header(alg="RS256")),
    denied(13, "ES384, not the key's own", lambda forge: forge.with_header(alg="ES384")),
    denied(13, "a list", lambda forge: forge.with_header(alg=["ES256"])),
    denied(13, "missing", lambda forge: forge.with_header(alg=MISSING)),
    denied(13, "another's key", lambda forge: forge.token(stranger=True)),
    *[
        denied(14, name, lambda forge, name=name, value=value: forge.with_header(**{name: value}))
        for name, value in {
            "jwk": {}, "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x", "x5c": [], "crit": ["exp"], "b64": False, "zip": "DEF",
        }.items()
    ],
    denied(14, "the key itself", lambda forge: forge.with_header(jwk=forge.jwk)),
    denied(15, "JWT", lambda forge: forge.with_header(typ="JWT")),
    denied(15, "missing", lambda forge: forge.with_header(typ=MISSING)),
    denied(15, "a list", lambda forge: forge.with_header(typ=["at+jwt"])),
    denied(15, "of a DPoP proof", lambda forge: forge.with_header(typ="dpop+jwt")),
    denied(16, "missing", lambda forge: forge.with_header(kid=MISSING)),
    denied(16, "a number", lambda forge: forge.with_header(kid=1)),
    denied(16, "a list", lambda forge: forge.with_header(kid=[forge.jwk["kid"]])),
    denied(16, "129 characters", lambda forge: forge.with_header(kid="k" * 129)),
    denied(16, "a path", lambda forge: forge.with_header(kid="../../../../dev/null")),
    denied(16, "quotes", lambda forge: forge.with_header(kid="' OR '1'='1")),
    denied(16, "NUL", lambda forge: forge.with_header(kid=forge.jwk["kid"] + "\x00")),
    denied(16, "unknown", lambda forge: forge.with_header(kid="another")),
    denied(17, "in the header", lambda forge: forge.token(forge.header()[:-1] + b',"alg":"ES256"}')),
    denied(17, "in the header, escaped", lambda forge: forge.token(forge.header()[:-1] + b',"\\u0061lg":"ES256"}')),
    denied(17, "in the claims", lambda forge: forge.token(None, forge.claims()[:-1] + b',"sub":"root"}')),
    denied(17, "in the claims, escaped", lambda forge: forge.token(None, forge.claims()[:-1] + b',"\\u0073ub":"root"}')),
    denied(17, "deep in the claims", lambda forge: forge.token(None, forge.claims()[:-1] + b',"x":{"a":1,"a":2}}')),
    denied(18, "exp missing", lambda forge: forge.with_claims(exp=MISSING)),
    denied(18, "exp as text", lambda forge: forge.with_claims(exp=str(in_seconds(60)))),
    denied(18, "exp NaN", lambda forge: forge.with_claims(exp=float("nan"))),
    denied(18, "exp infinite", lambda forge: forge.with_claims(exp=float("inf"))),
    denied(18, "exp negative", lambda forge: forge.with_claims(exp=-1)),
    denied(18, "exp true", lambda forge: forge.with_claims(exp=True)),
    denied(18, "exp past", lambda forge: forge.with_claims(iat=in_seconds(-600), exp=in_seconds(-60))),
    denied(18, "exp more than a day ahead", lambda forge: forge.with_claims(exp=in_seconds(90_000))),
    denied(18, "exp at the end of time", lambda forge: forge.with_claims(exp=2**63 - 1)),
    denied(18, "exp beyond 64 bits", lambda forge: forge.with_claims(exp=2**70)),
    denied(18, "iat in the future", lambda forge: forge.with_claims(iat=in_seconds(300))),
    denied(18, "iat missing", lambda forge: forge.with_claims(iat=MISSING)),
    denied(18, "nbf in the future", lambda forge: forge.with_claims(nbf=in_seconds(300))),
    denied(18, "nbf as text", lambda forge: forge.with_claims(nbf="0")),
    denied(19, "wrong issuer", lambda forge: forge.with_claims(iss="https://evil.example")),
    denied(19, "issuer with a slash more", lambda forge: forge.with_claims(iss=PUBLIC_URL + "/")),
    denied(19, "list of issuers", lambda forge: forge.with_claims(iss=[PUBLIC_URL])),
    denied(19, "no issuer", lambda forge: forge.with_claims(iss=MISSING)),
    denied(19, "wrong audience", lambda forge: forge.with_claims(aud="another")),
    denied(19, "list of audiences", lambda forge: forge.with_claims(aud=["paddock", "another"])),
    denied(19, "no audience", lambda forge: forge.with_claims(aud=MISSING)),
    denied(20, "ID token", lambda forge: forge.token(forge.header(typ="JWT"), forge.claims(nonce="x", at_hash="x"))),
    denied(20, "ID token that says it is not", lambda forge: forge.with_claims(client_id=MISSING, azp="tests")),
    denied(20, "refresh token", lambda _: "8xLOxBtZp8"),
    denied(20, "logout token", lambda forge: forge.with_header(typ="logout+jwt")),
    denied(16, "unknown, of a foreign issuer", lambda forge: forge.foreign.token(scope=SCOPE, key_id="unknown", key=KEY)),
    Row(19, "list of audiences, where it is configured", get(b"/v1/models", bearer=True), 200, "", "nothing", lambda forge: forge.foreign.token(scope=SCOPE, aud=["mail", "llm"])),
    *[
        denied(19, f"list of audiences, where it is configured, {name}", lambda forge, said=said: forge.foreign.token(scope=SCOPE, aud=said))
        for name, said in {
            "without ours": ["mail"], "empty": [], "of 65": ["llm"] * 65, "with a number": ["llm", 1], "in a list": [["llm"]], "with ours in another case": ["LLM"],
        }.items()
    ],
    denied(19, "our own audience, of a foreign issuer", lambda forge: forge.foreign.token(scope=SCOPE, aud="paddock")),
    denied(19, "our own name, signed by a foreign issuer", lambda forge: forge.foreign.token(scope=SCOPE, iss=PUBLIC_URL, aud="paddock")),
    denied(19, "a foreign issuer's name, signed by us", lambda forge: forge.with_claims(iss=forge.foreign.issuer, aud="llm", scope=SCOPE)),
    *[
        refused(22, name, get(b"/v1/models", bearer=True), 403, "scope-missing", token=lambda forge, scope=scope: forge.foreign.token(scope=scope), headers=NO_SCOPE)
        for name, scope in {"no scope": None, "another scope": "profile", "a longer scope": "llms", "scopes with a comma": "profile,llm", "a scope of another case": "LLM"}.items()
    ],
    Row(23, "bound token with its proof", head(b"GET /v1/models HTTP/1.1", b"Authorization: DPoP @TOKEN@", PROVEN), 200, "", "nothing", bound_to_key, proof=proof),
    unproven("bound token sent as Bearer", proof, scheme=b"Bearer"),
    unproven("bound token sent as Bearer, with its proof", proof, PROVEN, scheme=b"Bearer"),
    unproven("no proof", proof),
    unproven("two proofs", proof, PROVEN, PROVEN),
    *[
        unproven(name, lambda token, changes=changes: proof(token, **changes), PROVEN)
        for name, changes in {
            "htm of another method": {"method": "POST"}, "htm in small letters": {"method": "get"}, "no htm": {"htm": None},
            "htu of another path": {"url": f"{PUBLIC_URL}/v1/chat/completions"}, "htu of another host": {"url": "https://evil.example/v1/models"},
            "htu without TLS": {"url": "http://llm.example/v1/models"}, "htu with a slash more": {"url": f"{PUBLIC_URL}/v1/models/"},
            "htu with a user": {"url": "https://a@llm.example/v1/models"}, "no htu": {"htu": None}, "ath of another token": {"ath": base64url(bytes(32))},
            "no ath": {"ath": None}, "iat an hour ago": {"iat": in_seconds(-3600)}, "iat in an hour": {"iat": in_seconds(3600)}, "iat as text": {"iat": "1"},
            "no iat": {"iat": None}, "no jti": {"jti": None}, "empty jti": {"jti": ""}, "jti of 257 characters": {"jti": "x" * 257},
            "type JWT": {"header": {"typ": "JWT"}}, "another's key": {"header": {"jwk": public_jwk(new_key("ES256"), "ES256")}},
            "a private key in the header": {"header": {"jwk": {**public_jwk(KEY, "ES256"), "d": "AA"}}}, "key by its address": {"header": {"jku": "https://evil.example"}},
        }.items()
    ],
    unproven("another's proof", lambda token: proof_for(new_key("ES256"), token, url=f"{PUBLIC_URL}/v1/models"), PROVEN),
    unproven("proof that is no JWT", lambda _: "x.y", PROVEN),
    unproven("proof that nobody signed", lambda token: proof(token).rpartition(".")[0] + "." + "A" * 86, PROVEN),
    unproven("proof of 5 kB", lambda token: proof(token, pad="x" * 4000), PROVEN),
    denied(23, "token that is not bound, sent as if it were", lambda forge: forge.token(), head(b"GET /v1/models HTTP/1.1", b"Authorization: DPoP @TOKEN@", PROVEN), proof=proof),
    denied(23, "binding that nobody knows", lambda forge: forge.with_claims(cnf={"kid": "x"})),
    denied(23, "binding to nothing", lambda forge: forge.with_claims(cnf={})),
    denied(23, "binding of another form", lambda forge: forge.with_claims(cnf={"jkt": 1})),
    Row(24, "with its certificate", get(b"/v1/models", client_cert(CERTIFICATE), bearer=True), 200, "", "nothing", bound_to_certificate, by_proxy=True),
    denied(24, "over another certificate", bound_to_certificate, get(b"/v1/models", client_cert(b"0\x03\x02\x01\x01"), bearer=True), by_proxy=True),
    denied(24, "without a certificate", bound_to_certificate, by_proxy=True),
    denied(24, "with its certificate, by a stranger's word", bound_to_certificate, get(b"/v1/models", client_cert(CERTIFICATE), bearer=True), stripped="client-cert"),
    bad(22, "metrics for a group of models", get(b"/metrics", bearer=True), "policy-denied", 403),
]  # fmt: skip

BODIES = [
    bad(31, "by its length", post(b"", b"X: x").replace(b"Content-Length: 0", b"Content-Length: 10000000000"), "body-too-large", 413),
    bad(31, "by its length, one byte", post(b" " * 262_145), "body-too-large", 413),
    bad(31, "by counting chunks", get(PATH, b"Content-Type: application/json", CHUNKED, bearer=True, method=b"POST") + (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * 5, "body-too-large", 413),
    bad(31, "chunk that is longer than it says", get(PATH, b"Content-Type: application/json", CHUNKED, bearer=True, method=b"POST") + b"2\r\n{}}\r\n0\r\n\r\n", "request-malformed", closes=True),
    bad(31, "chunk of a size beyond 64 bits", get(PATH, b"Content-Type: application/json", CHUNKED, bearer=True, method=b"POST") + b"fffffffffffffffff\r\n", "request-malformed", closes=True),
    bad(31, "chunk of a negative size", get(PATH, b"Content-Type: application/json", CHUNKED, bearer=True, method=b"POST") + b"-1\r\n", "request-malformed", closes=True),
    *[
        refused(32, name, post(b"{}", b"Content-Encoding: " + name.encode()), 415, "media-type-unsupported")
        for name in ("gzip", "deflate", "br", "zstd", "identity", "")
    ],
    refused(32, "as a transfer coding", get(PATH, b"Content-Type: application/json", b"Transfer-Encoding: gzip, chunked", bearer=True, method=b"POST") + b"0\r\n\r\n", 400, "request-malformed"),
    *[
        bad(33, media_type.decode() or "missing", post(json.dumps(GOOD).encode(), media_type=media_type), "media-type-unsupported", 415)
        for media_type in (
            b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"application/xml",
            b"text/json", b"application/jsonp", b"application/json, text/plain", b"application/ json", b"application/x-msgpack",
        )
    ],
    refused(33, "two", post(json.dumps(GOOD).encode(), b"Content-Type: text/plain"), 400, "header-invalid"),
    raw(34, "invalid UTF-8", b'{"model":"\xff"}'),
    raw(34, "overlong UTF-8", b'{"model":"\xc0\x80"}'),
    raw(34, "byte-order mark", b'\xef\xbb\xbf{"model":"chain"}'),
    raw(34, "UTF-16", json.dumps(GOOD).encode("utf-16")),
    raw(34, "lone surrogate", b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}'),
    raw(34, "lone surrogate in a key", b'{"\\udfff":1}'),
    raw(34, "trailing bytes", json.dumps(GOOD).encode() + b" x"),
    raw(34, "trailing NUL", json.dumps(GOOD).encode() + b"\x00"),
    raw(34, "two documents", json.dumps(GOOD).encode() * 2),
    raw(34, "NaN", json.dumps({**GOOD, "top_p": float("nan")}).encode()),
    raw(34, "Infinity", json.dumps({**GOOD, "top_p": float("inf")}).encode()),
    raw(34, "1e400", json.dumps(GOOD).encode()[:-1] + b',"top_p":1e400}'),
    raw(34, "empty", b""),
    raw(34, "white space", b" \r\n"),
    raw(35, "33 levels", b'{"metadata":' + b"[" * 32 + b"]" * 32 + b"}"),
    raw(35, "5,000 levels", b"[" * 5000 + b"]" * 5000),
    raw(35, "250,000 levels that never end", b"[" * 250_000),
    raw(35, "250,000 levels of objects", b'{"a":' * 50_000),
    raw(36, "65 bits", json.dumps({**GOOD, "seed": 2**64}).encode()),
    raw(36, "65 bits below zero", json.dumps({**GOOD, "seed": -(2**63) - 1}).encode()),
    raw(36, "200,000 digits", json.dumps(GOOD).encode()[:-1] + b',"seed":' + b"9" * 200_000 + b"}"),
    raw(36, "200,000 digits of a fraction", json.dumps(GOOD).encode()[:-1] + b',"top_p":0.' + b"9" * 200_000 + b"}"),
    bad(36, "1,000,000 digits", post(b"[" + b"9" * 1_000_000 + b"]"), "body-too-large", 413),
    raw(36, "10,001 items", json.dumps({**GOOD, "stop": [""] * 10_001}).encode()),
    raw(36, "2,001 keys", json.dumps({**GOOD, "metadata": {str(n): "" for n in range(2001)}}).encode()),
    field_of(36, "text beyond its limit", user="u" * 257),
    field_of(36, "too many messages", messages=[{"role": "user", "content": ""}] * 1025),
    raw(37, "key twice", b'{"model":"chain","model":"x","messages":[{"role":"user","content":"a"}]}'),
    raw(37, "key twice, one escaped", b'{"model":"chain","\\u006dodel":"x","messages":[]}'),
    raw(37, "key twice, below", b'{"model":"chain","messages":[{"role":"user","role":"system","content":"a"}]}'),
    raw(37, "key twice, in a schema", b'{"model":"chain","messages":[{"role":"user","content":"a"}],"metadata":{"a":"1","\\u0061":"2"}}'),
    *[
        bad(37, f"key as {key!r}", post(json.dumps({**GOOD, key: "x"}).encode()), "field-unknown")
        for key in ("Model", "MODEL", "mOdel", "model ", " model", "model\x00", "\uff4dodel", "m\u043edel", "Max_Tokens", "maxTokens", "max-tokens")
    ],
    bad(37, "key of another case, below", asking(messages=[{"Role": "user", "content": "a"}]), param="messages"),
    bad(38, "unknown field", asking(foo=1), "field-unknown"),
    bad(38, "unknown field, empty name", post(json.dumps({**GOOD, "": 1}).encode()), "field-unknown"),
    bad(38, "unknown field named as Python's own", asking(__class__="x"), "field-unknown"),
    bad(38, "unknown field, below", asking(messages=[{"role": "user", "content": "a", "foo": 1}]), param="messages"),
    bad(38, "not an object", post(b"[]")),
    bad(38, "null", post(b"null")),
    *[
        bad(39, f"model {name!r}", asking(model=name), "model-not-found", 404)
        for name in (
            "../chain", "./chain", "chain/", "chain/../chain", "chain%00", "chain\x00", "/etc/passwd", "CHAIN", "cha\u0131n",
            "\u0441hain", "\uff43hain", "chain\u200b", "chain\u0301", " chain", "chain ", "chain:latest", "*", "?", "nothing", "sha256:x",
        )
    ],
    bad(39, "model without a name", asking(model=""), param="model"),
    bad(39, "model of 129 characters", asking(model="m" * 129), param="model"),
    bad(39, "model as a number", asking(model=7), param="model"),
    bad(39, "model in a path", get(b"/v1/models/nothing", bearer=True), "model-not-found", 404),
    *[
        field_of(40, f"{name} {value!r}"[:60], name, **{name: value})
        for name, value in (
            ("n", 0), ("n", 17), ("n", -1), ("n", 1.5), ("n", "1"), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31),
            ("max_tokens", True), ("max_tokens", "5"), ("top_k", -2), ("top_k", 2**40), ("top_p", 0), ("top_p", 1.1),
            ("temperature", -1), ("temperature", 1e308), ("seed", -1), ("seed", 2**32), ("stop", ["a"] * 9), ("stop", ""),
            ("stop", ["a" * 257]), ("logit_bias", {"0": 101}), ("logit_bias", {"-1": 0}), ("logit_bias", {"x": 0}),
            ("logit_bias", {"01": 0}), ("logit_bias", {str(n): 0 for n in range(301)}), ("presence_penalty", 3),
            ("repeat_last_n", 10**6), ("mirostat", 3), ("grammar", ""), ("grammar", "a" * 65_537), ("top_logprobs", 21),
            ("tools", [{"type": "mcp", "server_url": "http://169.254.169.254/"}]), ("messages", []), ("service_tier", "priority"),
        )
    ],
    *[
        bad(40, f"content {json.dumps(part)[:50]}", asking(messages=[{"role": "user", "content": [part]}]), param="messages")
        for part in (
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}},
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "../x"}},
            {"type": "text", "text": "a", "cache_control": {}},
        )
    ],
    *[
        unfit(f"grammar {name}", grammar=text)
        for name, text in {
            "that calls itself first": "root ::= root",
            "of nested repetitions": "root ::= " + "(" * 200 + '"a"' + ")*" * 200,
            "of a great number": 'root ::= "a"{1000000}',
            "without an end": "root ::= (",
            "without a root": 'x ::= "a"',
        }.items()
    ],
    unfit("schema of nested repetitions", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "^((a+)+)+$"}}}),
    unfit("schema that refers to itself", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}),
    unfit("schema from elsewhere", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://169.254.169.254/"}}}),
]  # fmt: skip

ODD = "=cmd|' /C calc'!A0\x1b[2J\u2028\u202e\u0085"
"""What a spreadsheet, a terminal and an editor would take for more than text; a line break is no header's."""

LOGGED = [
    Row(49, "user agent", get(b"/v1/models", b"User-Agent: " + ODD.replace("\x1b", "").encode(), bearer=True), 200, "", "nothing"),
    refused(49, "user agent with an escape", get(b"/v1/models", b"User-Agent: \x1b[2J", bearer=True), 400, "request-malformed"),
    refused(49, "host", head(b"GET / HTTP/1.1", host=b"Host: " + ODD.replace("\x1b", "").encode()), 400, "host-invalid"),
    refused(49, "host that looks like one", head(b"GET / HTTP/1.1", host=b"Host: =cmd.example"), 400, "host-invalid"),
    refused(49, "path", get(b"/\xe2\x80\xa8x"), 400, "request-malformed"),
    refused(49, "header name", get(b"/", b"=cmd_x: 1"), 400, "request-malformed"),
    bad(49, "media type", post(b"{}", media_type=b"text/" + ODD.replace("\x1b", "").encode()), "media-type-unsupported", 415),
    bad(49, "model", asking(model="\r\nrefused: token-missing" + ODD), "model-not-found", 404),
    bad(49, "field", asking(**{"\r\n" + ODD: 1}), "field-unknown"),
    denied(49, "key id", lambda forge: forge.with_header(kid="\r\n" + ODD)),
    denied(49, "key id of a foreign issuer", lambda forge: forge.foreign.token(scope=SCOPE, key_id="\r\n" + ODD, key=KEY)),
    denied(49, "issuer", lambda forge: forge.with_claims(iss="\r\n" + ODD)),
    refused(49, "address of a trusted proxy's client", get(b"/v1/models", b"X-Forwarded-For: " + ODD.replace("\x1b", "").encode(), bearer=True), 400, "header-invalid", by_proxy=True),
    refused(49, "scheme of a trusted proxy's client", get(b"/v1/models", b"X-Forwarded-Proto: " + ODD.replace("\x1b", "").encode(), bearer=True), 400, "header-invalid", by_proxy=True),
    Row(49, "header that is stripped", get(b"/v1/models", b"X-User-!cmd|: 1", bearer=True), 200, "", "nothing", stripped="x-user-!cmd|"),
    denied(49, "claim", lambda forge: forge.with_claims(aud="\r\n" + ODD)),
    Row(49, "subject", get(b"/v1/models", bearer=True), 200, "", "nothing", lambda forge: forge.with_claims(sub="\r\n" + ODD)),
    Row(49, "subject that is refused", get(b"/admin", bearer=True), 404, "not-found", "record", lambda forge: forge.with_claims(sub="\r\nrefused: " + ODD)),
    Row(50, "authorization among the hop's own", get(b"/v1/models", b"Connection: authorization, host, content-length", bearer=True), 200, "", "nothing", headers={"connection": None}),
    Row(50, "every hop's own header", get(b"/v1/models", b"Keep-Alive: 1", b"TE: trailers", b"Proxy-Connection: x", b"Trailer: x", bearer=True), 200, "", "nothing", headers={"keep-alive": None, "proxy-connection": None, "trailer": None}),
    Row(52, "list of models", get(b"/v1/models", bearer=True), 200, "", "nothing"),
    Row(52, "model", get(b"/v1/models/chain", bearer=True), 200, "", "nothing"),
    Row(52, "completion", asking(max_tokens=1), 200, "", "nothing"),
    Row(52, "tokens", post(b'{"model":"chain","content":"hi"}', path=b"/tokenize"), 200, "", "nothing"),
    Row(52, "liveness", get(b"/healthz"), 200, "", "nothing"),
    Row(53, "stream", asking(max_tokens=1, stream=True), 200, "", "nothing", headers={"content-type": "text/event-stream", "x-accel-buffering": "no", "content-encoding": None}),
    Row(53, "stream for one who would take it compressed", asking(max_tokens=1, stream=True).replace(b"Content-Type", b"Accept-Encoding: gzip, br\r\nContent-Type", 1), 200, "", "nothing", headers={"content-type": "text/event-stream", "content-encoding": None}),
    refused(55, "OPTIONS", get(b"/v1/models", method=b"OPTIONS"), 401, "token-missing", headers=NO_TOKEN),
    refused(55, "OPTIONS of the public path", get(b"/healthz", method=b"OPTIONS"), 401, "token-missing", headers=NO_TOKEN),
    refused(55, "OPTIONS before a request from elsewhere", get(PATH, b"Origin: https://evil.example", b"Access-Control-Request-Method: POST", method=b"OPTIONS"), 401, "token-missing", headers={**NO_TOKEN, "access-control-allow-origin": None}),
    refused(55, "HEAD", get(b"/v1/models", method=b"HEAD"), 401, "token-missing", headers=NO_TOKEN),
    refused(55, "HEAD of the public path", get(b"/healthz", method=b"HEAD"), 401, "token-missing", headers=NO_TOKEN),
    refused(55, "TRACE", get(b"/v1/models", method=b"TRACE"), 405, "method-not-allowed", headers={"allow": "GET"}),
    refused(55, "TRACE with a token", get(b"/v1/models", bearer=True, method=b"TRACE"), 405, "method-not-allowed", headers={"allow": "GET"}),
]  # fmt: skip

CREDENTIALS = b"grant_type=client_credentials"


def basic(client_id: str, secret: str) -> bytes:
    return b64encode(f"{client_id}:{secret}".encode())


ISSUED = [
    Row(25, "good form", ask_token(CREDENTIALS), 200, "", "nothing", headers={"content-type": "application/json"}),
    no_token(25, "two ways to authenticate: a secret in the form too", ask_token(CREDENTIALS + b"&client_secret=x"), "invalid_request", "oauth-request-invalid"),
    no_token(25, "two ways to authenticate: an assertion too", ask_token(CREDENTIALS + b"&client_assertion=a.b.c&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer"), "invalid_request", "oauth-request-invalid"),
    *[
        no_token(25, f"{name} twice", ask_token(CREDENTIALS + b"&" + repeated), "invalid_request", "oauth-request-invalid")
        for name, repeated in {
            "grant_type": CREDENTIALS, "grant_type, of another kind,": b"grant_type=refresh_token", "scope": b"scope=staff&scope=staff",
            "client_id": b"client_id=hostile&client_id=hostile", "scope, once empty,": b"scope=&scope=staff", "refresh_token": b"refresh_token=a&refresh_token=b",
        }.items()
    ],
    no_token(25, "no grant type", ask_token(b"scope=staff"), "invalid_request", "oauth-request-invalid"),
    no_token(25, "nothing at all", ask_token(b""), "invalid_request", "oauth-request-invalid"),
    *[
        no_token(25, f"grant type {kind.decode()}", ask_token(b"grant_type=" + kind), "unsupported_grant_type", "grant-type-unsupported")
        for kind in (b"password", b"authorization_code", b"implicit", b"CLIENT_CREDENTIALS", b"client_credentials%20", b"urn:ietf:params:oauth:grant-type:jwt-bearer", b"x")
    ],
    no_form("JSON", post(b'{"grant_type":"client_credentials"}', path=b"/oauth/token").replace(b"Bearer @TOKEN@", b"Basic @CLIENT@"), 415, "media-type-unsupported"),
    no_form("JSON that is called a form", ask_token(b'{"grant_type":"client_credentials"}'), 400),
    no_form("several parts", ask_token(CREDENTIALS).replace(FORM, b"multipart/form-data; boundary=x"), 415, "media-type-unsupported"),
    no_form("form in UTF-16", ask_token(CREDENTIALS).replace(FORM, FORM + b"; charset=utf-16"), 415, "media-type-unsupported"),
    no_form("compressed", ask_token(CREDENTIALS, b"Content-Encoding: gzip"), 415, "media-type-unsupported"),
    *[
        no_form(f"{method.decode()} of {path.decode()}", get(path, method=method), 405, "method-not-allowed", headers={"allow": "POST", "www-authenticate": None})
        for method in (b"GET", b"PUT", b"OPTIONS", b"DELETE")
        for path in (b"/oauth/token", b"/oauth/revoke", b"/oauth/introspect")
    ],
    no_form("GET with everything in the query", get(b"/oauth/token?" + CREDENTIALS, b"Authorization: Basic @CLIENT@"), 405, "method-not-allowed"),
    no_form("parameters in the query", ask_token(CREDENTIALS, path=b"/oauth/token?" + CREDENTIALS), 400),
    no_form("secret in the query", ask_token(CREDENTIALS, path=b"/oauth/token?client_id=hostile&client_secret=x"), 400),
    no_form("two headers with credentials", ask_token(CREDENTIALS, b"Authorization: Basic @CLIENT@"), 400, "token-misplaced"),
    no_form("17 kB", ask_token(CREDENTIALS + b"&x=" + b"a" * 17_000), 413, "body-too-large"),
    no_form("17 kB in chunks", get(b"/oauth/token", b"Content-Type: " + FORM, CHUNKED, b"Authorization: Basic @CLIENT@", method=b"POST") + b"4400\r\n" + b"a" * 0x4400 + b"\r\n0\r\n\r\n", 413, "body-too-large"),
    no_form("33 parameters", ask_token(CREDENTIALS + b"&a=1" * 32), 400),
    no_form("parameter that is not UTF-8", ask_token(CREDENTIALS + b"&scope=%ff"), 400),
    no_form("parameter with a NUL", ask_token(CREDENTIALS + b"&scope=%00"), 400),
    no_form("half of a percent", ask_token(CREDENTIALS + b"&scope=%4"), 400),
    no_form("parameter without a name", ask_token(CREDENTIALS + b"&=x"), 400),
    no_form("semicolons and a line", ask_token(CREDENTIALS + b"\r\n"), 400),
    no_form("proof of a key", ask_token(CREDENTIALS, b"DPoP: x.y.z"), 400),
    no_client("wrong secret", ask_token(CREDENTIALS, client=basic("hostile", "wrong"))),
    no_client("unknown client", ask_token(CREDENTIALS, client=basic("nobody", "wrong"))),
    no_client("no credentials", ask_token(CREDENTIALS, client=b"")),
    no_client("name alone", ask_token(CREDENTIALS + b"&client_id=hostile", client=b"")),
    no_client("secret in the form, where Basic is registered", ask_token(CREDENTIALS + b"&client_id=hostile&client_secret=x", client=b"")),
    no_client("two names", ask_token(CREDENTIALS + b"&client_id=other")),
    no_client("token of the API", get(b"/oauth/token", b"Content-Type: " + FORM, b"Content-Length: %d" % len(CREDENTIALS), bearer=True, method=b"POST") + CREDENTIALS),
    *[
        no_client(f"credentials {kind}", ask_token(CREDENTIALS, client=client))
        for kind, client in {
            "that are no base64": b"!", "without a colon": b64encode(b"hostile"), "without a name": b64encode(b":x"), "of bytes": b64encode(b"\xff:\xff"),
            "with a path": basic("../hostile", "x"), "with a line": b64encode(b"hostile\r\n:x"), "of 8 kB": b64encode(b"hostile:" + b"x" * 8000),
        }.items()
    ],
    *[
        no_token(27, f"scope {scope.decode()!r}", ask_token(CREDENTIALS + b"&scope=" + scope), "invalid_scope", "scope-invalid")
        for scope in (b"admin", b"staff%20admin", b"STAFF", b"*", b"staff%20", b"%20", b"staff%20%20staff", b"%22", b"st%C3%A4ff", b"../staff")
    ],
    *[
        no_token(27, f"{name} {target.decode()!r}", ask_token(CREDENTIALS + b"&" + name.encode() + b"=" + target), "invalid_target", "target-invalid")
        for name, target in (
            ("resource", b"https://evil.example"), ("resource", b"https://llm.example.evil.example"), ("resource", b"https://llm.example%23x"),
            ("resource", b"http://llm.example"), ("resource", b"x"), ("resource", b"https://llm.example&resource=https://evil.example"),
        )
    ],
    Row(27, "resource that is ours", ask_token(CREDENTIALS + b"&resource=https://llm.example"), 200, "", "nothing"),
    no_token(28, "refresh token that is none", ask_token(b"grant_type=refresh_token&refresh_token=x"), "invalid_grant", "grant-invalid"),
    no_token(28, "no refresh token", ask_token(b"grant_type=refresh_token"), "invalid_request", "oauth-request-invalid"),
    no_token(28, "refresh token of 9 kB", ask_token(b"grant_type=refresh_token&refresh_token=" + b"x" * 9000), "invalid_request", "oauth-request-invalid"),
    no_token(29, "introspection without a client", ask_token(b"token=x", path=b"/oauth/introspect", client=b""), "invalid_client", "client-invalid", 401, headers=NO_CLIENT),
    no_token(29, "introspection of nothing", ask_token(b"", path=b"/oauth/introspect"), "invalid_request", "oauth-request-invalid"),
    Row(29, "introspection of garbage", ask_token(b"token=x", path=b"/oauth/introspect"), 200, "", "nothing"),
    no_token(30, "revocation without a client", ask_token(b"token=x", path=b"/oauth/revoke", client=b""), "invalid_client", "client-invalid", 401, headers=NO_CLIENT),
    no_token(30, "revocation of nothing", ask_token(b"", path=b"/oauth/revoke"), "invalid_request", "oauth-request-invalid"),
    Row(30, "revocation of an unknown token", ask_token(b"token=x", path=b"/oauth/revoke"), 200, "", "nothing"),
    Row(30, "revocation of an unknown token, with a hint", ask_token(b"token=x&token_type_hint=refresh_token", path=b"/oauth/revoke"), 200, "", "nothing"),
    refused(55, "OPTIONS of the authorization server's metadata", get(b"/.well-known/oauth-authorization-server", method=b"OPTIONS"), 401, "token-missing", headers=NO_TOKEN),
]  # fmt: skip

ROWS: Final = (*WIRE, *TOKENS, *BODIES, *LOGGED, *ISSUED)
