"""The structure-aware fuzzer of ``tools/fuzz_gguf.py``, for as long as a check may take; and that it is one."""

import json
from pathlib import Path
from struct import pack

import pytest

from tests.support.adapter_files import drawn_adapter
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


@pytest.mark.timeout(120)
def test_no_mutant_of_an_adapter_does_either(tmp_path: Path) -> None:
    adapter = fuzzer().read_model(drawn_adapter(tmp_path / "adapter.gguf", tiny_model()))
    figures = fuzzer().fuzz([adapter], seed=SEED, count=3000, seconds=15)
    print(json.dumps(figures))
    assert fuzzer().sound(figures), figures
    assert 0.02 < figures["accepted"] / figures["mutants"] < 0.6
    assert sum(name.startswith("gguf-adapter") for name in figures["verdicts"]) >= 3


def test_header_at_all_caps_takes_less_than_64_mib() -> None:
    """The bytes themselves included; what it costs in time is stated in the validator and printed here."""
    tool = fuzzer()
    n_tokens, n_merges = 300_000, 545_000
    tokens = b"".join(pack("<Q", 18) + b"token-number-%05x" % number for number in range(n_tokens))
    merges = (pack("<Q", 10) + b"to ken ken") * n_merges
    model = tool.read_model(tiny_model())
    model = tool.put_key(model, tool.key_record(b"llama.vocab_size", 4, pack("<I", n_tokens)))
    for name, element, count, data in (
        (b"tokenizer.ggml.tokens", 8, n_tokens, tokens),
        (b"tokenizer.ggml.scores", 6, n_tokens, b"".join(pack("<f", -number) for number in range(n_tokens))),
        (b"tokenizer.ggml.token_type", 5, n_tokens, pack("<i", 1) * n_tokens),
        (b"tokenizer.ggml.merges", 8, n_merges, merges),
    ):
        model = tool.put_key(model, tool.key_record(name, 9, pack("<IQ", element, count) + data))
    verdict, took_ms = tool.judged(model)
    growth_mib = tool.growth_bytes(model) / 2**20
    print(f"at all caps: {verdict}, {took_ms:.0f} ms, {growth_mib:.0f} MiB")
    assert verdict == "accepted"
    assert growth_mib < 64


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
