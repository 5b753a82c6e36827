"""Opaque tokens at the real server: what their issuer calls active, and nothing else (RFC 7662)."""

import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.oauth.conftest import OPAQUE_CLIENT, OPAQUE_SECRET, Site
from tests.support.identity_provider import new_key, thumbprint

JSON = {"Content-Type": "application/json"}
numbers = iter(range(10_000))


def opaque(site: Site, **changes: Any) -> str:
    token = f"opaque.token-{next(numbers):08}~+/=="
    site.opaque.active[_form(token)] = {"active": True} | site.opaque.claims(**changes)
    return token


def _form(token: str) -> str:
    from urllib.parse import quote_plus

    return quote_plus(token)


def test_active_token_is_accepted_and_asked_for_as_the_rfc_says(site: Site) -> None:
    token = opaque(site)
    assert site.server.chat(token, max_tokens=1).status == 200
    _path, headers, body = next(one for one in reversed(site.opaque.asked) if one[0] == "/introspect")
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert body.decode() == f"token={_form(token)}&token_type_hint=access_token"
    scheme, _, pair = headers["Authorization"].partition(" ")
    assert (scheme, b64decode(pair)) == ("Basic", b"gate%3Away:pass%25word")  # RFC 6749 section 2.3.1
    assert (OPAQUE_CLIENT, OPAQUE_SECRET) == ("gate:way", "pass%word")


def test_answer_is_believed_for_no_longer_than_configured(site: Site) -> None:
    token = opaque(site)
    assert site.get(token).status == 200
    site.opaque.active.clear()
    site.server.wait_until(lambda: site.get(token).status == 401, "introspection_cache_seconds are over")


@pytest.mark.parametrize(
    "changes",
    [
        {"active": False},
        {"aud": "mail"},
        {"aud": None},
        {"exp": None},
        {"exp": 1},
        {"nbf": 4_000_000_000},
        {"iss": "https://evil.example"},
        {"client_id": None},
        {"sub": None},
        {"token_type": "refresh_token"},
        {"token_type": 1},
        {"token_type": "DPoP"},  # and no key: anybody could send it
        {"nonce": "n"},
        {"cnf": {"kid": "x"}},
        {"exp": str(int(time.time()) + 100)},
    ],
    ids=str,
)
def test_token_that_is_not_active_or_not_for_us_is_refused(site: Site, changes: dict[str, Any]) -> None:
    answer = site.get(opaque(site, **changes))
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_issuer_need_not_repeat_its_own_name(site: Site) -> None:
    assert site.get(opaque(site, iss=None, iat=None, jti="one")).status == 200


def test_bound_token_is_refused_without_its_key(site: Site) -> None:
    answer = site.get(opaque(site, cnf={"jkt": thumbprint(new_key("ES256"))}))
    assert (answer.status, answer.json()["error"]["code"]) == (401, "proof-invalid")


@pytest.mark.parametrize(
    "answer",
    [
        (200, JSON, b"{}"),
        (200, JSON, b'{"active":"true"}'),
        (200, JSON, b'{"active":1}'),
        (200, JSON, b'{"active":false,"active":true}'),
        (200, JSON, b"[true]"),
        (200, JSON, b"true"),
        (200, JSON, b'{"active":true'),
        (200, JSON, b"[" * 5000),
        (200, JSON, b" " * 70_000),
        (200, {"Content-Type": "text/html"}, b'{"active":true}'),
        (200, JSON | {"Content-Encoding": "gzip"}, b'{"active":true}'),
        (302, {"Location": "https://evil.example"}, b""),
        (401, JSON, b"{}"),
        (500, JSON, b'{"active":true}'),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:30]!r}",
)
def test_answer_that_says_neither_yes_nor_no_is_a_503(site: Site, answer: tuple[int, dict[str, str], bytes]) -> None:
    site.opaque.answers["/introspect"] = answer
    try:
        seen = site.get(opaque(site))
    finally:
        site.opaque.answers.clear()
    assert (seen.status, seen.json()["error"]["code"]) == (503, "issuer-unavailable")
    assert int(seen.headers["Retry-After"]) >= 1


def test_no_more_than_so_many_questions_are_asked_at_a_time(site: Site) -> None:
    going_on, most = [0], [0]
    lock, enough = threading.Lock(), threading.Event()

    def wait() -> None:
        with lock:
            going_on[0] += 1
            most[0] = max(most[0], going_on[0])
        enough.wait(2)
        with lock:
            going_on[0] -= 1

    site.opaque.gate = wait
    tokens = [opaque(site) for _ in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(site.get, token) for token in tokens]
        site.server.wait_until(lambda: sum(answer.done() for answer in answers) >= 16, "the others are refused")
        enough.set()
        statuses = sorted(answer.result().status for answer in answers)
    site.opaque.gate = lambda: None
    assert most[0] <= 8
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) >= 16


@pytest.mark.parametrize(
    "token",
    [
        "short",
        "a" * 1025,
        "aaaaa.bbbbb.ccccc.ddddd.eeeee",
        "one.two.three-but-no-jwt!",
        "white space in the token",
        "é" * 20,
    ],
    ids=ascii,
)
def test_what_cannot_be_one_of_its_tokens_is_not_asked_about(site: Site, token: str) -> None:
    before = site.opaque.asked_for("/introspect")
    assert site.get(None, Authorization=f"Bearer {token}".encode().decode("latin-1")).status == 401
    assert site.opaque.asked_for("/introspect") == before
