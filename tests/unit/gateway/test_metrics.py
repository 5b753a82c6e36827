"""The page of metrics: who may not read it, what a runner cannot do to it, and what it never says."""

import re
from typing import Any

import msgspec
import pytest

from appliance.core.records import Actor
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, EngineFigures, RunnerReport
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.pipeline import actor_of
from appliance.gateway.slots import Slots
from appliance.gateway.tally import Tally
from tests.fakes.policy import DENIED
from tests.fakes.world import World
from tests.support.made_values import ALICE
from tests.support.scenario import run

FIELDS = tuple(field.name for field in msgspec.structs.fields(EngineFigures))
SAMPLE = re.compile(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+\})? ([0-9.e+-]+)')
WATCHING: dict[str, Any] = {"route": "/metrics", "method": "GET"}


def figures(first: int = 1) -> EngineFigures:
    """Every number another."""
    return EngineFigures(**{name: first + place for place, name in enumerate(FIELDS)})


def report(
    name: str = "demo", digest: Digest | None = None, said: EngineFigures | None = None, *, silent: bool = False
) -> RunnerReport:
    told = None if silent else said or figures()
    return RunnerReport(model_name=name, model_digest=digest or Digest.of(b"demo"), figures=told)


def samples(page: str) -> dict[str, float]:
    """Series -> number. Every line must be one that the format knows, every family described once and before its
    samples, no series there twice."""
    found: dict[str, float] = {}
    described: dict[str, str] = {}
    for line in page.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in described
            described[name] = ""
        elif line.startswith("# TYPE "):
            _hash, _type, name, kind = line.split(" ")
            assert described[name] == ""
            described[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name = match[1]
            if described.get(name) is None:
                name = re.sub("_(sum|count)$", "", name)
                assert described[name] == "summary"
            assert (described[name] == "counter") == name.endswith("_total")
            series = match[1] + (match[2] or "")
            assert series not in found
            found[series] = float(match[3])
    return found


async def page_of(*reports: RunnerReport, refusals: Tally | None = None, slots: Slots | None = None) -> str:
    world = World()
    world.models.told = reports
    page = MetricsPage(world.pipeline, refusals or Tally(), slots or Slots(1))
    return await page.text(world.exchange(**WATCHING))


def test_every_number_of_a_runner_is_on_the_page_once() -> None:
    async def scenario() -> None:
        digest = Digest.of(b"demo")
        series = samples(await page_of(report()))
        of_runner = {name: number for name, number in series.items() if name.startswith("paddock_runner_")}
        assert all(name.endswith(f'{{model="demo",digest="{digest.hex[:12]}"}}') for name in of_runner)
        assert set(of_runner.values()) == set(msgspec.structs.asdict(figures()).values())
        labels = f'{{model="demo",digest="{digest.hex[:12]}"}}'
        assert series[f"paddock_runner_answer_tokens_total{labels}"] == figures().answer_tokens
        assert series[f"paddock_runner_first_token_seconds_sum{labels}"] == figures().first_token_seconds
        assert series[f"paddock_runner_first_token_seconds_count{labels}"] == figures().answered

    run(scenario)


def test_nobody_whom_policy_does_not_let_reads_it_and_no_runner_is_asked_for_them() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = {**DENIED, "reasons": ["no-group-permits-metrics"]}
        exchange = world.exchange(**WATCHING)
        with pytest.raises(Refused) as caught:
            await MetricsPage(world.pipeline, Tally(), Slots(1)).text(exchange)
        assert caught.value.reason is Reason.POLICY_DENIED
        assert "reports" not in world.steps.seen
        assert world.policy.inputs[0]["action"] == {"operation": "metrics", "method": "GET", "route": "/metrics"}
        assert world.policy.inputs[0]["model"] is None
        await world.pipeline.record_refusal(exchange, caught.value)
        (record,) = world.audit.refused
        assert (record.reason, record.route, record.detail) == ("policy-denied", "/metrics", "no-group-permits-metrics")
        assert record.decision is not None
        assert record.policy_input == world.policy.inputs[0]

    run(scenario)


def test_runner_that_said_nothing_is_counted_and_keeps_nothing_from_the_page() -> None:
    async def scenario() -> None:
        series = samples(await page_of(report("mute", silent=True), report("demo")))
        assert series['paddock_runners{state="silent"}'] == 1
        assert series['paddock_runners{state="answered"}'] == 1
        assert not [name for name in series if "mute" in name]
        nobody = samples(await page_of())
        assert not [name for name in nobody if name.startswith("paddock_runner_")]

    run(scenario)


def test_runners_with_the_same_labels_are_no_series_twice() -> None:
    async def scenario() -> None:
        other = Digest(hex=Digest.of(b"demo").hex[:12] + "0" * 52)
        series = samples(await page_of(report(said=figures(1)), report(digest=other, said=figures(100))))
        (tokens,) = [number for name, number in series.items() if "answer_tokens" in name]
        assert tokens == figures(1).answer_tokens + figures(100).answer_tokens

    run(scenario)


@pytest.mark.parametrize("name", ['a"} 1\npaddock_refusals_total{reason="internal', "back\\slash", "new\nline", "🦉"])
def test_name_of_a_model_writes_no_line_of_its_own(name: str) -> None:
    async def scenario() -> None:
        assert samples(await page_of(report(name))).keys() - samples(await page_of()).keys()
        assert (await page_of(report(name))).count("\n") == (await page_of(report("demo"))).count("\n")

    run(scenario)


@pytest.mark.parametrize("number", [0, 2**53])
def test_extreme_numbers_are_still_numbers(number: int) -> None:
    async def scenario() -> None:
        said = EngineFigures(**dict.fromkeys(FIELDS, number))
        series = samples(await page_of(report(said=said), report(said=said)))
        assert {value for name, value in series.items() if name.startswith("paddock_runner_")} == {2.0 * number}

    run(scenario)


def test_nothing_of_who_asks_is_on_the_page() -> None:
    async def scenario() -> None:
        refusals, slots = Tally(), Slots(2)
        refusals.count(actor_of(ALICE), Reason.RATE_LIMITED)
        with slots.taken(ALICE.key):
            page = await page_of(report(), refusals=refusals, slots=slots)
        series = samples(page)
        assert series["paddock_requests_in_flight"] == 1
        assert series['paddock_refusals_total{reason="rate-limited"}'] == 1
        for secret in (ALICE.key, ALICE.subject, ALICE.client_id, ALICE.issuer, *ALICE.groups):
            assert secret not in page

    run(scenario)


def test_totals_of_refusals_do_not_fall_when_a_summary_takes_the_counts() -> None:
    refusals = Tally()
    actor: Actor = actor_of(ALICE)
    refusals.strangers["token-missing"] += 2
    refusals.count(actor, Reason.RATE_LIMITED)
    refusals.recorded(Reason.POLICY_DENIED)
    before = refusals.totals()
    assert before == {"token-missing": 2, "rate-limited": 1, "policy-denied": 1}
    assert sum(sum(summary.counts.values()) for summary in refusals.take(60)) == 3  # the fourth has its own record
    assert refusals.totals() == before
    refusals.strangers["token-missing"] += 1
    refusals.count(actor, Reason.RATE_LIMITED)
    assert refusals.totals() == {"token-missing": 3, "rate-limited": 2, "policy-denied": 1}
    assert len(refusals.take(60)) == 2
