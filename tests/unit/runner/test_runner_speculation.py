"""Speculation changes how much a step computes, and not one token of an answer."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import numpy as np
import pytest

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import EngineFigures, Sampling
from appliance.ipc.messages import Load
from appliance.runner.engine import searches
from appliance.runner.engine.candidates import Candidates, Row
from appliance.runner.engine.constraint import compile_constraint
from appliance.runner.engine.context import Context
from appliance.runner.engine.jobs import Event, Job
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.native import llama
from appliance.runner.engine.sampling import Sampler
from appliance.runner.engine.speculation import Text, draw_ahead
from appliance.runner.engine.speculation_choice import drafter_for
from appliance.runner.engine.speculation_draft import CATCH_UP_TOKENS, DraftModel
from appliance.runner.engine.speculation_lookup import MOST_PLACES, Lookup, TextIndex
from appliance.runner.engine.speculation_pace import LENGTHS, LONGEST_PAUSE, STALE_STEPS, Costs, Pace
from appliance.runner.engine.steps import Stepper
from appliance.runner.engine.vocabulary import Vocabulary
from tests.support.chain_model import chain_model, long_script
from tests.support.random_model import random_model
from tests.unit.runner.test_runner_steps import load

LOAD = Load(runner_id="r", context_tokens=512, slots=4, threads=1, batch_tokens=128, speculation="lookup")
PROMPT = np.tile(np.arange(60, 110, dtype=np.int32), 2)
Key = tuple[str, int]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    made = load(random_model())
    yield made
    made.close()


class Guesses:
    """A drafter that is told what comes, and what to make of it."""

    def __init__(self, script: dict[int, list[int]] | None = None) -> None:
        self.script = script or {}
        self.texts: dict[int, Text] = {}
        self.asked = 0

    def begin(self, text: Text) -> None:
        assert text.slot not in self.texts
        assert text.answer
        self.texts[text.slot] = text

    def end(self, slot: int) -> None:
        del self.texts[slot]

    def propose(self, texts: Sequence[Text], length: int) -> list[Iterable[int]]:
        self.asked += 1
        assert all(self.texts[text.slot] is text for text in texts)
        return [self.one(text, length) for text in texts]

    def one(self, text: Text, length: int) -> Iterable[int]:
        return self.right(text)[:length]

    def right(self, text: Text) -> list[int]:
        """By its prompt's first token."""
        return self.script[int(text.prompt[0])][len(text.answer) :]

    def try_out(self) -> None:
        pass

    def close(self) -> None:
        pass


class Erring(Guesses):
    """Right for some tokens, and wrong from there on."""

    def __init__(self, script: dict[int, list[int]], seed: int) -> None:
        super().__init__(script)
        self.dice = random.Random(seed)

    def one(self, text: Text, length: int) -> list[int]:
        right = self.right(text)[:length]
        place = self.dice.randint(0, length)
        return right[:place] + [self.dice.randrange(3, 320) for _ in range(length - place)]


class Machine:
    """A stepper, what it answered, and what it computed."""

    def __init__(self, model: Model, drafter: object = None, load: Load = LOAD) -> None:
        self.context = Context(model, load, proposed_tokens=SPECULATED_ROWS if drafter else 0)
        self.stepper = Stepper(model, self.context, drafter=drafter)  # type: ignore[arg-type]
        self.model = model
        self.computed = 0
        self.events: dict[Key, list[Event]] = {}
        decode = self.context.decode

        def counted(batch: object) -> int:
            self.computed += batch.size  # type: ignore[attr-defined]
            return decode(batch)  # type: ignore[arg-type]

        self.context.decode = counted  # type: ignore[method-assign]

    def step(self, seconds_of: Callable[[int], float] = lambda _: 0.0) -> None:
        """``seconds_of`` so many tokens."""
        before = self.computed
        for event in self.stepper.step(0.0):
            if not event.begun:
                self.events.setdefault((event.job.request_id, event.job.choice), []).append(event)
        self.stepper.timed(0.0, seconds_of(self.computed - before))

    def run(self, *jobs: Job) -> dict[Key, list[int]]:
        for job in jobs:
            self.stepper.add(0.0, job)
        while self.stepper.busy:
            self.step()
        return self.texts

    @property
    def texts(self) -> dict[Key, list[int]]:
        return {key: [event.token for event in events if not event.ended] for key, events in self.events.items()}

    @property
    def ends(self) -> dict[Key, str | None]:
        return {key: events[-1].ended for key, events in self.events.items()}

    @property
    def figures(self) -> EngineFigures:
        return self.stepper.figures()

    def close(self) -> None:
        self.stepper.close()
        self.context.close()


def job(name: str, sampling: Sampling, first: int = 60, max_tokens: int = 60, **named: object) -> Job:
    """Each has a prompt of its own, known by its ``first`` token."""
    prompt = np.concatenate([np.array([first], np.int32), PROMPT])
    return Job(name, prompt, sampling, max_tokens, **named)  # type: ignore[arg-type]


def told(machine: Machine) -> dict[Key, list[tuple[object, ...]]]:
    """All that a caller could see, but for log probabilities."""
    return {
        key: [(event.token, event.ended, event.detail) for event in events] for key, events in machine.events.items()
    }


def logprobs(machine: Machine) -> list[float]:
    said = [event.logprobs for event in machine.events["a", 0] if event.logprobs is not None]
    return [number for one in said for number in (one.token, one.logprob, *itertools.chain(*one.alternatives))]


GREEDY = Sampling(temperature=0.0)
WAYS = {
    "greedy": GREEDY,
    "seeded": Sampling(seed=5),
    "penalties": Sampling(seed=5, repeat_penalty=1.3, presence_penalty=0.5, frequency_penalty=-0.2),
    "greedy with penalties": Sampling(temperature=0.0, repeat_penalty=1.3),
    "mirostat": Sampling(seed=5, mirostat=2),
    "log probabilities": Sampling(seed=5, logprobs=3),
    "biases": Sampling(seed=5, logit_bias=((70, 4.0), (71, -100.0)), ignore_eos=True, typical_p=0.9),
}
GRAMMAR = 'root ::= ("ab" | "ba" | "c" [d-k]*)+ "."'


def single(model: Model, *jobs: Job) -> Machine:
    machine = Machine(model)
    machine.run(*jobs)
    machine.close()
    return machine


def constrained(model: Model, machine: Machine, sampling: Sampling) -> Job:
    constraint = compile_constraint(model, machine.stepper.vocabulary, GRAMMAR)
    return job("a", sampling, constraint=constraint)


@pytest.mark.parametrize("way", WAYS)
def test_for_the_same_logits_every_token_and_number_is_the_same(model: Model, way: str) -> None:
    """The theorem, without a model's rounding: the logits behind a text are drawn by chance, from the text."""
    vocabulary = Vocabulary.of(model)
    candidates = Candidates(vocabulary)

    def logits(text: list[int]) -> Row:
        return np.random.default_rng(text[-6:]).normal(0, 3, vocabulary.size).astype(np.float32)

    samplers = [Sampler(WAYS[way], PROMPT, None, candidates) for _ in range(2)]
    dice, text = random.Random(1), PROMPT.tolist()
    for _ in range(60):
        expected, ahead = [], list(text)
        for _ in range(6):
            expected.append(samplers[0].draw(logits(ahead)))
            ahead.append(expected[-1].token)
        while expected:
            proposal = [draw.token for draw in expected[:-1]]
            if proposal and dice.random() < 0.7:
                proposal[dice.randrange(len(proposal))] = dice.randrange(vocabulary.size)
            rows = [logits(text + proposal[:place]) for place in range(len(proposal) + 1)]
            draws = draw_ahead(samplers[1], rows, proposal)
            assert draws == expected[: len(draws)]
            text += [draw.token for draw in draws]
            expected = expected[len(draws) :]
    for sampler in samplers:
        sampler.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", WAYS)
def test_answer_is_the_same_whatever_is_proposed(model: Model, way: str, seed: int) -> None:
    plain = single(model, job("a", WAYS[way]))
    script = {60: plain.texts["a", 0]}
    for drafter in (Guesses(script), Erring(script, seed), Lookup()):
        machine = Machine(model, drafter)
        machine.run(job("a", WAYS[way]))
        assert told(machine) == told(plain)
        assert logprobs(machine) == pytest.approx(logprobs(plain), abs=0.05)
        assert bool(logprobs(machine)) == (way == "log probabilities")
        machine.close()


@pytest.mark.parametrize("way", ["greedy", "seeded", "penalties"])
def test_answer_in_a_form_is_the_same(model: Model, way: str) -> None:
    plain = Machine(model)
    plain.run(constrained(model, plain, WAYS[way]))
    script = {60: plain.texts["a", 0]}
    for drafter in (Guesses(script), Erring(script, 1)):
        machine = Machine(model, drafter)
        machine.run(constrained(model, machine, WAYS[way]))
        assert told(machine) == told(plain)
        assert machine.figures.proposed_tokens > 0
        machine.close()
    plain.close()


def test_right_guesses_save_steps(model: Model) -> None:
    plain = single(model, job("a", GREEDY))
    machine = Machine(model, Guesses({60: plain.texts["a", 0]}))
    machine.run(job("a", GREEDY))
    assert machine.figures.steps < plain.figures.steps / 4
    assert machine.figures.accepted_tokens == machine.figures.proposed_tokens > 50
    assert machine.computed == plain.computed, "nothing was in vain"
    machine.close()


def many(model: Model) -> list[Job]:
    jobs = [job(f"r{n}", WAYS["seeded"], 60 + n, 30 + 3 * n) for n in range(7)]
    choices = [job("n", WAYS["penalties"], 80, 40, choice=number) for number in range(2)]
    return [*jobs, *choices]


@pytest.mark.parametrize("seed", range(3))
def test_many_callers_get_what_each_gets_alone(model: Model, seed: int) -> None:
    plain = single(model, *many(model))
    script = {60 + n: plain.texts[f"r{n}", 0] for n in range(7)} | {80: plain.texts["n", 1]}
    for drafter in (Erring(script, seed), Guesses(script), Lookup()):
        machine = Machine(model, drafter)
        machine.run(*many(model))
        assert told(machine) == told(plain)
        assert machine.figures.used_cells == 0
        machine.close()


def test_two_choices_speculate_each_for_itself(model: Model) -> None:
    jobs = [job("n", WAYS["seeded"], choice=number) for number in range(2)]
    plain = single(model, *jobs)
    assert plain.texts["n", 0] != plain.texts["n", 1]
    machine = Machine(model, Guesses({60: plain.texts["n", 0]}))
    machine.run(*[job("n", WAYS["seeded"], choice=number) for number in range(2)])
    assert told(machine) == told(plain)
    machine.close()


def test_wrong_guesses_cost_little(model: Model) -> None:
    """Only so many in vain, and fewer the longer it goes on."""

    class Wrong(Guesses):
        def one(self, text: Text, length: int) -> list[int]:
            return [(token + 1) % 300 + 10 for token in self.right(text)[:length]]

    plain = single(model, job("a", GREEDY, max_tokens=400))
    machine = Machine(model, Wrong({60: plain.texts["a", 0]}))
    machine.run(job("a", GREEDY, max_tokens=400))
    assert told(machine) == told(plain)
    assert machine.figures.accepted_tokens == 0
    assert 0 < machine.computed - plain.computed == machine.figures.proposed_tokens <= 10
    assert machine.figures.batch_tokens == machine.computed
    machine.close()


@pytest.mark.parametrize(
    "lie",
    [itertools.repeat(320), itertools.repeat(-1), itertools.repeat(2**40), itertools.repeat(2), itertools.repeat(70)],
    ids=["outside the vocabulary", "negative", "no 32 bits", "the end", "endless"],
)
def test_lying_drafter_harms_nobody(model: Model, lie: Iterable[int]) -> None:
    class Lying(Guesses):
        def one(self, text: Text, length: int) -> Iterable[int]:
            return lie

    plain = single(model, job("a", GREEDY))
    machine = Machine(model, Lying())
    machine.run(job("a", GREEDY))
    assert told(machine) == told(plain)
    assert machine.computed - plain.computed <= 10
    machine.close()


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_answer_ends_at_its_length_inside_a_proposal(model: Model, max_tokens: int) -> None:
    script = {60: single(model, job("a", GREEDY, max_tokens=80)).texts["a", 0]}
    machine = Machine(model, Guesses(script))
    machine.run(job("a", GREEDY, max_tokens=max_tokens))
    assert machine.texts["a", 0] == script[60][:max_tokens]
    assert machine.ends["a", 0] == "length"
    assert machine.figures.answer_tokens == max_tokens
    assert machine.figures.used_cells == 0
    machine.close()


def test_answer_may_fill_its_context_to_the_last_cell(model: Model) -> None:
    narrow = msgspec.structs.replace(LOAD, context_tokens=128, slots=1)
    room = 128 - 101
    plain = Machine(model, load=narrow)
    script = {60: plain.run(job("a", GREEDY, max_tokens=room))["a", 0]}
    machine = Machine(model, Guesses(script), narrow)
    machine.run(job("a", GREEDY, max_tokens=room))
    assert told(machine) == told(plain)
    plain.close()
    machine.close()


def test_end_token_inside_a_proposal_ends_the_answer() -> None:
    """The chain model ends its script: what a drafter says behind that is never looked at."""
    chain = load(chain_model(long_script(12)))
    plain = single(chain, job("a", GREEDY))
    script = plain.texts["a", 0]
    assert len(script) == 12
    assert plain.ends["a", 0] == "stop"
    end = int(llama.llama_vocab_eos(llama.llama_model_get_vocab(chain.pointer)))
    for behind in ([end, 70, 71, 72, 73], [70, 71, 72]):
        machine = Machine(chain, Guesses({60: script + behind}))
        machine.run(job("a", GREEDY))
        assert told(machine) == told(plain)
        assert machine.figures.answer_tokens == 12
        machine.close()
    chain.close()


def test_cancelled_one_ends_within_a_step_and_the_others_go_on(model: Model) -> None:
    plain = single(model, job("a", GREEDY), job("b", GREEDY, 61))
    script = {60: plain.texts["a", 0], 61: plain.texts["b", 0]}
    machine = Machine(model, Guesses(script))
    jobs = [job("a", GREEDY), job("b", GREEDY, 61)]
    machine.stepper.add(0.0, jobs[0])
    machine.stepper.add(0.0, jobs[1])
    while not machine.figures.accepted_tokens:
        machine.step()
    jobs[0].cancelled = True
    machine.step()
    assert machine.ends["a", 0] == "cancelled"
    assert machine.run()["b", 0] == script[61]
    said = machine.texts["a", 0]
    assert said == script[60][: len(said)]
    machine.close()


def test_failing_draw_behind_a_right_guess_fails_that_answer_only(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = single(model, job("a", GREEDY), job("b", GREEDY, 61))
    machine = Machine(model, Guesses({60: plain.texts["a", 0], 61: plain.texts["b", 0]}))
    whole = machine.context.logits

    def broken(rows: int) -> np.ndarray:
        logits = np.array(whole(rows))
        if rows == 6:
            logits[1] = np.nan
        return logits

    monkeypatch.setattr(machine.context, "logits", broken)
    machine.run(job("a", GREEDY), job("b", GREEDY, 61))
    assert machine.ends == {("a", 0): "error", ("b", 0): "length"}
    assert machine.texts["b", 0] == plain.texts["b", 0]
    said = machine.texts["a", 0]
    assert said == plain.texts["a", 0][: len(said)]
    assert machine.figures.used_cells == 0
    machine.close()


# --- what is kept, and what is counted --------------------------------------------------------------------------------


@pytest.mark.parametrize("sliding_window", [0, 24])
@pytest.mark.parametrize("seed", range(4))
def test_kept_prefix_has_nothing_that_was_rejected(seed: int, sliding_window: int) -> None:
    model = load(random_model(sliding_window))
    plain = single(model, job("a", GREEDY))
    answer = plain.texts["a", 0]
    longer = np.concatenate([job("a", GREEDY).prompt, np.array(answer, np.int32), PROMPT[:30]])
    fresh = single(model, Job("b", longer, GREEDY, 20))
    machine = Machine(model, Erring({60: answer + [70] * 40}, seed))
    machine.run(job("a", GREEDY, partition="p"))
    assert machine.figures.proposed_tokens > machine.figures.accepted_tokens
    assert machine.figures.used_cells == 101 + len(answer) - 1
    turn = Job("b", longer, GREEDY, 20, partition="p")
    assert machine.run(turn)["b", 0] == fresh.texts["b", 0]
    assert turn.cached_tokens == 101 + len(answer) - 1
    machine.close()
    model.close()


def test_used_cells_are_true_after_every_step(model: Model) -> None:
    plain = single(model, job("a", GREEDY))
    machine = Machine(model, Erring({60: plain.texts["a", 0]}, 3))
    machine.stepper.add(0.0, job("a", GREEDY))
    while machine.stepper.busy:
        machine.step()
        said = len(machine.texts["a", 0])
        assert machine.figures.used_cells == (101 + said - 1 if machine.stepper.busy else 0)
    assert machine.figures.answer_tokens == 60
    assert machine.figures.batch_tokens == machine.computed
    machine.close()


def charges(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What principals are charged from here on."""
    tokens: list[int] = []
    charge = machine.stepper._slots._queue.charge

    def seen(principal: str, count: int) -> None:
        tokens.append(count)
        charge(principal, count)

    monkeypatch.setattr(machine.stepper._slots._queue, "charge", seen)
    return tokens


def test_tokens_computed_in_vain_are_service(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = single(model, job("a", GREEDY))
    charged: list[int] = []
    for drafter in (None, Erring({60: plain.texts["a", 0]}, 3)):
        machine = Machine(model, drafter)
        tokens = charges(machine, monkeypatch)
        machine.run(job("a", GREEDY, principal="p"))
        figures = machine.figures
        charged.append(sum(tokens) - (figures.proposed_tokens - figures.accepted_tokens))
        machine.close()
    assert charged[0] == charged[1]


# --- when -------------------------------------------------------------------------------------------------------------


def test_nobody_speculates_while_a_prompt_is_computed(model: Model) -> None:
    plain = single(model, job("a", GREEDY, max_tokens=300))
    drafter = Guesses({60: plain.texts["a", 0], 61: [70] * 300})
    machine = Machine(model, drafter)
    machine.stepper.add(0.0, job("a", GREEDY, max_tokens=300))
    while drafter.asked < 3:
        machine.step()
    asked = drafter.asked
    before = machine.figures.prompt_tokens
    machine.stepper.add(0.0, Job("b", np.full(300, 61, np.int32), GREEDY, 2))
    sizes = []
    while ("b", 0) not in machine.events:
        sizes.append(-machine.computed)
        machine.step()
        sizes[-1] += machine.computed
    assert drafter.asked == asked
    assert machine.figures.prompt_tokens == before + 300
    assert sizes == [128, 128, 47], "all the room of a step but one token is the prompt's"
    machine.close()


def test_all_speculate_or_none_does(model: Model) -> None:
    """llama.cpp would read the weights once more for a sequence with another number of tokens."""

    class Half(Guesses):
        def one(self, text: Text, length: int) -> list[int]:
            return [] if text.slot else super().right(text)[:length]

    plain = single(model, job("a", GREEDY), job("b", GREEDY, 61))
    machine = Machine(model, Half({60: plain.texts["a", 0], 61: plain.texts["b", 0]}))
    machine.run(job("a", GREEDY), job("b", GREEDY, 61))
    assert machine.figures.proposed_tokens == 0
    machine.close()


def test_many_answers_leave_no_room_for_guesses(model: Model) -> None:
    wide = msgspec.structs.replace(LOAD, slots=SPECULATED_ROWS + 1, context_tokens=128)
    drafter = Guesses({token: [70] * 20 for token in range(60, 60 + wide.slots)})
    machine = Machine(model, drafter, wide)
    endless = Sampling(temperature=0.0, ignore_eos=True)
    machine.run(*[Job(f"r{n}", np.array([60 + n], np.int32), endless, 3) for n in range(wide.slots)])
    assert drafter.asked == 0
    assert len(machine.texts) == wide.slots
    machine.close()


def test_largest_step_fits_what_the_context_was_made_for(model: Model) -> None:
    for slots in (1, 3, 4, 32, 64):
        wide = msgspec.structs.replace(LOAD, slots=slots, context_tokens=64, batch_tokens=32)
        machine = Machine(model, Lookup(), wide)
        machine.stepper.trial()
        assert machine.computed > SPECULATED_ROWS
        machine.close()


def test_recurrent_model_never_speculates(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "llama_model_is_recurrent", lambda _: True)
    context = Context(model, LOAD)
    assert drafter_for(model, context, LOAD, None) is None
    other = load(random_model())
    with pytest.raises(LoadError, match="draft-unfit: the model's memory cannot be cut"):
        drafter_for(model, context, msgspec.structs.replace(LOAD, speculation="draft"), other)
    context.close()
    other.close()


def test_pace_follows_what_is_accepted() -> None:
    pace, answered, lengths = Pace(), 1, []
    while pace.length(answered) < LENGTHS[-1]:
        lengths.append(pace.length(answered))
        answered += lengths[-1] + 1
        pace.learn(lengths[-1], lengths[-1], answered)
    assert lengths == [2, 4, 8]
    tries = []
    for place in range(answered, answered + 2000):
        if length := pace.length(place):
            tries.append((place, length))
            pace.learn(0, length, place + 1)
    assert [length for _, length in tries[:5]] == [16, 8, 4, 2, 1]
    assert all(length == 1 for _, length in tries[5:])
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(tries[4:])]
    assert gaps[:5] == [9, 17, 33, 65, LONGEST_PAUSE + 1]
    assert set(gaps[4:]) == {LONGEST_PAUSE + 1}


def seen(costs: Costs, length: int, seconds: float) -> None:
    """By one answer, more or less."""
    for taken in (seconds, 1.2 * seconds, 0.8 * seconds, seconds):
        costs.learn(1, length, taken)


def test_costs_decide_where_a_further_token_is_dear() -> None:
    """As measured with half a billion weights on one core: all accepted, and still hardly anything gained."""

    def choice(seconds_of: object, chance: float) -> int:
        costs = Costs()
        for length in (0, *LENGTHS):
            seen(costs, length, seconds_of(length))  # type: ignore[operator]
        return costs.best(1, LENGTHS[-1], [chance])

    assert choice(lambda length: 1 + 0.9 * length, 0.7) == 0
    assert choice(lambda length: 1 + 0.01 * length, 0.9) == 16
    assert choice(lambda length: 1 + 0.5 * length, 0.7) == 1
    assert choice(lambda length: 1 + 0.01 * length, 0.0) == 0


def test_costs_are_measured_anew() -> None:
    costs = Costs()
    costs.learn(1, 2, 1.0)
    assert not costs.lacks_plain(1), "once is too little to know anything"
    seen(costs, 2, 1.0)
    assert costs.lacks_plain(1)
    seen(costs, 0, 0.2)
    assert not costs.lacks_plain(1)
    assert not costs.lacks_plain(2)
    assert costs.best(1, 2, [0.9]) == 1, "which was not measured, when 2 turned out dear"
    seen(costs, 1, 1.0)
    assert costs.best(1, 2, [0.9]) == 0
    for _ in range(STALE_STEPS + 1):
        costs.learn(1, 0, 0.2)
    assert costs.best(1, 2, [0.9]) == 2


def test_slow_guesses_stop(model: Model) -> None:
    """Right ones too, when steps with them take that much longer."""
    plain = single(model, job("a", GREEDY, max_tokens=300))
    machine = Machine(model, Guesses({60: plain.texts["a", 0]}))
    machine.stepper.add(0.0, job("a", GREEDY, max_tokens=300))
    while machine.stepper.busy:
        machine.step(lambda tokens: float(tokens) ** 2)
    assert told(machine) == told(plain)
    assert machine.figures.proposed_tokens < 200
    machine.close()


# --- lookup -----------------------------------------------------------------------------------------------------------


def test_lookup_finds_what_followed() -> None:
    index = TextIndex(np.array([5, 6, 7, 8, 9, 1, 2], np.int32), 100)
    answer = [5, 6]
    assert index.follow(answer)
    assert index.propose(3) == [7, 8, 9], "two tokens are enough"
    answer += [7, 3]
    assert index.follow(answer)
    assert index.propose(3) == []
    answer += [1, 2]
    assert index.follow(answer)
    assert index.propose(3) == [5, 6, 7], "the latest place counts"


def test_lookup_prefers_three_tokens_to_two() -> None:
    index = TextIndex(np.array([1, 2, 3, 10, 9, 2, 3, 20, 1], np.int32), 100)
    assert index.follow([2, 3])
    assert index.propose(1) == [10]


def test_lookup_repeats_a_repetition() -> None:
    index = TextIndex(np.array([4, 5, 4, 5], np.int32), 100)
    assert index.follow([4])
    assert index.propose(5) == [5, 4, 5, 4, 5]


def test_lookup_never_proposes_what_it_has_not_seen() -> None:
    dice = np.random.default_rng(1)
    prompt = dice.integers(0, 2**21, 5000, np.int32)
    index = TextIndex(prompt, 3000)
    answer: list[int] = []
    seen = set(prompt.tolist())
    for token in dice.integers(0, 2**21, 2000).tolist():
        answer.append(token)
        seen.add(token)
        index.follow(answer)
        assert set(index.propose(8)) <= seen


def test_lookup_reads_a_long_prompt_in_pieces_and_keeps_its_size() -> None:
    prompt = np.arange(50_000, dtype=np.int32) % 40_000
    index = TextIndex(prompt, 1000)
    answer = [39_000, 39_001, 39_002]
    tries = next(count for count in itertools.count(1) if index.follow(answer))
    assert tries == 7
    assert sum(len(table) for table in index._ends.values()) == 2 * MOST_PLACES


def test_lookup_helps_where_the_text_repeats() -> None:
    chain = load(chain_model(long_script(200)))
    script = single(chain, job("a", GREEDY, max_tokens=201)).texts["a", 0]
    prompt = np.concatenate([PROMPT[:50], np.array(script, np.int32), PROMPT[:50]])
    plain = single(chain, Job("a", prompt, GREEDY, 150))
    machine = Machine(chain, Lookup())
    machine.run(Job("a", prompt, GREEDY, 150))
    assert told(machine) == told(plain)
    assert machine.figures.accepted_tokens > 100
    assert machine.figures.steps < plain.figures.steps / 4
    machine.close()
    chain.close()


# --- a draft model ----------------------------------------------------------------------------------------------------

DRAFTED = msgspec.structs.replace(LOAD, speculation="draft")


@pytest.mark.parametrize("way", ["greedy", "seeded", "penalties"])
def test_draft_of_the_same_weights_is_nearly_always_right(model: Model, way: str) -> None:
    plain = single(model, job("a", WAYS[way]))
    machine = Machine(model, DraftModel(load(random_model()), model, DRAFTED), DRAFTED)
    machine.stepper.trial()
    machine.run(job("a", WAYS[way]))
    assert told(machine) == told(plain)
    if way == "greedy":
        assert machine.figures.accepted_tokens == machine.figures.proposed_tokens > 40
    machine.close()


@pytest.mark.parametrize("way", ["greedy", "seeded"])
def test_draft_serves_many_at_once(model: Model, way: str) -> None:
    def jobs() -> list[Job]:
        return [job(f"r{n}", WAYS[way], 60 + n, 30 + 5 * n) for n in range(7)]

    plain = single(model, *jobs())
    machine = Machine(model, DraftModel(load(random_model()), model, DRAFTED), DRAFTED)
    machine.stepper.trial()
    machine.run(*jobs())
    assert told(machine) == told(plain)
    assert machine.figures.accepted_tokens > 20
    machine.close()


def test_draft_catches_up_with_a_long_prompt_piece_by_piece(model: Model) -> None:
    prompt = np.tile(PROMPT, 4)
    plain = single(model, Job("a", prompt, GREEDY, 60))
    drafter = DraftModel(load(random_model()), model, DRAFTED)
    sizes: list[int] = []
    decode = drafter._context.decode

    def seen(batch: object) -> int:
        sizes.append(batch.size)  # type: ignore[attr-defined]
        return decode(batch)  # type: ignore[arg-type]

    drafter._context.decode = seen  # type: ignore[method-assign]
    machine = Machine(model, drafter, DRAFTED)
    machine.run(Job("a", prompt, GREEDY, 60))
    assert told(machine) == told(plain)
    assert max(sizes) <= min(CATCH_UP_TOKENS, DRAFTED.batch_tokens)
    assert sum(sizes) >= 400
    assert machine.figures.accepted_tokens == machine.figures.proposed_tokens > 30
    machine.close()


def test_draft_that_is_mostly_wrong_changes_nothing(model: Model) -> None:
    """Another model of the same vocabulary, and so cut back all the time."""
    other = load(random_model(24))
    plain = single(model, *many(model))
    machine = Machine(model, DraftModel(other, model, DRAFTED), DRAFTED)
    machine.run(*many(model))
    assert told(machine) == told(plain)
    assert machine.figures.proposed_tokens > machine.figures.accepted_tokens
    machine.close()


def test_draft_with_a_shorter_context_falls_silent(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = single(model, job("a", GREEDY, max_tokens=200))
    draft = load(random_model())
    monkeypatch.setattr(draft, "training_context_tokens", 128)
    machine = Machine(model, DraftModel(draft, model, DRAFTED), DRAFTED)
    machine.run(job("a", GREEDY, max_tokens=200))
    assert told(machine) == told(plain)
    assert 0 < machine.figures.accepted_tokens < 30
    machine.close()


def test_draft_of_another_vocabulary_is_refused(model: Model) -> None:
    other = load(chain_model())
    with pytest.raises(LoadError, match="draft-unfit: the draft model's vocabulary has"):
        DraftModel(other, model, DRAFTED)
    other.close()


def test_draft_with_one_other_word_is_refused() -> None:
    ours, theirs = load(chain_model("one two three four")), load(chain_model("one two 3 four"))
    with pytest.raises(LoadError, match="token 263 of the draft model's vocabulary is another"):
        DraftModel(theirs, ours, DRAFTED)
    ours.close()
    theirs.close()


def test_draft_that_embeds_is_refused(model: Model) -> None:
    other = load(random_model(pooling=3))
    with pytest.raises(LoadError, match="draft-unfit: the draft model is not for text"):
        DraftModel(other, model, DRAFTED)
    other.close()


def test_draft_is_not_ignored_and_not_missed(model: Model) -> None:
    context, other = Context(model, LOAD), load(random_model())
    with pytest.raises(LoadError, match="draft-unfit: a draft model was asked for and not given"):
        drafter_for(model, context, DRAFTED, None)
    with pytest.raises(LoadError, match="draft-unfit: a draft model was given and not asked for"):
        drafter_for(model, context, LOAD, other)
    context.close()
    other.close()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=5)], ids=["greedy", "seeded"])
def test_search_for_what_a_grammar_allows_may_begin_in_a_speculated_step(
    model: Model, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And take several; nobody speculates meanwhile, and nobody's tokens are others."""
    monkeypatch.setattr(searches, "SEARCH_TOKENS", 1)
    machines = [Machine(model)]
    machines[0].run(constrained(model, machines[0], sampling), job("b", GREEDY, first=61))
    script = {60: machines[0].texts["a", 0], 61: machines[0].texts["b", 0]}
    machines.append(Machine(model, Guesses(script)))
    machines[1].run(constrained(model, machines[1], sampling), job("b", GREEDY, first=61))
    assert told(machines[1]) == told(machines[0])
    assert machines[1].figures.accepted_tokens > 0
    for machine in machines:
        machine.close()
