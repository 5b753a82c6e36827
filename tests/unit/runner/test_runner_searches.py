"""A draw that takes long is paid for by who asked for it: what a step asks of grammars is bounded, and nobody waits.

All counted in tokens that grammars are asked about and in steps; no clock.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.ipc.messages import Load
from appliance.runner.engine import search, searches
from appliance.runner.engine.constraint import CompiledConstraint, compile_constraint
from appliance.runner.engine.context import Context
from appliance.runner.engine.jobs import Event, Job
from appliance.runner.engine.model import Model
from appliance.runner.engine.steps import Stepper
from tests.support.wordy_model import FIRST_WORD, wordy_model

VOCABULARY = 6000
SEARCH_TOKENS, LOOK_TOKENS = 300, 50
FREE = Sampling(temperature=0.0)
GRAMMAR = "root ::= [^e]*"
SLOTS = 4
Hostile = Callable[..., Job]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    descriptor = os.open(wordy_model(tmp_path_factory.mktemp("wordy"), VOCABULARY), os.O_RDONLY)
    made = Model.load(descriptor)
    os.close(descriptor)
    yield made
    made.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens grammars were asked about, look by look; the bounds are small, so that a search takes steps."""
    monkeypatch.setattr(searches, "SEARCH_TOKENS", SEARCH_TOKENS)
    monkeypatch.setattr(search, "LOOK_TOKENS", LOOK_TOKENS)
    monkeypatch.setattr(search, "LEAST_LOOK", LOOK_TOKENS)
    looks: list[int] = []
    allowed = CompiledConstraint.allowed
    monkeypatch.setattr(
        CompiledConstraint, "allowed", lambda self, ids: (looks.append(len(ids)), allowed(self, ids))[1]
    )
    return looks


@pytest.fixture
def stepper(model: Model) -> Iterator[Stepper]:
    context = Context(model, Load(runner_id="r", context_tokens=512, slots=SLOTS, threads=1, batch_tokens=64))
    with contextlib.closing(context):
        yield Stepper(model, context)


@pytest.fixture
def hostile(model: Model, stepper: Stepper) -> Hostile:
    """Jobs that want what the grammar refuses, and much."""
    refused = [token for token in range(FIRST_WORD, VOCABULARY) if b"e" in model.piece(token)][:500]
    wanting = Sampling(
        seed=1, top_k=1000, top_p=1.0, min_p=0.0, temperature=2.0, logit_bias=tuple((token, 100.0) for token in refused)
    )

    def make(request_id: str, principal: str = "mallory", grammar: str = GRAMMAR) -> Job:
        return Job(request_id, np.full(4, 100, np.int32), wanting, 50, principal=principal,
                   constraint=compile_constraint(model, stepper.vocabulary, grammar))  # fmt: skip

    return make


def innocent(request_id: str = "innocent", max_tokens: int = 60) -> Job:
    return Job(request_id, np.full(5, 101, np.int32), FREE, max_tokens, principal="alice")


def tokens(events: list[Event]) -> Counter[str]:
    return Counter(event.job.request_id for event in events if event.token >= 0)


def test_nobody_waits_for_a_grammar_that_is_not_theirs(stepper: Stepper, asked: list[int], hostile: Hostile) -> None:
    for number in range(SLOTS - 1):
        stepper.add(0.0, hostile(f"h{number}"))
    stepper.add(0.0, innocent(max_tokens=200))
    told: Counter[str] = Counter()
    for _step in range(200):
        asked.clear()
        events = stepper.step(0.0)
        assert sum(asked) < SEARCH_TOKENS + LOOK_TOKENS
        assert tokens(events)["innocent"] == 1
        told += tokens(events)
    slow = [told[f"h{number}"] for number in range(SLOTS - 1)]
    assert all(0 < count < 100 for count in slow)  # they come on, by steps that are theirs


def test_search_of_one_principal_does_not_hold_up_anothers(
    stepper: Stepper, asked: list[int], hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the looks that both want, each principal's are as many, however many requests one has."""
    looks: Counter[int] = Counter()
    look = search.Search.look
    monkeypatch.setattr(search.Search, "look", lambda self: (looks.update([id(self._constraint)]), look(self))[1])
    mallorys, bobs = [hostile(f"h{number}") for number in range(SLOTS - 1)], hostile("other", "bob")
    for job in (*mallorys, bobs):
        stepper.add(0.0, job)
    while not all(sequence.search for sequence in stepper._slots.active) or len(stepper._slots.active) < SLOTS:
        stepper.step(0.0)
    looks.clear()
    for _step in range(5):
        stepper.step(0.0)
        assert all(sequence.search for sequence in stepper._slots.active)
    assert abs(looks[id(bobs.constraint)] - sum(looks[id(job.constraint)] for job in mallorys)) <= 5


def test_slow_draw_alone_is_the_same_as_a_quick_one(
    stepper: Stepper, asked: list[int], hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for bound in (1, SEARCH_TOKENS, 10**9):
        monkeypatch.setattr(searches, "SEARCH_TOKENS", bound)
        job = hostile("h")
        job.max_tokens = 6
        stepper.add(0.0, job)
        if bound == 1:
            stepper.add(0.0, innocent(max_tokens=400))
        told: list[int] = []
        while stepper.busy:
            told += [event.token for event in stepper.step(0.0) if event.token >= 0 and event.job is job]
        answers.append(told)
    assert answers[1] == answers[2]
    assert len(answers[0]) == len(answers[1]) == 6


def test_cancelled_search_does_not_keep_its_slot(stepper: Stepper, asked: list[int], hostile: Hostile) -> None:
    jobs = [hostile(f"h{number}") for number in range(SLOTS)]
    stepper.add(0.0, *jobs)
    stepper.add(0.0, innocent())
    for _step in range(3):
        stepper.step(0.0)
    for job in jobs:
        job.cancelled = True
    events = stepper.step(0.0)
    assert {event.job.request_id for event in events if event.ended == "cancelled"} == {job.request_id for job in jobs}
    assert tokens(stepper.step(0.0) + events)["innocent"] == 2
    while stepper.busy:
        asked.clear()
        stepper.step(0.0)
        assert not asked


def test_full_cache_ends_a_search_like_anything_else(
    stepper: Stepper, asked: list[int], hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "SEARCH_TOKENS", 1)
    job = hostile("h")
    job.prompt = np.full(40, 100, np.int32)
    stepper.add(0.0, job)
    stepper.add(0.0, innocent())
    while not any(sequence.search for sequence in stepper._slots.active):
        stepper.step(0.0)
    monkeypatch.setattr(stepper._context, "decode", lambda batch: 1)
    ended = [event for event in stepper.step(0.0) if event.ended]
    assert [(event.job, event.ended) for event in ended] == [(job, "error")]
    assert not stepper._searches


def test_searching_is_service(stepper: Stepper, asked: list[int], hostile: Hostile) -> None:
    """Who makes grammars search has less of a claim to the next slot."""
    stepper.add(0.0, hostile("h"))
    stepper.add(0.0, innocent())
    told: Counter[str] = Counter()
    while told["h"] < 5:
        told += tokens(stepper.step(0.0))
    stepper._slots.settle()
    services = {name: account.service for name, account in stepper._slots._queue._accounts.items()}
    assert told["innocent"] > 3 * told["h"]
    assert services["mallory"] > 0.8 * services["alice"]


def test_short_searches_add_up(
    stepper: Stepper, asked: list[int], hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them alone costs as much as a token."""
    monkeypatch.setattr(searches, "SEARCH_TOKENS", 10 * VOCABULARY)
    stepper.add(0.0, hostile("h"))
    told: Counter[str] = Counter()
    while told["h"] < 20:
        told += tokens(stepper.step(0.0))
    stepper._slots.settle()
    computed = 4 + 2 * (told["h"] - 1)
    service = stepper._slots._queue._accounts["mallory"].service
    assert service == pytest.approx(computed + 2 * sum(asked) / (10 * VOCABULARY))
    assert sum(asked) > 10 * VOCABULARY / 5
