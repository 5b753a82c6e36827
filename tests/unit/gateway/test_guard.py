"""Nothing passes the wire guard that another hop, the router or the policy could read differently."""

from typing import Any

import pytest

from appliance.core.refusals import Reason, Refused
from appliance.gateway import guard
from appliance.gateway.guard import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES

HOST = b"gate.example:8443"
ALLOWED = frozenset({"gate.example:8443", "[::1]:8443"})


def scope(
    raw_path: bytes = b"/v1/models",
    *,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    host: bytes | None = HOST,
    query: bytes = b"",
    version: str = "1.1",
    method: str = "GET",
) -> dict[str, Any]:
    hosts = [] if host is None else [(b"host", host)]
    return {
        "method": method,
        "raw_path": raw_path,
        "query_string": query,
        "http_version": version,
        "headers": [*hosts, *headers],
    }


def refusal(one: dict[str, Any]) -> Reason:
    with pytest.raises(Refused) as caught:
        guard.check(one, ALLOWED)
    return caught.value.reason


@pytest.mark.parametrize(
    "path", [b"/", b"/healthz", b"/v1/models", b"/v1/models/llama3.2:1b", b"/v1/models/a@b~c_d-e", b"/..."]
)
def test_canonical_path_is_not_refused(path: bytes) -> None:
    guard.check(scope(path), ALLOWED)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"*",
        b"v1/models",
        b"//",
        b"//v1/models",
        b"/v1//models",
        b"/v1/models/",
        b"/./v1",
        b"/v1/..",
        b"/v1/../healthz",
        b"/v1/.",
        b"/v1%2fmodels",
        b"/v1%2Fmodels",
        b"/v1/%2e%2e/healthz",
        b"/%76%31/models",
        b"/v1\\models",
        b"/v1/models%5c",
        b"/v1/models%00",
        b"/v1/models;x=1",
        b"/v1/models#x",
        b"/v1/models?x",
        b"/v1/mod els",
        b"/v1/mod\tels",
        b"/v1/mod\x00els",
        b"/v1/mod\xe9ls",
        b"/v1/models+",
        b"http://gate.example/v1/models",
        b"/healthz\n",
    ],
)
def test_other_spelling_of_a_path_is_refused(path: bytes) -> None:
    """CVE-2026-26205: a router that forgave ``//`` and a policy that did not."""
    assert refusal(scope(path)) is Reason.PATH_INVALID


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b" ",
        b"gate.example:8443/",
        b"gate.example:8443?x",
        b"gate.example:8443#x",
        b"user@gate.example:8443",
        b"gate.example:",
        b"gate.example:port",
        b"gate.example:65536",
        b"gate.example:99999",
        b"gate.example:123456",
        b"gate.example:-1",
        b"gate.example:8443:8443",
        b"gate.example:8443, gate.example:8443",
        b"::1",
        b"[::1",
        b"[gate]:8443",
        b"gate_example:8443",
        b"g\xe1te.example:8443",
        b"gate.example:8443\x00",
        b"gate.example:8443\n",
    ],
)
def test_malformed_host_is_refused(host: bytes) -> None:
    assert refusal(scope(host=host)) is Reason.HOST_INVALID


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example:8443",
        b"gate.example",
        b"gate.example:80",
        b"gate.example.:8443",
        b"xgate.example:8443",
        b"[::2]:8443",
    ],
)
def test_foreign_host_is_refused(host: bytes) -> None:
    assert refusal(scope(host=host)) is Reason.HOST_FOREIGN


@pytest.mark.parametrize("host", [HOST, b"GATE.Example:8443", b"[::1]:8443"])
def test_own_host_is_not_refused(host: bytes) -> None:
    guard.check(scope(host=host), ALLOWED)


def test_absent_and_repeated_hosts_are_refused() -> None:
    assert refusal(scope(host=None)) is Reason.HOST_INVALID
    assert refusal(scope(headers=((b"host", HOST),))) is Reason.HOST_INVALID
    assert refusal(scope(headers=((b"host", b"evil.example"),))) is Reason.HOST_INVALID


@pytest.mark.parametrize("version", ["0.9", "2", "3", "", "1.2"])
def test_other_versions_of_http_are_refused(version: str) -> None:
    assert refusal(scope(version=version)) is Reason.REQUEST_MALFORMED


@pytest.mark.parametrize("name", [b"authorization", b"content-type", b"content-length", b"transfer-encoding"])
def test_repeated_header_that_matters_is_refused(name: bytes) -> None:
    value = b"chunked" if name == b"transfer-encoding" else b"1"
    guard.check(scope(headers=((name, value),)), ALLOWED)
    reason = Reason.TOKEN_MISPLACED if name == b"authorization" else Reason.HEADER_INVALID
    assert refusal(scope(headers=((name, value), (name, value)))) is reason


@pytest.mark.parametrize(
    "name",
    [
        b"x_forwarded_for",
        b"x-user_id",
        b"_",
        b"",
        b"a b",
        b"a\tb",
        b"a:b",
        b"a\x00",
        b"\xe9",
        b"a(b)",
        b"X-Upper",
        b"a\n",
    ],
)
def test_header_name_that_another_server_could_read_differently_is_refused(name: bytes) -> None:
    assert refusal(scope(headers=((name, b"1"),))) is Reason.HEADER_INVALID


@pytest.mark.parametrize("value", [b"gzip", b"identity", b"", b"br, gzip"])
def test_compressed_body_is_refused(value: bytes) -> None:
    assert refusal(scope(headers=((b"content-encoding", value),))) is Reason.MEDIA_TYPE_UNSUPPORTED


@pytest.mark.parametrize("query", [b"access_token=x", b"a=1&access_token=x", b"access_token="])
def test_token_in_the_query_is_refused(query: bytes) -> None:
    assert refusal(scope(query=query)) is Reason.TOKEN_MISPLACED


def test_long_targets_are_refused() -> None:
    longest = b"/" + b"a" * (MAX_TARGET_BYTES - 1)
    guard.check(scope(longest), ALLOWED)
    assert refusal(scope(longest + b"a")) is Reason.URI_TOO_LONG
    assert refusal(scope(b"/a", query=b"q" * MAX_TARGET_BYTES)) is Reason.URI_TOO_LONG


def test_many_and_large_headers_are_refused() -> None:
    guard.check(scope(headers=tuple((b"x-%d" % n, b"1") for n in range(MAX_HEADERS - 1))), ALLOWED)
    assert refusal(scope(headers=tuple((b"x-%d" % n, b"1") for n in range(MAX_HEADERS)))) is Reason.HEADERS_TOO_LARGE
    room = MAX_HEADER_BYTES - len(b"host") - len(HOST) - 4 - len(b"x") - 4
    guard.check(scope(headers=((b"x", b"a" * room),)), ALLOWED)
    assert refusal(scope(headers=((b"x", b"a" * (room + 1)),))) is Reason.HEADERS_TOO_LARGE
