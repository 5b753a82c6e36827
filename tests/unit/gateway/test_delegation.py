"""Nobody speaks of a user but a service that may, in its own header, once; and its users are not counted one by one."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from appliance.core.claims import principal_key
from appliance.core.delegation import OPENWEBUI_JWT, USER_TOKEN
from appliance.core.records import RefusedRequest
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import ActingParty, VerifiedClaims
from appliance.gateway.delegation import Delegate, Delegates, Users
from appliance.gateway.gate import Gate, exchange_of
from appliance.gateway.pipeline import actor_of
from appliance.gateway.slots import Slots
from appliance.gateway.tally import Tally
from tests.fakes.delegation import FakeDelegation
from tests.fakes.rates import FakeRates
from tests.fakes.world import NOW, World
from tests.support.made_values import ALICE, CLAIMS
from tests.support.scenario import run, until

HOST = b"gate.example"
TOGETHER = 3
MOST = 10
Headers = tuple[tuple[bytes, bytes], ...]


class Site:
    """A gate with one service, ``webui``, whose token is the one that the world's verifier knows."""

    def __init__(self) -> None:
        self.world = World()
        self.world.verifier.claims = msgspec.structs.replace(CLAIMS, subject="webui", client_id="webui")
        self.service_key = principal_key(CLAIMS.issuer, "webui")
        self.delegation = FakeDelegation(self.world.steps, "webui")
        self.rates = FakeRates(self.world.steps)
        self.together = Slots(TOGETHER)
        self.slots = Slots(2)
        self.routed: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()
        self.sent: list[Any] = []
        self.gate = Gate(
            self._inner,
            self.world.pipeline,
            verifier=self.world.verifier,
            addresses=self.world.addresses,
            rates=self.world.rates,
            slots=self.slots,
            refusals=Tally(),
            allowed_hosts=frozenset({HOST.decode()}),
            now_seconds=lambda: NOW,
            delegates=Delegates([Delegate(self.delegation, self.rates, self.together, Users(MOST, 3600))]),
        )

    async def _inner(self, scope: Any, _receive: Any, send: Any) -> None:
        self.routed.append(exchange_of(scope, "/v1/models"))
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask(self, *headers: tuple[bytes, bytes], path: bytes = b"/v1/models") -> tuple[int, str]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope = {
            "type": "http",
            "method": "GET",
            "path": path.decode(),
            "raw_path": path,
            "query_string": b"",
            "http_version": "1.1",
            "client": ("192.0.2.7", 4711),
            "headers": [(b"host", HOST), (b"authorization", b"Bearer good"), *headers],
        }
        await self.gate(scope, receive, send)
        self.sent = sent
        status: int = sent[0]["status"]
        return status, "" if status == 200 else json.loads(sent[1]["body"])["error"]["code"]

    @property
    def refused(self) -> list[RefusedRequest]:
        return [record for record in self.world.audit.records if isinstance(record, RefusedRequest)]


def test_user_is_the_principal_and_the_service_acts() -> None:
    async def scenario() -> None:
        site = Site()
        assert await site.ask((USER_TOKEN, b"good alice")) == (200, "")
        [exchange] = site.routed
        made = exchange.principal
        assert (made.issuer, made.subject, made.groups) == (FakeDelegation.issuer, "alice", ("staff",))
        assert [(one.subject, one.client_id, one.groups) for one in made.acting] == [("webui", "webui", CLAIMS.groups)]
        assert site.world.steps.seen == ["address", "verify", "rate", "user", "rate"]
        assert site.rates.counted == [site.service_key]
        assert site.world.rates.counted == [principal_key(FakeDelegation.issuer, "alice")]

    run(scenario)


def test_service_that_names_nobody_asks_for_itself() -> None:
    async def scenario() -> None:
        site = Site()
        assert (await site.ask())[0] == 200
        assert (site.routed[0].principal.key, site.routed[0].principal.acting) == (site.service_key, ())
        assert (site.rates.counted, site.world.rates.counted) == ([], [site.service_key])

    run(scenario)


WRONG: dict[str, Headers] = {
    "not a good one": ((USER_TOKEN, b"bad"),),
    "an empty one": ((USER_TOKEN, b""),),
    "two": ((USER_TOKEN, b"good alice"), (USER_TOKEN, b"good alice")),
    "two different": ((USER_TOKEN, b"good alice"), (USER_TOKEN, b"good bob")),
    "another form's": ((OPENWEBUI_JWT, b"good alice"),),
    "both forms": ((USER_TOKEN, b"good alice"), (OPENWEBUI_JWT, b"good alice")),
    "both forms, the other first": ((OPENWEBUI_JWT, b"good alice"), (USER_TOKEN, b"good alice")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_word_about_a_user_is_refused_and_recorded_of_the_service(name: str) -> None:
    async def scenario() -> None:
        site = Site()
        assert await site.ask(*WRONG[name]) == (403, "delegation-refused")
        assert site.routed == []
        [record] = site.refused
        assert (record.reason, record.actor.subject, record.actor.acting) == ("delegation-refused", "webui", ())
        assert site.rates.counted == [site.service_key]  # a record has been paid for
        assert not any(name == b"www-authenticate" for name, _value in site.sent[0]["headers"])

    run(scenario)


@pytest.mark.parametrize("header", [USER_TOKEN, OPENWEBUI_JWT])
def test_word_of_anybody_else_is_refused_and_counts_to_that_ones_rate(header: bytes) -> None:
    async def scenario() -> None:
        site = Site()
        site.world.verifier.claims = CLAIMS
        assert await site.ask((header, b"good bob")) == (403, "delegation-refused")
        assert site.routed == []
        assert [record.actor.subject for record in site.refused] == ["alice"]
        assert site.world.rates.counted == [ALICE.key]
        assert site.delegation.asked == []

    run(scenario)


def test_without_a_delegation_there_is_no_word_at_all() -> None:
    async def scenario() -> None:
        site = Site()
        site.gate._delegates = Delegates()
        assert await site.ask((USER_TOKEN, b"good bob")) == (403, "delegation-refused")
        assert site.routed == []

    run(scenario)


@pytest.mark.parametrize("kind", [b"id", b"name", b"email", b"role"])
def test_unsigned_word_is_taken_away_and_the_service_asks_for_itself(kind: bytes) -> None:
    async def scenario() -> None:
        site = Site()
        assert (await site.ask((b"x-openwebui-user-" + kind, b"good bob")))[0] == 200
        assert site.routed[0].principal.key == site.service_key
        assert site.gate.refusals.stripped_headers == 1

    run(scenario)


def test_made_up_users_have_one_rate_together() -> None:
    async def scenario() -> None:
        site = Site()
        for number in range(5):
            assert (await site.ask((USER_TOKEN, b"good user-%d" % number)))[0] == 200
        assert site.rates.counted == [site.service_key] * 5
        assert len(set(site.world.rates.counted)) == 5

        async def exhausted(_key: str) -> None:
            raise Refused(Reason.RATE_LIMITED, retry_after_seconds=7)

        site.rates.admit = exhausted  # type: ignore[method-assign]
        assert await site.ask((USER_TOKEN, b"good user-6")) == (429, "rate-limited")
        [summary] = site.gate.refusals.take(60)
        assert summary.actor.subject == "webui"  # type: ignore[union-attr]
        assert site.refused == []

    run(scenario)


def test_made_up_users_have_one_number_of_places_together() -> None:
    async def scenario() -> None:
        site = Site()
        site.go.clear()
        waiting = [asyncio.create_task(site.ask((USER_TOKEN, b"good user-%d" % n))) for n in range(TOGETHER)]
        await until(lambda: len(site.routed) == TOGETHER)
        assert await site.ask((USER_TOKEN, b"good one-more")) == (429, "too-many-streams")
        site.go.set()
        assert await asyncio.gather(*waiting) == [(200, "")] * TOGETHER
        assert (site.together.under_way, site.slots.under_way) == (0, 0)
        assert (await site.ask((USER_TOKEN, b"good one-more")))[0] == 200

    run(scenario)


def test_made_up_users_have_an_end() -> None:
    async def scenario() -> None:
        site = Site()
        for number in range(MOST):
            assert (await site.ask((USER_TOKEN, b"good user-%d" % number)))[0] == 200
        assert await site.ask((USER_TOKEN, b"good one-more")) == (429, "rate-limited")
        assert (await site.ask((USER_TOKEN, b"good user-0")))[0] == 200
        [summary] = site.gate.refusals.take(60)
        assert summary.actor.subject == "webui"  # type: ignore[union-attr]

    run(scenario)


def test_window_of_users_ends_and_a_clock_that_is_set_back_ends_none() -> None:
    users = Users(1, 60)
    users.admit("a", 60)
    for now_seconds, retry_seconds in ((60, 60), (119, 1), (0, 120)):
        with pytest.raises(Refused) as caught:
            users.admit("b", now_seconds)
        assert caught.value.retry_after_seconds == retry_seconds
    users.admit("b", 120)
    with pytest.raises(Refused):
        users.admit("a", 120)
    for most, window_seconds in ((0, 60), (1, 0)):
        with pytest.raises(Fault):
            Users(most, window_seconds)


@pytest.mark.parametrize("ended", ["the service's", "the user's"])
def test_request_ends_with_either_of_its_tokens(ended: str) -> None:
    async def scenario() -> None:
        site = Site()
        service = msgspec.structs.replace(site.world.verifier.claims, token_id="the service's")
        site.world.verifier.claims = service

        async def user(_unverified: str, *, now_seconds: int) -> VerifiedClaims:
            return msgspec.structs.replace(CLAIMS, token_id="the user's")

        site.delegation.user = user  # type: ignore[method-assign]
        assert (await site.ask((USER_TOKEN, b"any")))[0] == 200
        [exchange] = site.routed
        assert not exchange.has_ended()
        site.world.verifier.ended.add(ended)
        assert exchange.has_ended()

    run(scenario)


def test_request_with_a_signed_user_ends_with_the_services_token() -> None:
    async def scenario() -> None:
        site = Site()
        assert (await site.ask((USER_TOKEN, b"good alice")))[0] == 200
        site.world.verifier.ended.add(site.world.verifier.claims.token_id)
        assert site.routed[0].has_ended()

    run(scenario)


def test_one_user_has_no_more_places_than_anybody() -> None:
    async def scenario() -> None:
        site = Site()
        site.go.clear()
        waiting = [asyncio.create_task(site.ask((USER_TOKEN, b"good alice"))) for _ in range(2)]
        await until(lambda: len(site.routed) == 2)
        assert await site.ask((USER_TOKEN, b"good alice")) == (429, "too-many-streams")
        site.go.set()
        await asyncio.gather(*waiting)
        assert site.together.under_way == 0

    run(scenario)


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Refused(Reason.ISSUER_UNAVAILABLE, retry_after_seconds=5), (503, "issuer-unavailable")),
        (Fault("down"), (503, "internal")),
        (RuntimeError("down"), (503, "internal")),
    ],
    ids=repr,
)
def test_user_of_whom_nobody_can_tell_is_not_let_in(failure: Exception, answer: tuple[int, str]) -> None:
    async def scenario() -> None:
        site = Site()
        site.world.steps.fail["user"] = failure
        assert await site.ask((USER_TOKEN, b"good alice")) == answer
        assert (site.routed, site.together.under_way) == ([], 0)

    run(scenario)


def test_refusals_of_a_user_are_not_told_of_who_did_not_ask() -> None:
    """A service that asks too often for Alice, and Alice who asks herself, are on record apart."""
    service = ActingParty(issuer=CLAIMS.issuer, subject="webui", client_id="webui")
    by_service = actor_of(msgspec.structs.replace(ALICE, acting=(service,)))
    another = actor_of(msgspec.structs.replace(ALICE, acting=(msgspec.structs.replace(service, subject="agent"),)))
    refusals = Tally()
    for actor in (actor_of(ALICE), by_service, by_service, another):
        refusals.count(actor, Reason.RATE_LIMITED)
    told = [(summary.actor and summary.actor.acting, summary.counts) for summary in refusals.take(60)]
    assert told == [
        ((), {"rate-limited": 1}),
        (by_service.acting, {"rate-limited": 2}),
        (another.acting, {"rate-limited": 1}),
    ]
