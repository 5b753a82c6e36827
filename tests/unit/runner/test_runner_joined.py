"""Speculation, grammars that search, choices, cancels, kept prefixes and a full cache, all at once and by chance.

The context is a book of what was decoded: it refuses what llama.cpp would abort at or compute nonsense from, gives
logits that follow from the text alone, and overwrites them at each decode. So an answer must be what it is alone.
"""

import random
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import Sampling
from appliance.runner.engine import search, searches
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Row
from appliance.runner.engine.constraint import CompiledConstraint, compile_constraint
from appliance.runner.engine.model import Model
from appliance.runner.engine.speculation import Text
from appliance.runner.engine.speculation_lookup import Lookup
from appliance.runner.engine.steps import Event, Job, Stepper
from tests.support.random_model import random_model
from tests.unit.runner.test_runner_steps import load

SLOTS, CONTEXT_TOKENS, BATCH_TOKENS = 4, 96, 48
GRAMMARS = (None, None, None, "root ::= [a-m]+", 'root ::= ("ab" | "ba" | "c" [d-k]*)+ "."')
WAYS = (
    Sampling(temperature=0.0),
    Sampling(seed=7, top_k=40),
    Sampling(seed=8, top_k=0, temperature=1.5, logprobs=3),
    Sampling(seed=9, repeat_penalty=0.8, presence_penalty=-0.5, repeat_last_n=16),
    Sampling(seed=10, mirostat=2),
)


class Book:
    """A ``Context`` without a model."""

    slots, context_tokens, stream_cells = SLOTS, CONTEXT_TOKENS, CONTEXT_TOKENS
    batch_tokens, can_cut = BATCH_TOKENS, True

    def __init__(self, vocabulary_tokens: int, dice: random.Random | None = None) -> None:
        self.texts: list[list[int]] = [[] for _ in range(SLOTS)]
        self._dice = dice
        self._rows = np.zeros((SLOTS + SPECULATED_ROWS, vocabulary_tokens), np.float32)

    def decode(self, batch: Batch) -> int:
        self._rows[:] = np.nan
        if self._dice and self._dice.random() < 0.01:
            return 1
        slots = [batch._pointers.index(int(pointer)) for pointer in batch._sequence[: batch.size]]
        assert slots == sorted(slots)
        row = 0
        for place, slot in enumerate(slots):
            text = self.texts[slot]
            assert batch._position[place] == len(text) < CONTEXT_TOKENS
            text.append(int(batch._token[place]))
            if batch._output[place]:
                self._rows[row] = _logits(text, self._rows.shape[1])
                row += 1
        self.wanted = row
        return 0

    def logits(self, rows: int) -> Row:
        assert rows == self.wanted
        return self._rows[:rows]

    def forget(self, slot: int, kept: int = 0) -> None:
        assert kept <= len(self.texts[slot])
        del self.texts[slot][kept:]

    def copy(self, source: int, slot: int) -> None:
        self.texts[slot] = list(self.texts[source])


def _logits(text: list[int], size: int) -> Row:
    return np.random.default_rng(text[-2:]).normal(0, 6, size).astype(np.float32)


class Chancy(Lookup):
    """Looks up, or knows most of what is likeliest, by turns."""

    def __init__(self, dice: random.Random, vocabulary_tokens: int) -> None:
        super().__init__()
        self._dice = dice
        self._vocabulary_tokens = vocabulary_tokens

    def _of(self, index: object, answer: list[int], length: int) -> list[int]:
        found = super()._of(index, answer, length)  # type: ignore[arg-type]
        if found and self._dice.random() < 0.5:
            return found
        text, guess = list(answer), []
        for _ in range(length):
            text.append(int(_logits(text, self._vocabulary_tokens).argmax()))
            guess.append(text[-1] if self._dice.random() < 0.8 else self._dice.randrange(self._vocabulary_tokens))
        return guess

    def begin(self, text: Text) -> None:
        assert text.slot not in self._indices
        super().begin(text)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    made = load(random_model())
    yield made
    made.close()


@pytest.fixture
def slow_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "SEARCH_TOKENS", 60)
    monkeypatch.setattr(search, "LOOK_TOKENS", 40)
    monkeypatch.setattr(search, "LEAST_LOOK", 10)


def drawn_request(dice: random.Random, name: str, model: Model, stepper: Stepper, seed_of: dict[str, int]) -> list[Job]:
    """The same each time that it is asked for by its name."""
    dice = random.Random(seed_of.setdefault(name, dice.randrange(2**32)))
    start = [60 + dice.randrange(2)] * 20 if dice.random() < 0.7 else []
    prompt = np.array(start + [dice.randrange(5, 300) for _ in range(dice.randrange(1, 30))], np.int32)
    room = CONTEXT_TOKENS - len(prompt)
    grammar = dice.choice(GRAMMARS)
    sampling = dice.choice(WAYS)
    if grammar is None and dice.random() < 0.5:
        sampling = msgspec.structs.replace(sampling, ignore_eos=True)
    made: CompiledConstraint | None = None
    if grammar is not None:
        made = compile_constraint(model, stepper.vocabulary, grammar)
    max_tokens = dice.choice([1, 2, 9, room, room])
    principal, partition = dice.choice("ab"), dice.choice(["", "p", "q"])
    return [
        Job(name, prompt, sampling, max_tokens, principal=principal, partition=partition, choice=choice,
            constraint=made.clone() if made else None)
        for choice in range(dice.choice([1, 1, 3]))
    ]  # fmt: skip


def check(stepper: Stepper, book: Book) -> None:
    stepper._slots.settle()
    for sequence in stepper._slots.active:
        text = book.texts[sequence.slot]
        assert len(text) == sequence.position
        assert text == sequence.computed.tolist()
        assert stepper._slots._streams.holds(sequence.slot) == len(text)
        assert (sequence.search is not None) == (str(sequence.number) in stepper._searches._rounds)
    busy = {sequence.slot for sequence in stepper._slots.active}
    for slot in set(range(SLOTS)) - busy:
        assert stepper._slots._streams.holds(slot) == len(book.texts[slot])
    assert stepper.figures().used_cells == sum(map(len, book.texts))


@pytest.mark.parametrize("seed", range(4))
def test_answer_is_the_same_alone_and_in_the_worst_company(model: Model, seed: int, slow_searches: None) -> None:
    dice = random.Random(seed)
    book = Book(model.vocabulary_tokens, dice)
    stepper = Stepper(model, book, drafter=Chancy(dice, model.vocabulary_tokens))  # type: ignore[arg-type]
    seeds: dict[str, int] = {}
    names = [f"r{number}" for number in range(14)]
    jobs: list[Job] = []
    told: dict[tuple[str, int], list[Event]] = {}
    left = list(names)
    searched = False
    for _ in range(3000):
        if left and dice.random() < 0.3:
            made = drawn_request(dice, left.pop(), model, stepper, seeds)
            jobs += made
            stepper.add(0.0, *made)
        if jobs and dice.random() < 0.02:
            dice.choice(jobs).cancelled = True
        if not left and not stepper.busy:
            break
        take(stepper, told)
        check(stepper, book)
        searched = searched or bool(stepper._searches)
    assert not stepper.busy
    assert not stepper._searches
    assert not stepper._slots._queue._accounts or all(
        account.idle for account in stepper._slots._queue._accounts.values()
    )
    assert 0 < stepper.figures().accepted_tokens < stepper.figures().proposed_tokens
    assert searched
    for job in jobs:
        events = told[job.request_id, job.choice]
        assert [bool(event.ended) for event in events] == [False] * (len(events) - 1) + [True]
    stepper.close()
    for name in names:
        plain = Stepper(model, Book(model.vocabulary_tokens))  # type: ignore[arg-type]
        plain.add(0.0, *drawn_request(dice, name, model, plain, seeds))
        alone: dict[tuple[str, int], list[Event]] = {}
        while plain.busy:
            take(plain, alone)
        for key, events in alone.items():
            ours, whole = told[key], [(event.token, event.ended, event.logprobs) for event in events]
            if ours[-1].ended in {"cancelled", "error"}:
                ours, whole = ours[:-1], whole[: len(ours) - 1]
            assert [(event.token, event.ended, event.logprobs) for event in ours] == whole


def take(stepper: Stepper, told: dict[tuple[str, int], list[Event]]) -> None:
    for event in stepper.step(0.0):
        if not event.begun:
            told.setdefault((event.job.request_id, event.job.choice), []).append(event)
    stepper.timed(0.0, 0.0)
