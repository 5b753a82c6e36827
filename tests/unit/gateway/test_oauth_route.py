"""The endpoints of the authorization server: whoever authenticates itself there comes in without a token, and nobody
else, nowhere else, and in no other way."""

import asyncio
import json
import logging
from typing import Any

import pytest

from appliance.core.oauth import METADATA_PATH, PATHS, OAuthAnswer, TokenRequest
from appliance.core.refusals import Fault, Reason
from appliance.gateway.answering import BodyLimits
from appliance.gateway.app import build_app
from appliance.gateway.asgi import CLIENT_CERTIFICATE
from appliance.gateway.challenges import Challenges
from appliance.gateway.gate import Gate
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.slots import Slots
from appliance.gateway.surfaces.oauth import MAX_FORM_BYTES, MAX_UNDER_WAY, OAuthRoute
from appliance.gateway.tally import Tally
from tests.fakes.authority import FakeAuthorizationServer
from tests.fakes.world import NOW, World
from tests.support.scenario import run, until

HOST = b"gate.example"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
BODY = b"grant_type=client_credentials"
SECRET = "/var/lib/paddock of alice"


class Site:
    """The real application behind the real gate, with an authorization server or without."""

    def __init__(self, *, issues_tokens: bool = True) -> None:
        self.world = world = World()
        self.server = FakeAuthorizationServer(world.steps)
        self.tally = Tally()
        slots = Slots(2)
        route = OAuthRoute(self.server, self.tally, body_timeout_seconds=0.05) if issues_tokens else None
        limits = BodyLimits(max_bytes=1024, timeout_seconds=0.05)
        app = build_app(world.pipeline, limits, MetricsPage(world.pipeline, self.tally, slots), None, route)
        self.gate = Gate(
            app,  # type: ignore[arg-type]  # ASGI's scope is wider
            world.pipeline,
            verifier=world.verifier,
            addresses=world.addresses,
            rates=world.rates,
            slots=slots,
            refusals=self.tally,
            allowed_hosts=frozenset({HOST.decode()}),
            now_seconds=lambda: NOW,
            challenges=Challenges("https://llm.example"),
            issues_tokens=issues_tokens,
        )

    async def ask(
        self,
        path: str = "/oauth/token",
        body: bytes = BODY,
        *headers: tuple[bytes, bytes],
        method: str = "POST",
        query: bytes = b"",
        typed: tuple[tuple[bytes, bytes], ...] = (FORM,),
        **more: Any,
    ) -> "Said":
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 1),
            "client": ("192.0.2.7", 4711),
            "headers": [(b"host", HOST), *typed, *headers],
            **more,
        }
        await self.gate(scope, receive, send)
        return Said(sent)


class Said:
    def __init__(self, sent: list[Any]) -> None:
        self.status: int = sent[0]["status"]
        self.fields: list[tuple[bytes, bytes]] = list(sent[0]["headers"])
        self.headers = dict(self.fields)
        self.body: bytes = b"".join(message.get("body", b"") for message in sent[1:])

    @property
    def error(self) -> str:
        assert self.headers[b"content-type"] == b"application/json"
        document = json.loads(self.body)
        assert document.keys() == {"error", "error_description"}
        error: str = document["error"]
        return error


@pytest.mark.parametrize(("path", "endpoint"), PATHS.items())
def test_server_is_asked_what_the_form_says_and_nobody_is_verified(path: str, endpoint: Any) -> None:
    async def scenario() -> None:
        site = Site()
        basic = (b"authorization", b"Basic YTpi")
        said = await site.ask(path, b"a=1&a=2", basic, **{CLIENT_CERTIFICATE: bytes(32)})
        assert (said.status, said.body) == (200, site.server.says.body)
        assert site.server.asked == [
            TokenRequest(
                endpoint=endpoint,
                form=(("a", "1"), ("a", "2")),
                authorization="Basic YTpi",
                client_certificate_sha256=bytes(32),
            )
        ]
        assert site.world.steps.seen == ["address", "authority"]
        assert site.world.audit.records == []

    run(scenario)


def test_answer_may_not_be_kept_and_says_what_the_server_says() -> None:
    async def scenario() -> None:
        site = Site()
        site.server.says = OAuthAnswer(status=200, body=b"", headers=((b"pragma", b"no-cache"),))
        said = await site.ask("/oauth/revoke", b"token=x")
        assert (said.status, said.body, said.headers[b"content-length"]) == (200, b"", b"0")
        assert said.headers[b"cache-control"] == b"no-store"
        assert said.headers[b"pragma"] == b"no-cache"
        assert said.headers[b"x-content-type-options"] == b"nosniff"
        assert len(said.headers) == len(said.fields)
        assert b"connection" not in said.headers

    run(scenario)


def test_refusal_of_the_server_is_counted_and_told_the_operator_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        site = Site()
        site.server.says = OAuthAnswer(
            status=401, body=b'{"error":"invalid_client"}', refused=Reason.CLIENT_INVALID, detail=SECRET
        )
        with caplog.at_level(logging.INFO):
            said = await site.ask()
        assert said.status == 401
        assert SECRET.encode() not in said.body
        assert site.tally.strangers == {"client-invalid": 1}
        assert [line for line in caplog.messages if "client-invalid" in line and SECRET in line]
        assert site.world.audit.records == []

    run(scenario)


WRONG = [
    ("JSON", {"body": b"{}", "typed": ((b"content-type", b"application/json"),)}, 415, "media-type-unsupported"),
    ("no media type", {"typed": ()}, 415, "media-type-unsupported"),
    ("multipart", {"typed": ((b"content-type", b"multipart/form-data; boundary=x"),)}, 415, "media-type-unsupported"),
    ("UTF-16", {"typed": ((FORM[0], FORM[1] + b"; charset=utf-16"),)}, 415, "media-type-unsupported"),
    ("two types", {"typed": (FORM, FORM)}, 400, "header-invalid"),
    ("compressed", {"typed": (FORM, (b"content-encoding", b"gzip"))}, 415, "media-type-unsupported"),
    ("query", {"query": b"grant_type=client_credentials"}, 400, "oauth-request-invalid"),
    ("token in the query", {"query": b"access_token=x"}, 400, "token-misplaced"),
    ("no form", {"body": b"grant_type"}, 400, "oauth-request-invalid"),
    ("proof", {"typed": (FORM, (b"dpop", b"x"))}, 400, "oauth-request-invalid"),
    ("too long", {"body": b"a=" + b"x" * MAX_FORM_BYTES}, 413, "body-too-large"),
    ("too long by its word", {"typed": (FORM, (b"content-length", b"16385"))}, 413, "body-too-large"),
    ("two credentials", {"typed": (FORM, *[(b"authorization", b"Basic YTpi")] * 2)}, 400, "token-misplaced"),
    *[(method, {"method": method}, 405, "method-not-allowed") for method in ("GET", "HEAD", "OPTIONS", "PUT", "post")],
    ("TRACE", {"method": "TRACE"}, 405, "method-not-allowed"),
]


@pytest.mark.parametrize(("request_", "status", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_no_form_never_reaches_the_server(request_: dict[str, Any], status: int, code: str) -> None:
    async def scenario() -> None:
        site = Site()
        said = await site.ask(**request_)
        assert (said.status, said.error) == (status, "invalid_request")
        assert site.server.asked == []
        assert site.tally.strangers == {code: 1}
        assert b"www-authenticate" not in said.headers
        assert said.headers[b"connection"] == b"close"

    run(scenario)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("headers", [(), ((b"authorization", b"Bearer good"),)], ids=["stranger", "with a token"])
def test_other_methods_are_told_the_one_there_is(method: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    async def scenario() -> None:
        said = await Site().ask("/oauth/token", BODY, *headers, method=method)
        assert (said.status, said.headers[b"allow"]) == (405, b"POST")

    run(scenario)


@pytest.mark.parametrize(
    "value", [b"application/x-www-form-urlencoded; charset=UTF-8", b"Application/X-WWW-Form-Urlencoded"]
)
def test_spelling_of_the_media_type_does_not_matter(value: bytes) -> None:
    async def scenario() -> None:
        assert (await Site().ask(typed=((b"content-type", value),))).status == 200

    run(scenario)


def test_metadata_are_there_for_everybody_and_to_be_read_only() -> None:
    async def scenario() -> None:
        site = Site()
        said = await site.ask(METADATA_PATH, b"", method="GET", typed=())
        assert (said.status, said.body) == (200, site.server.metadata)
        assert said.headers[b"content-type"] == b"application/json"
        assert (await site.ask(METADATA_PATH, b"")).status == 401

    run(scenario)


@pytest.mark.parametrize("path", [*PATHS, METADATA_PATH])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_where_no_tokens_are_issued_the_paths_are_as_unknown_as_any(path: str, method: str) -> None:
    async def scenario() -> None:
        site = Site(issues_tokens=False)
        said = await site.ask(path, method=method)
        assert said.status == 401
        assert said.headers[b"www-authenticate"].startswith(b'Bearer realm="paddock"')
        known = await site.ask(path, BODY, (b"authorization", b"Bearer good"), method=method)
        assert known.status in {404, 405}
        assert site.server.asked == []

    run(scenario)


@pytest.mark.parametrize(
    "path", ["/oauth", "/oauth/token/x", "/oauth/Token", "/oauth/authorize", "/token", "/v1/models"]
)
def test_nothing_beside_the_endpoints_is_open(path: str) -> None:
    async def scenario() -> None:
        site = Site()
        assert (await site.ask(path)).status == 401
        assert site.world.steps.seen == ["address"]
        assert site.server.asked == []

    run(scenario)


def test_no_more_are_answered_at_once_than_there_is_room_for_and_room_comes_back() -> None:
    async def scenario() -> None:
        site = Site()
        site.world.steps.hold = "authority"
        waiting = [asyncio.create_task(site.ask()) for _ in range(MAX_UNDER_WAY)]
        await until(lambda: site.world.steps.seen.count("authority") == MAX_UNDER_WAY)
        said = await site.ask()
        assert (said.status, said.error, said.headers[b"retry-after"]) == (503, "temporarily_unavailable", b"1")
        site.world.steps.go.set()
        assert {one.status for one in await asyncio.gather(*waiting)} == {200}
        assert (await site.ask()).status == 200

    run(scenario)


@pytest.mark.parametrize("failure", [Fault(SECRET), RuntimeError(SECRET)], ids=repr)
def test_failure_of_the_server_is_a_503_that_says_nothing_and_keeps_no_place(failure: Exception) -> None:
    async def scenario() -> None:
        site = Site()
        site.world.steps.fail["authority"] = failure
        for _ in range(MAX_UNDER_WAY + 1):
            said = await site.ask()
            assert (said.status, said.error) == (503, "temporarily_unavailable")
            assert b"paddock of" not in said.body
        del site.world.steps.fail["authority"]
        assert (await site.ask()).status == 200

    run(scenario)


def test_address_that_asks_too_often_does_not_reach_the_server() -> None:
    async def scenario() -> None:
        site = Site()
        site.world.steps.fail["address"] = Fault("the limiter failed")
        assert (await site.ask()).status == 503
        assert site.server.asked == []

    run(scenario)
