"""What speculation gains where guesses are right, and costs where they are not: one engine with it beside one without.

Both engines are in this process, with the same model and the same requests, and take turns at every step. Guesses are
made to be as right as a case says: what the other engine answered is known. Looking them up is done, and paid for, all
the same.

* *repeats*: all are right, as where an answer copies its prompt;
* *half*: each guess holds with one chance in two, if those before it do;
* *hostile*: each is wrong, and there always is one.

*draft* has a second model of the same file guess: never worth it, and all its work shows.

Bars, exit status 1 when one is missed (medians):

* hostile: at least 0.95 of the tokens per second without, for every model and number of callers;
* repeats, one caller, short steps: at least 1.2 times as many.

``--quick`` takes one short repetition, and not the large model. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import Sampling
from appliance.ipc.messages import Load
from appliance.runner.engine.context import Context
from appliance.runner.engine.jobs import Job
from appliance.runner.engine.model import Model
from appliance.runner.engine.speculation import Drafter, Text
from appliance.runner.engine.speculation_draft import DraftModel
from appliance.runner.engine.speculation_lookup import Lookup
from appliance.runner.engine.steps import Stepper
from bench.support.figures import Figure, plain, surroundings, table
from tests.support.drawn_model import FIRST_WORD, HALF_BILLION, MINI, Shape, cached_drawn_model
from tools import setup

BAR_HOSTILE: Final = 0.95
BAR_REPEATS: Final = 1.2
PROMPT_TOKENS: Final = 64
CASES: Final = {"repeats": 1.0, "half": 0.5, "hostile": 0.0}
"""The chance of a guess."""


@dataclass(frozen=True)
class Course:
    shape: Shape
    answer_tokens: int


QUICK_TOKENS: Final = 64
COURSES: Final = {"mini": Course(MINI, 400), "half-billion": Course(HALF_BILLION, 64)}


class Guesses(Lookup):
    """Looks up, and says something else."""

    def __init__(self, answers: dict[int, list[int]], chance: float) -> None:
        super().__init__()
        self._answers = answers
        self._chance = chance
        self._dice = random.Random(0)

    def propose(self, texts: Sequence[Text], length: int) -> list[list[int]]:
        super().propose(texts, length)
        return [self._one(text, length) for text in texts]

    def _one(self, text: Text, length: int) -> list[int]:
        right = self._answers.get(int(text.prompt[0]), [])[len(text.answer) : len(text.answer) + length]
        return [token if self._dice.random() < self._chance else token ^ 1 for token in right]


@dataclass(frozen=True)
class Run:
    tokens: int
    wall_seconds: float
    cpu_seconds: float
    proposed: int
    accepted: int


class Side:
    """One engine without its thread."""

    def __init__(self, model: Model, load: Load, drafter: Drafter | None) -> None:
        self._context = Context(model, load, proposed_tokens=SPECULATED_ROWS)
        self._stepper = Stepper(model, self._context, drafter=drafter)
        self._stepper.trial()
        self.answers: dict[int, list[int]] = {}

    def begin(self, callers: int, answer_tokens: int) -> None:
        self.answers = {}
        self._wall_seconds = self._cpu_seconds = 0.0
        self._before = self._stepper.figures()
        for number in range(callers):
            job = Job(f"r{number}", _prompt(number), Sampling(temperature=0.0), answer_tokens)
            self.answers[int(job.prompt[0])] = []
            self._stepper.add(0.0, job)

    def step(self) -> bool:
        """False when there is nothing left to do."""
        if not self._stepper.busy:
            return False
        start, cpu = time.monotonic(), time.process_time()
        events = self._stepper.step(start)
        end = time.monotonic()
        self._stepper.timed(start, end)
        self._wall_seconds += time.monotonic() - start
        self._cpu_seconds += time.process_time() - cpu
        for event in events:
            if event.token >= 0:
                self.answers[int(event.job.prompt[0])].append(event.token)
        return True

    def run(self) -> Run:
        """What has been done since ``begin``."""
        before, after = self._before, self._stepper.figures()
        return Run(
            after.answer_tokens - before.answer_tokens,
            self._wall_seconds,
            self._cpu_seconds,
            after.proposed_tokens - before.proposed_tokens,
            after.accepted_tokens - before.accepted_tokens,
        )

    def close(self) -> None:
        self._stepper.close()
        self._context.close()


def _prompt(number: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    words = np.random.default_rng(number).integers(FIRST_WORD, 2000, PROMPT_TOKENS, np.int32)
    words[0] = FIRST_WORD + number
    return words


def opened(path: Path) -> Model:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return Model.load(descriptor)
    finally:
        os.close(descriptor)


def both(beside: Side, without: Side, callers: int, answer_tokens: int) -> tuple[Run, Run]:
    """A step of one, then one of the other, so that whatever else the machine does slows down both."""
    for side in (beside, without):
        side.begin(callers, answer_tokens)
    while any([beside.step(), without.step()]):
        pass
    return beside.run(), without.run()


def compared(
    model: Model, course: Course, callers: int, repetitions: int, drafter: Callable[[dict[int, list[int]]], Drafter]
) -> dict[str, Any]:
    """With and without. The first answers of each do not count."""
    load = Load(runner_id="bench", context_tokens=512, slots=callers, threads=1)
    without = Side(model, load, None)
    without.begin(callers, course.answer_tokens)
    while without.step():
        pass
    beside = Side(model, load, drafter(without.answers))
    pairs = [both(beside, without, callers, course.answer_tokens) for _ in range(1 + repetitions)][1:]
    without.close()
    beside.close()
    proposed = sum(ours.proposed for ours, _ in pairs)
    tokens = sum(ours.tokens for ours, _ in pairs)
    return {
        "tokens_per_second": Figure.of(ours.tokens / ours.wall_seconds for ours, _ in pairs),
        "without": Figure.of(peer.tokens / peer.wall_seconds for _, peer in pairs),
        "ratio": Figure.of(peer.wall_seconds / ours.wall_seconds for ours, peer in pairs),
        "cpu_ratio": Figure.of(ours.cpu_seconds / peer.cpu_seconds for ours, peer in pairs),
        "proposed_share": round(proposed / tokens, 3),
        "accepted_share": round(sum(ours.accepted for ours, _ in pairs) / proposed, 3) if proposed else None,
    }


def measure(names: Sequence[str], callers: Sequence[int], repetitions: int, *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in names:
        course = COURSES[name]
        course = Course(course.shape, QUICK_TOKENS) if quick else course
        path = cached_drawn_model(course.shape, setup.cache_directory() / "drawn-models")
        with closing(opened(path)) as model:
            for count in callers:
                for case, chance in CASES.items():
                    found = compared(model, course, count, repetitions, lambda said, c=chance: Guesses(said, c))
                    figures[f"{name}, {count}, {case}"] = found
                load = Load(runner_id="bench", context_tokens=512, slots=count, threads=1, speculation="draft")
                found = compared(
                    model, course, count, repetitions, lambda _, p=path, w=load: DraftModel(opened(p), model, w)
                )
                figures[f"{name}, {count}, draft"] = found
    return figures


def missed_bars(figures: dict[str, Any]) -> list[str]:
    missed = []
    for place, found in figures.items():
        ratio = found["ratio"].median
        if place.endswith("hostile") and ratio < BAR_HOSTILE:
            missed.append(f"{place}: {ratio}, less than {BAR_HOSTILE}")
        if place == "mini, 1, repeats" and ratio < BAR_REPEATS:
            missed.append(f"{place}: {ratio}, less than {BAR_REPEATS}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", nargs="+", choices=COURSES, default=None)
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repetitions", type=int, default=8)
    options = parser.parse_args()
    names = options.models or (["mini"] if options.quick else list(COURSES))
    figures = measure(names, options.callers, 1 if options.quick else options.repetitions, quick=options.quick)
    rows = []
    for place, found in figures.items():
        ratios = [
            f"{found[name].median:.2f} [{found[name].least:.2f}-{found[name].greatest:.2f}]"
            for name in ("ratio", "cpu_ratio")
        ]
        shares = [str(found["proposed_share"]), str(found["accepted_share"])]
        rows.append([place, str(found["tokens_per_second"]), str(found["without"]), *ratios, *shares])
    head = ["model, callers, case", "tokens/s", "without", "ratio", "CPU ratio", "proposed", "accepted"]
    print(table("With speculation and without", head, rows))
    missed = missed_bars(figures)
    for line in missed or ["passed: all bars"]:
        print(line if not missed else f"missed: {line}")
    print(json.dumps({"figures": plain(figures), "missed": missed, "surroundings": surroundings()}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
