"""Seconds of what ``tests/fuzz/run.py`` does for minutes: mutants of known inputs, by chance from a fixed seed."""

import random
import time
from collections.abc import Iterator

import pytest

from appliance.core.strict_json import check
from tests.fuzz import targets
from tests.fuzz.corpus import DICTIONARY, SEEDS
from tests.fuzz.targets import TARGETS, Defect

SECONDS = 1.0
SLOWEST_SECONDS = 2.0


def mutants(name: str, chance: random.Random) -> Iterator[bytes]:
    """One after another: a seed with a few bytes changed, words put in, parts cut, doubled or taken from another."""
    seeds = SEEDS[name]
    yield from seeds
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            start = chance.randrange(len(data) + 1)
            end = min(len(data), start + chance.choice((0, 1, 2, 8, 64)))
            other = chance.choice(seeds)
            cut = chance.randrange(len(other) + 1)
            data[start:end] = chance.choice(
                (
                    chance.randbytes(chance.choice((1, 2, 4))),
                    chance.choice(DICTIONARY).encode(),
                    data[start:end] * 2,
                    b"",
                    other[cut : cut + chance.choice((4, 16, 256))],
                )
            )
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutant_is_a_defect(name: str) -> None:
    count, slowest, ends_at = 0, 0.0, time.monotonic() + SECONDS
    for data in mutants(name, random.Random(20_000)):
        began = time.process_time()
        try:
            TARGETS[name](data)
        except BaseException as error:
            raise AssertionError(f"{name}: {data!r}") from error
        slowest = max(slowest, time.process_time() - began)
        count += 1
        if count > len(SEEDS[name]) and time.monotonic() > ends_at:
            break
    print(f"{name}: {count} inputs, the slowest took {slowest * 1000:.0f} ms")
    assert slowest < SLOWEST_SECONDS


def test_parser_that_reads_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "check", lambda data: (check(data), 1)[1])
    with pytest.raises(Defect):
        targets.strict_json(b"true")


def test_answer_of_ours_being_at_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_scope: object, _hosts: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr("appliance.gateway.guard.check", broken)
    with pytest.raises(Defect, match="503"):
        targets.heads(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
