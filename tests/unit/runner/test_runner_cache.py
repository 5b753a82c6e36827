"""What is computed, in tokens given to decode: prefixes within a partition and across, choices, turns of principals.

There is no clock here. What a caller could time is the work of its steps, and that is counted.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.ipc.messages import Load
from appliance.runner.engine.context import Context
from appliance.runner.engine.jobs import Event, Job
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.native import llama
from appliance.runner.engine.slots import MOST_WAITING, MOST_WAITING_OF_ONE
from appliance.runner.engine.steps import Stepper
from tests.support.chain_model import chain_model, long_script
from tests.support.random_model import random_model
from tests.unit.runner.test_runner_steps import load

PROMPT = np.tile(np.arange(60, 110, dtype=np.int32), 4)
OTHER = np.tile(np.arange(110, 160, dtype=np.int32), 4)
ANSWER = 5


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    made = load(chain_model(long_script(400)))
    yield made
    made.close()


class Machine:
    """A stepper, and how many tokens each of its steps decoded."""

    def __init__(self, model: Model, *, slots: int = 4, batch_tokens: int = 128, **wanted: object) -> None:
        load = Load(runner_id="r", context_tokens=512, slots=slots, threads=1, batch_tokens=batch_tokens, **wanted)  # type: ignore[arg-type]
        self.context = Context(model, load)
        self.stepper = Stepper(model, self.context)
        self.steps: list[int] = []
        self.now = 0.0
        self.texts: dict[tuple[str, int], list[int]] = {}
        decode = self.context.decode

        def counted(batch: object) -> int:
            self.steps.append(batch.size)  # type: ignore[attr-defined]
            return decode(batch)  # type: ignore[arg-type]

        self.context.decode = counted  # type: ignore[method-assign]

    def add(self, *jobs: Job) -> None:
        for job in jobs:
            self.stepper.add(self.now, job)

    def step(self) -> list[Event]:
        """Tokens and ends."""
        events = [event for event in self.stepper.step(self.now) if not event.begun]
        self.stepper.timed(self.now, self.now)
        for event in events:
            if not event.ended:
                self.texts.setdefault((event.job.request_id, event.job.choice), []).append(event.token)
        return events

    def run(self, *jobs: Job) -> tuple[int, list[Event]]:
        """Adds jobs and steps until nothing is left. (tokens decoded, ends)"""
        before = len(self.steps)
        self.add(*jobs)
        ends = []
        while self.stepper.busy:
            ends += [event for event in self.step() if event.ended]
        return sum(self.steps[before:]), ends


@pytest.fixture
def machine(model: Model) -> Iterator[Machine]:
    made = Machine(model)
    yield made
    made.context.close()


def job(request_id: str, prompt: np.ndarray = PROMPT, max_tokens: int = ANSWER, **named: object) -> Job:
    return Job(request_id, prompt, Sampling(temperature=0.0), max_tokens, **named)  # type: ignore[arg-type]


# --- prefixes ---------------------------------------------------------------------------------------------------------


def test_one_tenant_twice_is_a_hit(machine: Machine) -> None:
    first, second = job("a", partition="one"), job("b", partition="one")
    assert machine.run(first)[0] == len(PROMPT) + ANSWER - 1
    assert machine.run(second)[0] == 1 + ANSWER - 1
    assert (first.cached_tokens, second.cached_tokens) == (0, len(PROMPT) - 1)
    assert machine.texts["a", 0] == machine.texts["b", 0]


def test_other_tenant_can_neither_see_nor_time_that_the_first_was_there(model: Model) -> None:
    def probe(machine: Machine, before: Job | None) -> tuple[list[int], int]:
        if before:
            machine.run(before)
        start = len(machine.steps)
        probing = job("probe", partition="two")
        machine.run(probing)
        machine.context.close()
        return machine.steps[start:], probing.cached_tokens

    nobody = probe(Machine(model), None)
    same_prompt = probe(Machine(model), job("a", partition="one"))
    other_prompt = probe(Machine(model), job("a", OTHER, partition="one"))
    assert nobody == same_prompt == other_prompt
    assert nobody[1] == 0


def test_other_tenant_shares_nothing_at_the_same_time(machine: Machine) -> None:
    decoded, _ = machine.run(*[job(name, partition=name) for name in ("one", "two", "three")])
    assert decoded == 3 * (len(PROMPT) + ANSWER - 1)


def test_without_a_partition_nothing_is_shared(machine: Machine) -> None:
    machine.run(job("a"))
    second = job("b")
    assert machine.run(second)[0] == len(PROMPT) + ANSWER - 1
    assert second.cached_tokens == 0
    assert machine.stepper.figures().used_cells == 0


def test_conversation_computes_only_what_is_new(machine: Machine) -> None:
    machine.run(job("a", partition="one"))
    answer = machine.texts["a", 0]
    longer = np.concatenate([PROMPT, np.array(answer, np.int32), OTHER[:20]])
    next_turn = job("b", longer, partition="one")
    assert machine.run(next_turn)[0] == 1 + 20 + ANSWER - 1, "the last token of an answer was never decoded"
    assert next_turn.cached_tokens == len(PROMPT) + ANSWER - 1


@pytest.mark.parametrize("sliding_window", [0, 24])
def test_taken_over_prefix_gives_the_same_answer(sliding_window: int) -> None:
    """With a model that does look at every token before: in place, from a copy, beside another's, and cut."""
    model = load(random_model(sliding_window))
    longer = np.concatenate([PROMPT, OTHER])
    branch = np.concatenate([PROMPT[:120], OTHER[:40]])
    expected = {}
    for name, prompt in (("longer", longer), ("branch", branch)):
        fresh = Machine(model)
        fresh.run(job(name, prompt, max_tokens=16))
        expected[name] = fresh.texts[name, 0]
        fresh.context.close()
    machine = Machine(model)
    machine.run(job("stranger", OTHER, partition="two"), job("first", partition="one"))
    jobs = [
        job("branch", branch, max_tokens=16, partition="one"),
        job("longer", longer, max_tokens=16, partition="one"),
        job("longer", longer, max_tokens=16, partition="one", choice=1),
    ]
    machine.run(*jobs)
    assert [each.cached_tokens for each in jobs] == [120, len(PROMPT), len(longer) - 1]
    assert machine.texts["branch", 0] == expected["branch"]
    assert machine.texts["longer", 0] == machine.texts["longer", 1] == expected["longer"]
    assert len(set(expected["longer"])) > 4, "the model does not just repeat itself"
    machine.context.close()
    model.close()


def test_choices_compute_their_prompt_once(machine: Machine) -> None:
    jobs = [job("a", choice=number) for number in range(4)]
    assert machine.run(*jobs)[0] == len(PROMPT) + 3 + 4 * (ANSWER - 1)
    assert [each.cached_tokens for each in jobs] == [0, 199, 199, 199]
    assert len({tuple(text) for text in machine.texts.values()}) == 1


def test_choices_go_on_when_the_first_is_cancelled(machine: Machine) -> None:
    jobs = [job("a", choice=number) for number in range(3)]
    machine.add(*jobs)
    machine.step()
    jobs[0].cancelled = True
    _, ends = machine.run()
    assert sorted((end.job.choice, end.ended) for end in ends) == [(0, "cancelled"), (1, "length"), (2, "length")]
    assert machine.texts["a", 1] == machine.texts["a", 2]


def test_more_choices_than_slots_compute_the_prompt_once(model: Model) -> None:
    machine = Machine(model, slots=2)
    jobs = [job("a", choice=number, partition="one") for number in range(8)]
    assert machine.run(*jobs)[0] == len(PROMPT) + 7 + 8 * (ANSWER - 1)
    machine.context.close()


def test_cancelled_one_leaves_what_it_computed(machine: Machine) -> None:
    first = job("a", partition="one")
    machine.add(first)
    machine.step()
    first.cancelled = True
    machine.run()
    second = job("b", partition="one")
    machine.run(second)
    assert second.cached_tokens == 128, "one step's worth"


def test_failed_one_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = machine.context.logits
    monkeypatch.setattr(machine.context, "logits", lambda rows: np.full_like(logits(rows), np.nan))
    _, [end] = machine.run(job("a", partition="one"))
    assert end.ended == "error"
    monkeypatch.undo()
    second = job("b", partition="one")
    machine.run(second)
    assert second.cached_tokens == 0
    assert machine.texts["b", 0]


def test_evicted_one_is_computed_again(model: Model) -> None:
    machine = Machine(model, slots=2)
    machine.run(job("a", partition="one"))
    for number in range(2):
        machine.run(job(str(number), OTHER[number:], partition="one"))
    again = job("b", partition="one")
    assert machine.run(again)[0] == len(PROMPT) + ANSWER - 1
    assert again.cached_tokens == 0
    machine.context.close()


def test_full_cache_never_costs_a_live_request_its_room(model: Model) -> None:
    """Every stream is kept full by somebody, and each request needs all of a stream."""
    machine = Machine(model, slots=2)
    for number in range(6):
        prompt = np.full(400, 100 + number, np.int32)
        _, [end] = machine.run(job(str(number), prompt, max_tokens=112, partition=f"tenant-{number % 3}"))
        assert end.ended == "length"
        figures = machine.stepper.figures()
        assert figures.used_cells <= figures.cells == 1024
    machine.context.close()


def test_nothing_of_a_request_without_partition_stays_in_the_cache(machine: Machine) -> None:
    machine.run(job("a"))
    for slot in range(4):
        assert llama.llama_memory_seq_pos_max(machine.context._memory, slot) == -1


@pytest.mark.parametrize(("seed", "sliding_window"), [(1, 0), (2, 24)])
def test_random_load_never_mixes_sequences_up(seed: int, sliding_window: int) -> None:
    """Prompts that share beginnings, choices, cancels and four tenants on three slots: each answer that is whole is the
    one that its prompt gets alone, each that is cut is its beginning, and no slot or stream is lost."""
    model = load(random_model(sliding_window))
    dice = np.random.default_rng(seed)
    stems = [PROMPT[:60], np.concatenate([PROMPT[:40], OTHER[:40]]), OTHER[:90]]
    prompts = [np.concatenate([stem, OTHER[start : start + 25]]) for stem in stems for start in (0, 30, 60)]
    alone = []
    for prompt in prompts:
        fresh = Machine(model, slots=1)
        fresh.run(job("a", prompt, max_tokens=12))
        alone.append(fresh.texts["a", 0])
        fresh.context.close()
    machine = Machine(model, slots=3, batch_tokens=48)
    asked: list[tuple[Job, int]] = []
    ends: dict[tuple[str, int], str] = {}
    hits = 0
    for number in range(60):
        which = int(dice.integers(len(prompts)))
        tenant = int(dice.integers(4))
        for choice in range(int(dice.integers(1, 4))):
            named = {"principal": f"p{tenant}", "partition": f"t{tenant}" if tenant else "", "choice": choice}
            asked.append((job(str(number), prompts[which], 12, **named), which))
            machine.add(asked[-1][0])
        for _ in range(int(dice.integers(12))):
            if dice.random() < 0.05:
                asked[int(dice.integers(len(asked)))][0].cancelled = True
            for event in machine.step():
                if event.ended:
                    assert (event.job.request_id, event.job.choice) not in ends, "ended twice"
                    ends[event.job.request_id, event.job.choice] = event.ended
    for event in machine.run()[1]:
        ends[event.job.request_id, event.job.choice] = event.ended or ""
    assert len(ends) == len(asked)
    for each, which in asked:
        key = (each.request_id, each.choice)
        said = machine.texts.get(key, [])
        assert said == alone[which][: len(said)], key
        assert ends[key] == "cancelled" or said == alone[which]
        hits += each.cached_tokens > 0
    assert hits > 20
    assert machine.stepper.figures().busy_slots == 0
    assert len(machine.stepper._slots._streams._trees) <= 3
    machine.context.close()
    model.close()


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heavy", [1, 8, 60])
def test_light_principal_waits_for_one_service_at_most(model: Model, heavy: int) -> None:
    """One principal holds all slots with long answers and has many more waiting. Service of the one that is done first
    is all that another waits for, however many they are."""
    machine = Machine(model, slots=2)
    service_steps = 300
    machine.add(*[job(f"h{number}", PROMPT[:20], service_steps, principal="heavy") for number in range(heavy + 1)])
    for _ in range(10):
        machine.step()
    light = job("light", PROMPT[:20], 3, principal="light")
    machine.add(light)
    waited = 0
    while ("light", 0) not in machine.texts:
        machine.step()
        waited += 1
    assert waited == service_steps - 10 + 1
    machine.context.close()


def test_light_principal_gets_every_turn_it_asks_for(model: Model) -> None:
    """Five requests one after the other, against fifty of a heavy one: each waits for one release and no more."""
    machine = Machine(model, slots=1)
    machine.add(*[job(f"h{number}", PROMPT[:20], 50, principal="heavy") for number in range(50)])
    machine.step()
    for number in range(5):
        machine.add(job(f"l{number}", PROMPT[:20], 2, principal="light"))
        ended: list[str] = []
        while f"l{number}" not in ended:
            ended += [event.job.request_id for event in machine.step() if event.ended]
        assert len([name for name in ended if name.startswith("h")]) <= 1
    machine.context.close()


def test_heavy_prompts_do_not_hold_up_a_light_one(model: Model) -> None:
    """Three long prompts of one principal in the slots, and one of another: its first turn is the next step."""
    machine = Machine(model, slots=4, batch_tokens=64)
    machine.add(*[job(f"h{number}", np.full(400, 100 + number, np.int32), principal="heavy") for number in range(3)])
    machine.step()
    machine.add(job("light", PROMPT[:64], principal="light"))
    assert [event.job.request_id for event in machine.step()] == ["light"]
    machine.context.close()


def test_prompts_never_take_more_of_a_step_than_their_share_while_others_answer(model: Model) -> None:
    machine = Machine(model, slots=4, batch_tokens=512)
    machine.add(job("answering", PROMPT[:5], 50))
    machine.step()
    machine.add(*[job(str(number), np.full(400, 100 + number, np.int32), principal=str(number)) for number in range(3)])
    for _ in range(4):
        events = machine.step()
        assert "answering" in {event.job.request_id for event in events}
        assert machine.steps[-1] <= 256 + 4
    machine.context.close()


def test_batch_rises_slot_by_slot(model: Model) -> None:
    machine = Machine(model, slots=4)
    jobs = [job(str(number), PROMPT[:5] + number, 3 if number == 1 else 50) for number in range(4)]
    machine.add(*jobs)
    for _ in range(3):
        machine.step()
    machine.add(job("late", OTHER))
    seen = []
    add, add_last = machine.stepper._batch.add, machine.stepper._batch.add_last
    machine.stepper._batch.add = lambda slot, *a, **n: (seen.append(slot), add(slot, *a, **n))[1]  # type: ignore
    machine.stepper._batch.add_last = lambda slot, *a: (seen.append(slot), add_last(slot, *a))[1]  # type: ignore
    machine.step()
    assert seen == [0, 1, 2, 3], "the late one is in the slot that came free"
    machine.context.close()


# --- the queue --------------------------------------------------------------------------------------------------------


def test_job_that_waited_too_long_is_told_when_to_come_back(model: Model) -> None:
    machine = Machine(model, slots=1)
    first, second = job("a", PROMPT[:5], 300), job("b", queue_ms=1500)
    machine.add(first, second)
    machine.step()
    machine.now = 1.4
    assert all(not event.ended for event in machine.step())
    machine.now = 1.5
    [refused] = [event for event in machine.step() if event.ended]
    assert (refused.job, refused.refused, refused.ended) == (second, "queue-timeout", "error")
    assert refused.retry_after_seconds >= 1
    machine.context.close()


def test_deadline_does_not_end_what_has_a_slot(model: Model) -> None:
    machine = Machine(model, slots=1)
    machine.add(job("a", PROMPT[:5], 50, queue_ms=100))
    machine.step()
    machine.now = 10.0
    assert not [event for event in machine.step() if event.ended]
    machine.context.close()


def test_full_queue_refuses_the_heavy_one_only(model: Model) -> None:
    machine = Machine(model, slots=1)
    machine.add(job("running", PROMPT[:5], 300, principal="heavy"))
    machine.step()
    machine.add(*[job(str(number), principal="heavy") for number in range(MOST_WAITING_OF_ONE + 1)])
    machine.add(job("light", principal="light"))
    [refused] = [event for event in machine.step() if event.ended]
    assert (refused.job.request_id, refused.refused) == (str(MOST_WAITING_OF_ONE), "queue-full")
    machine.context.close()


def test_choices_are_refused_together(model: Model) -> None:
    machine = Machine(model, slots=1)
    machine.add(*[job(str(number)) for number in range(MOST_WAITING_OF_ONE - 3)])
    machine.stepper.add(0.0, *[job("a", choice=number) for number in range(4)])
    refused = [(event.job.request_id, event.job.choice) for event in machine.step() if event.refused]
    assert refused == [("a", number) for number in range(4)]
    machine.context.close()


def test_choices_wait_out_together_or_not_at_all(model: Model) -> None:
    machine = Machine(model, slots=1)
    begun = [job("begun", PROMPT[:5], 20, choice=number, queue_ms=1000) for number in range(2)]
    late = [job("late", PROMPT[:5], choice=number, queue_ms=1000, principal="other") for number in range(2)]
    machine.stepper.add(0.0, *begun)
    machine.step()
    machine.stepper.add(0.0, *late)
    machine.now = 5.0
    refused = [(event.job.request_id, event.job.choice) for event in machine.step() if event.refused]
    assert refused == [("late", 0), ("late", 1)]
    assert [end.ended for end in machine.run()[1]] == ["length", "length"]
    machine.context.close()


def test_queue_is_bounded_for_all_together(model: Model) -> None:
    machine = Machine(model, slots=1)
    machine.add(*[job(str(number), principal=str(number)) for number in range(MOST_WAITING + 3)])
    refused = [event.job.request_id for event in machine.step() if event.refused == "queue-full"]
    assert refused == [str(MOST_WAITING + number) for number in range(3)]
    machine.context.close()


def test_cancelled_one_leaves_the_queue_at_once(model: Model) -> None:
    machine = Machine(model, slots=1)
    jobs = [job(str(number), PROMPT[:5], 300) for number in range(4)]
    machine.add(*jobs)
    machine.step()
    assert machine.stepper.figures().waiting == 3
    jobs[1].cancelled = True
    assert [(event.job, event.ended) for event in machine.step() if event.ended] == [(jobs[1], "cancelled")]
    assert machine.stepper.figures().waiting == 2
    machine.context.close()


# --- figures and kinds of cache ---------------------------------------------------------------------------------------


def test_figures_add_up(machine: Machine) -> None:
    machine.run(job("a", partition="one"), job("b", OTHER, partition="two"))
    machine.run(job("c", partition="one"))
    figures = machine.stepper.figures()
    assert figures.prompt_tokens == 2 * len(PROMPT) + 1
    assert (figures.cached_tokens, figures.cache_hits) == (len(PROMPT) - 1, 1)
    assert (figures.admitted, figures.answered, figures.answer_tokens) == (3, 3, 3 * ANSWER)
    assert figures.batch_tokens == sum(machine.steps)
    assert figures.steps == len(machine.steps)
    assert (figures.waiting, figures.busy_slots) == (0, 0)


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_quantised_cache_is_smaller_and_answers_the_same(model: Model, kv_type: str) -> None:
    machine, plain = Machine(model, kv_type=kv_type), Machine(model)
    for each in (machine, plain):
        each.run(job("a", partition="one"))
    assert kept_bytes(machine) < 0.6 * kept_bytes(plain)
    assert machine.texts["a", 0] == plain.texts["a", 0]
    again = job("b", partition="one")
    machine.run(again)
    assert again.cached_tokens == len(PROMPT) - 1
    assert machine.texts["a", 0] == machine.texts["b", 0]
    machine.context.close()
    plain.context.close()


def kept_bytes(machine: Machine) -> int:
    return int(llama.llama_state_seq_get_size(machine.context._pointer, 0))


def test_quantised_cache_that_cannot_be_is_refused() -> None:
    """Heads of 16 numbers do not fill a block of 32."""
    narrow = load(chain_model(dim=64))
    with pytest.raises(LoadError) as caught:
        Context(narrow, Load(runner_id="r", context_tokens=256, slots=2, threads=1, kv_type="q8_0"))  # type: ignore[arg-type]
    assert caught.value.reason == "context-failed"
    assert "q8_0" in caught.value.detail
    narrow.close()
