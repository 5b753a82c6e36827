"""Nothing is routed without a guarded request of a verified principal, and no error says more than its reason."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from litestar.exceptions import (
    HTTPException,
    InternalServerException,
    MethodNotAllowedException,
    NotFoundException,
    PermissionDeniedException,
    ValidationException,
)
from msgspec import UNSET

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Presented
from appliance.gateway.challenges import METADATA_PATH, Challenges
from appliance.gateway.gate import CLIENT_CERTIFICATE, Gate, exchange_of
from appliance.gateway.slots import Slots
from appliance.gateway.tally import Tally
from tests.fakes.world import NOW, World
from tests.support.made_values import ALICE
from tests.support.scenario import run, until

HOST = b"gate.example"
SLOTS = 2
SECRET = "/var/lib/paddock alice Traceback"
Inner = Callable[[Any, Any, Any], Awaitable[None]]


async def _ok(scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Call:
    """One request at a gate around ``inner``."""

    def __init__(self, world: World, inner: Inner = _ok, challenges: Challenges | None = None) -> None:
        self.sent: list[Any] = []
        self.routed: list[Any] = []

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            self.routed.append(scope)
            await inner(scope, receive, send)

        self.gate = Gate(
            watched,
            world.pipeline,
            verifier=world.verifier,
            addresses=world.addresses,
            rates=world.rates,
            slots=Slots(SLOTS),
            refusals=Tally(),
            allowed_hosts=frozenset({HOST.decode()}),
            now_seconds=lambda: NOW,
            challenges=challenges,
        )

    async def make(
        self,
        *,
        token: str | None = "good",
        path: bytes = b"/v1/models",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        kind: str = "http",
        method: str = "GET",
        **more: Any,
    ) -> None:
        bearer = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        scope = {
            "type": kind,
            "method": method,
            "path": path.decode(),
            "raw_path": path,
            "query_string": b"",
            "http_version": "1.1",
            "client": ("192.0.2.7", 4711),
            "headers": [(b"host", HOST), *bearer, *headers],
            **more,
        }
        await self.gate(scope, self._receive, self._send)

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def code(self) -> str:
        code: str = json.loads(self.sent[1]["body"])["error"]["code"]
        return code


def raising(error: BaseException) -> Inner:
    async def inner(_scope: Any, _receive: Any, _send: Any) -> None:
        raise error

    return inner


# --- the way in -----------------------------------------------------------------------------------------------------


def test_guard_comes_first_then_the_address_then_the_token_then_the_rate() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make(path=b"//v1/models")
        assert world.steps.seen == []
        await call.make()
        assert world.steps.seen == ["address", "verify", "rate"]
        assert world.rates.counted == [ALICE.key]
        assert world.verifier.asked_at == [NOW]
        assert len(call.routed) == 1

    run(scenario)


def test_routed_request_carries_the_principal_and_no_path_of_the_callers() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make(path=b"/v1/models/secret-project")
        exchange = exchange_of(call.routed[0], "/v1/models/{model_id}")
        assert exchange.principal == ALICE
        assert (exchange.peer.address, exchange.method, exchange.opened) == ("192.0.2.7", "GET", False)
        assert exchange.route == "/v1/models/{model_id}"
        assert len(exchange.request_id) == 32

    run(scenario)


@pytest.mark.parametrize("scheme", ["DPoP", "dpop", "DPOP"])
def test_verifier_is_given_everything_that_a_token_may_be_bound_to(scheme: str) -> None:
    async def scenario() -> None:
        world = World()
        headers = ((b"authorization", f"{scheme} good".encode()), (b"dpop", b"the proof"))
        await Call(world).make(token=None, headers=headers, method="POST", **{CLIENT_CERTIFICATE: bytes(32)})
        assert world.verifier.presented == [
            Presented(
                unverified_token="good",
                scheme="dpop",
                unverified_proof="the proof",
                method="POST",
                path="/v1/models",
                client_certificate_sha256=bytes(32),
            )
        ]

    run(scenario)


def test_no_header_is_taken_for_a_certificate() -> None:
    async def scenario() -> None:
        world = World()
        names = (b"x-forwarded-client-cert", b"client-cert", b"x-ssl-client-cert", CLIENT_CERTIFICATE.encode())
        await Call(world).make(headers=tuple((name, b"x" * 32) for name in names))
        assert [one.client_certificate_sha256 for one in world.verifier.presented] == [None]

    run(scenario)


def test_answer_is_stopped_by_what_the_verifier_says_of_its_token() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make()
        exchange = exchange_of(call.routed[0], "-")
        assert not exchange.has_ended()
        world.verifier.ended.add(world.verifier.claims.token_id)
        assert exchange.has_ended()

    run(scenario)


def test_metadata_are_public_only_where_there_are_some() -> None:
    async def scenario() -> None:
        for challenges, status in ((Challenges(), 401), (Challenges("https://llm.example"), 200)):
            for path in (METADATA_PATH, METADATA_PATH + "/x"):
                call = Call(World(), challenges=challenges)
                await call.make(token=None, path=path.encode())
                assert call.status == (status if path == METADATA_PATH else 401)
            call = Call(World(), challenges=challenges)
            await call.make(token=None, path=METADATA_PATH.encode(), method="HEAD")
            assert call.status == 401

    run(scenario)


def test_request_ids_are_new_each_time_and_never_the_callers() -> None:
    async def scenario() -> None:
        call = Call(World())
        for _ in range(3):
            await call.make(headers=((b"x-request-id", b"mine"),))
        ids = {exchange_of(scope, "-").request_id for scope in call.routed}
        assert len(ids) == 3
        assert "mine" not in ids

    run(scenario)


REFUSED = [
    ("no token", {"token": None}, Reason.TOKEN_MISSING),
    ("wrong token", {"token": "bad"}, Reason.TOKEN_INVALID),
    ("empty token", {"token": ""}, Reason.TOKEN_INVALID),
    ("space before the token", {"token": " good"}, Reason.TOKEN_INVALID),
    ("space after the token", {"token": "good "}, Reason.TOKEN_INVALID),
    ("two tokens", {"token": "good, Bearer good"}, Reason.TOKEN_MISPLACED),
    ("two headers", {"headers": ((b"authorization", b"Bearer good"),)}, Reason.TOKEN_MISPLACED),
    ("Basic", {"token": None, "headers": ((b"authorization", b"Basic good"),)}, Reason.TOKEN_INVALID),
    ("two proofs", {"headers": ((b"dpop", b"a"), (b"dpop", b"a"))}, Reason.PROOF_INVALID),
    ("no scheme", {"token": None, "headers": ((b"authorization", b"good"),)}, Reason.TOKEN_INVALID),
    ("empty header", {"token": None, "headers": ((b"authorization", b""),)}, Reason.TOKEN_INVALID),
    ("a tab", {"token": None, "headers": ((b"authorization", b"Bearer\tgood"),)}, Reason.TOKEN_INVALID),
    ("another header", {"token": None, "headers": ((b"x-api-key", b"good"),)}, Reason.TOKEN_MISSING),
    ("a cookie", {"token": None, "headers": ((b"cookie", b"token=good"),)}, Reason.TOKEN_MISSING),
    ("OPTIONS", {"token": None, "method": "OPTIONS"}, Reason.TOKEN_MISSING),
    ("HEAD", {"token": None, "method": "HEAD"}, Reason.TOKEN_MISSING),
    ("unknown path", {"token": None, "path": b"/v1/admin"}, Reason.TOKEN_MISSING),
    ("below the public path", {"token": None, "path": b"/v1/healthz"}, Reason.TOKEN_MISSING),
    ("bad path", {"path": b"/v1/../healthz"}, Reason.PATH_INVALID),
]


@pytest.mark.parametrize(("arguments", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_unidentified_request_is_counted_closed_and_neither_routed_nor_recorded(
    arguments: dict[str, Any], reason: Reason
) -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make(**arguments)
        assert (call.status, call.code) == (reason.status, reason.code)
        assert call.headers[b"connection"] == b"close"
        assert call.routed == []
        assert world.audit.records == []
        assert call.gate.refusals.strangers == {reason.code: 1}

    run(scenario)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_scheme_is_case_insensitive(scheme: bytes) -> None:
    async def scenario() -> None:
        call = Call(World())
        await call.make(token=None, headers=((b"authorization", scheme + b" good"),))
        assert call.status == 200

    run(scenario)


def test_health_needs_no_token_and_carries_no_principal() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make(token=None, path=b"/healthz")
        assert call.status == 200
        assert world.steps.seen == ["address"]
        with pytest.raises(KeyError):
            exchange_of(call.routed[0], "/healthz")

    run(scenario)


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "POST", "DELETE", "get"])
def test_health_is_public_for_nothing_but_get(method: str) -> None:
    async def scenario() -> None:
        call = Call(World())
        await call.make(token=None, path=b"/healthz", method=method)
        assert call.status == 401
        assert call.routed == []

    run(scenario)


@pytest.mark.parametrize("path", [b"/healthz/", b"/healthz/x", b"/Healthz", b"/healthz:", b"/%68ealthz"])
def test_nothing_beside_health_is_public(path: bytes) -> None:
    async def scenario() -> None:
        call = Call(World())
        await call.make(token=None, path=path)
        assert call.status in {400, 401}
        assert call.routed == []

    run(scenario)


@pytest.mark.parametrize(
    ("failure", "status"),
    [(Refused(Reason.ADDRESS_RATE_LIMITED, retry_after_seconds=9), 429), (Fault("the limiter failed"), 503)],
)
def test_address_limiter_that_refuses_or_fails_lets_nobody_through(failure: Exception, status: int) -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["address"] = failure
        call = Call(world)
        await call.make()
        await call.make(path=b"/healthz")
        assert [message["status"] for message in call.sent if "status" in message] == [status, status]
        assert call.routed == []

    run(scenario)


def test_token_without_a_subject_is_nobody() -> None:
    async def scenario() -> None:
        world = World()
        world.verifier.claims = msgspec.structs.replace(world.verifier.claims, subject="")
        call = Call(world)
        await call.make()
        assert (call.status, call.code) == (403, "claim-missing")
        assert call.routed == []

    run(scenario)


@pytest.mark.parametrize(
    "inner",
    [raising(Refused(Reason.JSON_INVALID)), raising(NotFoundException()), _ok],
    ids=["bad body", "no route", "answered"],
)
def test_every_request_of_a_principal_counts_to_its_rate(inner: Inner) -> None:
    async def scenario() -> None:
        world = World()
        for _ in range(3):
            await Call(world, inner).make()
        assert world.rates.counted == [ALICE.key] * 3

    run(scenario)


def test_refusal_for_the_rate_is_counted_for_a_summary_and_not_recorded() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["rate"] = Refused(Reason.RATE_LIMITED, retry_after_seconds=7)
        call = Call(world)
        for _ in range(5):
            await call.make()
        assert (call.status, call.code, call.headers[b"retry-after"]) == (429, "rate-limited", b"7")
        assert call.routed == []
        assert world.audit.records == []
        [summary] = call.gate.refusals.take(60)
        assert (summary.interval_seconds, summary.counts) == (60, {"rate-limited": 5})
        assert summary.actor is not UNSET
        assert (summary.actor.key, summary.actor.subject) == (ALICE.key, "alice")
        assert call.gate.refusals.take(60) == []

    run(scenario)


def test_rate_that_cannot_be_counted_lets_nobody_through() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["rate"] = Fault("the store is down")
        call = Call(world)
        await call.make()
        assert (call.status, call.code, call.routed) == (503, "internal", [])

    run(scenario)


def test_principal_has_no_more_requests_under_way_than_slots_and_keeps_nobody_else_out() -> None:
    async def scenario() -> None:
        world = World()
        go = asyncio.Event()

        async def waiting(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await _ok(scope, receive, send)

        call = Call(world, waiting)
        alices = [asyncio.create_task(call.make()) for _ in range(SLOTS)]
        await until(lambda: len(call.routed) == SLOTS)
        await call.make()
        assert (call.status, call.code, call.headers[b"retry-after"]) == (429, "too-many-streams", b"1")
        assert len(world.rates.counted) == SLOTS
        world.verifier.claims = msgspec.structs.replace(world.verifier.claims, subject="bob")
        bobs = asyncio.create_task(call.make())
        await until(lambda: len(call.routed) == SLOTS + 1)
        go.set()
        await asyncio.gather(*alices, bobs)
        assert world.audit.records == []
        assert [summary.counts for summary in call.gate.refusals.take(60)] == [{"too-many-streams": 1}]

    run(scenario)


@pytest.mark.parametrize(
    "error", [Refused(Reason.POLICY_DENIED), RuntimeError(), OSError(), asyncio.CancelledError()], ids=repr
)
def test_slot_is_free_again_however_a_request_ends(error: BaseException) -> None:
    async def scenario() -> None:
        call = Call(World(), raising(error))
        for _ in range(3 * SLOTS):
            with suppress(asyncio.CancelledError):
                await call.make()
        assert len(call.routed) == 3 * SLOTS

    run(scenario)


# --- the way out ----------------------------------------------------------------------------------------------------

ERRORS: list[tuple[Exception, int, str]] = [
    (Refused(Reason.POLICY_DENIED, SECRET), 403, "policy-denied"),
    (Refused(Reason.MODEL_NOT_FOUND, SECRET), 404, "model-not-found"),
    (Refused(Reason.BUDGET_EXHAUSTED, SECRET), 429, "budget-exhausted"),
    (Refused(Reason.AUDIT_UNAVAILABLE, SECRET), 503, "audit-unavailable"),
    (Fault(SECRET), 503, "internal"),
    (RuntimeError(SECRET), 503, "internal"),
    (KeyError(SECRET), 503, "internal"),
    (AssertionError(SECRET), 503, "internal"),
    (RecursionError(SECRET), 503, "internal"),
    (MemoryError(SECRET), 503, "internal"),
    (TimeoutError(SECRET), 503, "internal"),
    (OSError(13, SECRET), 503, "internal"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, SECRET), 503, "internal"),
    (ExceptionGroup(SECRET, [ValueError(SECRET)]), 503, "internal"),
    (StopAsyncIteration(SECRET), 503, "internal"),
    (NotFoundException(detail=SECRET), 404, "not-found"),
    (MethodNotAllowedException(detail=SECRET, headers={"allow": "GET"}), 405, "method-not-allowed"),
    (ValidationException(detail=SECRET), 400, "field-invalid"),
    (PermissionDeniedException(detail=SECRET), 400, "field-invalid"),
    (InternalServerException(detail=SECRET), 503, "internal"),
    (HTTPException(detail=SECRET, status_code=418), 400, "field-invalid"),
    (HTTPException(detail=SECRET, status_code=599), 503, "internal"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_error_becomes_its_status_and_leaks_nothing(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world, raising(error))
        with caplog.at_level(logging.CRITICAL):
            await call.make()
        assert (call.status, call.code) == (status, code)
        assert not any(word in repr(call.sent) for word in SECRET.split())
        [record] = world.audit.refused
        assert record.reason == code
        assert call.gate.refusals.take(60) == []
        assert b"connection" not in call.headers
        if code == "internal":
            assert call.headers[b"retry-after"] == b"1"

    run(scenario)


def test_unexpected_error_is_told_to_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        await Call(World(), raising(RuntimeError(SECRET))).make()
        assert SECRET in caplog.text

    run(scenario)


def test_refusal_is_recorded_before_it_is_answered() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world, raising(Refused(Reason.POLICY_DENIED)))
        world.steps.watch = lambda name: None if name != "record refused" else _empty(call.sent)
        await call.make()
        assert call.status == 403

    def _empty(sent: list[Any]) -> None:
        assert sent == []

    run(scenario)


def test_refusal_that_cannot_be_recorded_is_answered_as_audit_unavailable() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["record refused"] = Refused(Reason.AUDIT_UNAVAILABLE)
        call = Call(world, raising(Refused(Reason.POLICY_DENIED)))
        await call.make()
        assert (call.status, call.code) == (503, "audit-unavailable")

    run(scenario)


def test_answer_that_began_is_not_answered_again() -> None:
    async def breaking(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    async def scenario() -> None:
        call = Call(World(), breaking)
        await call.make()
        assert [message["type"] for message in call.sent] == ["http.response.start"]

    run(scenario)


def test_client_that_left_while_it_was_refused_is_no_error() -> None:
    async def scenario() -> None:
        call = Call(World())

        async def gone(_message: Any) -> None:
            raise ConnectionResetError

        call._send = gone  # type: ignore[method-assign]
        await call.make(token=None)

    run(scenario)


def test_cancellation_is_not_turned_into_an_answer() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world, raising(asyncio.CancelledError()))
        with pytest.raises(asyncio.CancelledError):
            await call.make()
        assert call.sent == []
        assert world.audit.records == []

    run(scenario)


# --- what is not HTTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["good", None])
def test_websocket_is_refused_and_not_routed(token: str | None) -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.make(kind="websocket", token=token, path=b"/healthz")
        assert [message["type"] for message in call.sent] == ["websocket.close"]
        assert call.routed == []
        assert world.steps.seen == []

    run(scenario)


def test_lifespan_passes() -> None:
    async def scenario() -> None:
        world = World()
        call = Call(world)
        await call.gate({"type": "lifespan"}, call._receive, call._send)
        assert call.routed == [{"type": "lifespan"}]
        assert world.steps.seen == []

    run(scenario)
