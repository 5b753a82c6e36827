"""What a grammar costs: CPU per token of an answer that must match it, and the longest that others wait for one look.

A vocabulary of 32,000 and one of 152,000 tokens of up to 16 characters, rows of logits drawn at random, one thread and
no model behind them. The cases, by what the grammar's search has to do for each token:

* *first*: the token that was drawn is allowed;
* *best*: the best token is refused, others among the best are allowed;
* *wide*: the best 2,500 are refused, so the whole vocabulary is asked about, but for what begins with a token that is
  not allowed.

Columns: microseconds per token, the median of draws; tokens that the grammar was asked about for one; the longest look
in milliseconds (the time between two of them is anybody's, and a step has at most eight); and what asking about
everything at once takes, as llama.cpp does. The last lines are the dearest grammars of some thousands drawn at random
that the runner lets in: CPU of one look, and of one token that is checked alone. The very last line is one JSON object.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

from appliance.core.values import Sampling
from appliance.runner.engine.candidates import Candidates, Row
from appliance.runner.engine.constraint import CompiledConstraint, ConstraintInvalid, compile_constraint
from appliance.runner.engine.model import Model
from appliance.runner.engine.sampling import Sampler
from appliance.runner.engine.search import LOOK_TOKENS, Search
from appliance.runner.engine.vocabulary import Vocabulary
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.schema import json_object_gbnf
from bench.support.figures import surroundings, table
from tests.support.grammar_texts import drawn_grammar
from tests.support.wordy_model import wordy_model

VOCABULARIES: Final = (32_000, 152_000)
DRAWS: Final = 20
REFUSED_FIRST: Final = 2500


@dataclass(frozen=True)
class Kind:
    """A grammar, a text that it has taken already, and what the tokens begin with that come first though refused."""

    name: str
    gbnf: str
    taken: str = ""


GRAMMARS: Final = (
    Kind("json, a key", json_object_gbnf(), "{"),
    Kind("json, in a string", json_object_gbnf(), '{"a":"'),
    Kind("no vowel first", "root ::= [^aeiou] .*"),
    Kind("two of many places", "root ::= [^e]{0,40} .{0,40}", "b" * 20),
    Kind("one word of 120", "root ::= (" + " | ".join(f'"a{number:04}"' for number in range(120)) + ")*"),
)
SAMPLINGS: Final = {
    "greedy": Sampling(temperature=0.0),
    "default": Sampling(seed=1),
    "top-k 1000": Sampling(seed=1, top_k=1000, top_p=1.0, min_p=0.0),
}


class Bench:
    """One vocabulary."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        self.model = Model.load(descriptor)
        os.close(descriptor)
        self.vocabulary = Vocabulary.of(self.model)
        self.candidates = Candidates(self.vocabulary)
        self.bytes = {self.model.piece(token): token for token in range(self.vocabulary.size)}
        self.every = np.setdiff1d(np.arange(self.vocabulary.size), self.vocabulary.unseen)

    def compiled(self, kind: Kind) -> CompiledConstraint:
        constraint = compile_constraint(self.model, self.vocabulary, kind.gbnf)
        for character in kind.taken:
            constraint.accept(self.bytes[character.encode()])
        return constraint

    def rows(self, constraint: CompiledConstraint, case: str, chance: np.random.Generator) -> Iterator[Row]:
        allowed = constraint.allowed(self.every)
        refused = np.setdiff1d(self.every, allowed)
        for _draw in range(DRAWS):
            row = chance.normal(0, 2.5, self.vocabulary.size).astype(np.float32)
            if case == "first":
                row[allowed] += 30
            elif case == "best":
                row[chance.choice(refused, min(20, len(refused)), replace=False)] += 30
            else:
                row[chance.choice(refused, min(REFUSED_FIRST, len(refused)), replace=False)] += 30
            yield row

    def measure(self, kind: Kind, case: str, sampling: Sampling) -> dict[str, float]:
        start = self.compiled(kind)
        chance = np.random.default_rng(1)
        seconds, looks, asked = [], [0.0], []
        for row in self.rows(start, case, chance):
            compiled = self.compiled(kind)
            with contextlib.closing(Sampler(sampling, np.zeros(0, np.int32), compiled, self.candidates)) as sampler:
                begun = time.thread_time()
                drawn = sampler.begin(row)
                if isinstance(drawn, Search):
                    looked, before = 1, time.thread_time()
                    while looked:
                        looked = drawn.look()
                        now = time.thread_time()
                        looks.append(now - before)
                        before = now
                    asked.append(drawn.looked_at)
                    sampler.end(drawn)
                seconds.append(time.thread_time() - begun)
        return {
            "us": 1e6 * statistics.median(seconds),
            "asked": statistics.median(asked or [0]),
            "longest_look_ms": 1e3 * max(looks),
            "at_once_ms": 1e3 * min(self._at_once(start) for _time in range(3)),
        }

    def _at_once(self, constraint: CompiledConstraint) -> float:
        begun = time.thread_time()
        constraint.allowed(self.every)
        return time.thread_time() - begun

    def dearest(self, seconds: float) -> list[tuple[float, float, str]]:
        """Milliseconds of a look, microseconds of one long token, and the grammar: the three dearest."""
        chance = random.Random(1)
        some = np.random.default_rng(1).choice(self.every, LOOK_TOKENS, replace=False)
        long = [self.bytes[run] for run in (b"a" * 16, b" " * 16, b"=" * 16) if run in self.bytes]
        found = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            grammar = drawn_grammar(chance)
            try:
                check(grammar)
                constraint = compile_constraint(self.model, self.vocabulary, grammar)
            except (GrammarInvalid, ConstraintInvalid):
                continue
            with contextlib.closing(constraint):
                found.append((*self._walk(constraint, some, long, chance), grammar))
        return sorted(found, reverse=True)[:3]

    def _walk(
        self, constraint: CompiledConstraint, some: Any, long: list[int], chance: random.Random
    ) -> tuple[float, float]:
        """Of some tokens in a row, the dearest."""
        look = one = 0.0
        for _token in range(10):
            times, allowed = [], some
            for _attempt in range(2):
                begun = time.thread_time()
                allowed = constraint.allowed(some)
                middle = time.thread_time()
                for token in long:
                    constraint.allows(token)
                times.append((middle - begun, time.thread_time() - middle))
            look = max(look, 1e3 * min(first for first, _ in times))
            one = max(one, 1e6 * min(second for _, second in times) / max(len(long), 1))
            going_on = [token for token in allowed.tolist() if token not in self.vocabulary.ends]
            if not going_on:
                break
            constraint.accept(chance.choice(going_on))
        return look, one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small vocabulary only")
    quick = parser.parse_args().quick
    print(surroundings())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="paddock-grammar-") as folder:
        for size in VOCABULARIES[: 1 if quick else None]:
            bench = Bench(wordy_model(Path(folder), size))
            lines = []
            for kind in GRAMMARS:
                for case in ("first", "best", "wide"):
                    for name, sampling in SAMPLINGS.items():
                        told = bench.measure(kind, case, sampling)
                        results[f"{size}/{kind.name}/{case}/{name}"] = told
                        lines.append([kind.name, case, name, *(f"{value:,.2f}" for value in told.values())])
            head = ["grammar", "case", "sampling", "us", "asked", "longest look ms", "at once ms"]
            print(table(f"{size:,} tokens", head, lines))
            for look, one, grammar in bench.dearest(2 if quick else 20):
                print(f"dearest: {look:.2f} ms for a look, {one:.0f} us for a long token: {grammar}")
            bench.model.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
