"""Every route of the application, found by walking its route table, refuses a request without a token, but for those
that are named here."""

from collections.abc import Iterator

import pytest

from appliance.core import oauth
from appliance.gateway.app import build_app
from appliance.gateway.challenges import METADATA_PATH
from tests.support.appliance import TestAppliance, appliance
from tests.support.chain_model import chain_model
from tests.support.oauth_clients import ISSUING

OPEN = {("GET", "/healthz"): 200}
OPEN_WHERE_ISSUING = {
    **OPEN,
    ("GET", METADATA_PATH): 200,
    ("GET", oauth.METADATA_PATH): 200,
    ("POST", "/oauth/token"): 415,
    ("POST", "/oauth/revoke"): 415,
    ("POST", "/oauth/introspect"): 415,
}
"""What needs no token, and what a request that says nothing comes to there: a client would have to send a form."""


@pytest.fixture(scope="module", params=["", ISSUING], ids=["plain", "issuing"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("routes"), {"chain": chain_model()}, request.param) as one:
        yield one


def _routes() -> list[tuple[str, str]]:
    app = build_app(pipeline=None, limits=None, metrics=None)  # type: ignore[arg-type]  # no route is called here
    routes = []
    for route in app.routes:
        path = route.path_format.replace("{model_id}", "chain")
        methods = getattr(route, "methods", None) or {
            "GET",
            "POST",
            "PUT",
            "PATCH",
            "DELETE",
            "HEAD",
            "OPTIONS",
            "TRACE",
        }
        routes.extend((method, path) for method in sorted(methods))
    return routes


ROUTES = _routes()


def test_the_route_table_is_walked() -> None:
    assert {path for _method, path in ROUTES} >= {
        "/healthz",
        "/v1/models",
        "/v1/models/chain",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/tokenize",
        "/detokenize",
        "/metrics",
        "/openapi.json",
        METADATA_PATH,
        oauth.METADATA_PATH,
        *oauth.PATHS,
    }


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_route_without_a_token_is_refused(server: TestAppliance, method: str, path: str) -> None:
    answer = server.request(method, path)
    issuing = server.config.identity.issues_tokens
    open_routes = OPEN_WHERE_ISSUING if issuing else OPEN
    if (method, path) in open_routes:
        assert answer.status == open_routes[method, path]
    elif method == "TRACE" or (issuing and path in oauth.PATHS):  # of no use there, with or without a token
        assert answer.status == 405
    else:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="paddock"')
        assert "error=" not in answer.headers["WWW-Authenticate"]


def test_healthz_says_nothing_but_that_it_lives(server: TestAppliance) -> None:
    answer = server.request("GET", "/healthz")
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')


OF_AN_ANSWER = {
    "allow",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "retry-after",
    "transfer-encoding",
    "vary",
    "www-authenticate",
    "x-content-type-options",
    "x-request-id",
}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_answer_is_one_that_a_cache_keeps_or_says_more_than_it_must(
    server: TestAppliance, method: str, path: str
) -> None:
    for token in (None, server.token(f"{method} {path}")):
        answer = server.request(method, path, token=token)
        assert answer.headers.get_all("Cache-Control") == ["no-store"]
        assert answer.headers.get_all("Vary") == ["Authorization"]
        assert {name.lower() for name in answer.headers} <= OF_AN_ANSWER
