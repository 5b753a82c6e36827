"""The structure-aware fuzzer of ``tools/fuzz_gguf.py``, for as long as a check may take; and that it is one."""

import json

import pytest

from tests.support.gguf_fuzzer import fuzzer, tiny_model

SEED = 20_000
MUTANTS = 20_000


@pytest.mark.timeout(300)
def test_no_mutant_takes_long_or_much_or_raises_anything_else() -> None:
    """Every verdict under 100 ms of CPU and 64 MiB, and nothing but ``GgufInvalid``. Stops after 45 s."""
    figures = fuzzer().fuzz([fuzzer().read_model(tiny_model())], seed=SEED, count=MUTANTS, seconds=45)
    print(json.dumps(figures))
    assert fuzzer().sound(figures), figures
    assert figures["mutants"] > 2000
    assert 0.02 < figures["accepted"] / figures["mutants"] < 0.6, "a fuzzer that never or always passes finds nothing"
    assert len(figures["verdicts"]) > 20


def test_model_that_was_taken_apart_is_put_together_again() -> None:
    assert fuzzer().read_model(tiny_model()).build() == tiny_model().read_bytes()


def test_same_seed_gives_the_same_mutants() -> None:
    models = [fuzzer().read_model(tiny_model())]
    assert [fuzzer().mutant(models, 1, n).build() for n in range(50)] == [
        fuzzer().mutant(models, 1, n).build() for n in range(50)
    ]
    assert fuzzer().mutant(models, 1, 5) != fuzzer().mutant(models, 2, 5)


def test_fault_in_the_validator_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_data: bytes, _file_bytes: int) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(fuzzer(), "parse_header", broken)
    figures = fuzzer().fuzz([fuzzer().read_model(tiny_model())], seed=1, count=3)
    assert len(figures["faults"]) == 3
    assert not fuzzer().sound(figures)
