"""The structure-aware fuzzer of ``tools/fuzz_gguf.py``, for as long as a check may take; and that it is one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
SEED = 20_000
MUTANTS = 20_000


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_gguf", TOOLS / "fuzz_gguf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that an engine would load, with a header of 8 kB."""
    path = tmp_path_factory.mktemp("fuzz") / "tiny.gguf"
    command = [sys.executable, TOOLS / "chain_gguf.py", path, "--dim", "64", "--text", "one two three"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return path


@pytest.mark.timeout(300)
def test_no_mutant_takes_long_or_much_or_raises_anything_else(fuzzer: ModuleType, tiny: Path) -> None:
    """Every verdict under 100 ms of CPU and 64 MiB, and nothing but ``GgufInvalid``. Stops after 45 s."""
    figures = fuzzer.fuzz([fuzzer.read_model(tiny)], seed=SEED, count=MUTANTS, seconds=45)
    print(json.dumps(figures))
    assert fuzzer.sound(figures), figures
    assert figures["mutants"] > 2000
    assert 0.02 < figures["accepted"] / figures["mutants"] < 0.6, "a fuzzer that never or always passes finds nothing"
    assert len(figures["verdicts"]) > 20


def test_model_that_was_taken_apart_is_put_together_again(fuzzer: ModuleType, tiny: Path) -> None:
    assert fuzzer.read_model(tiny).build() == tiny.read_bytes()


def test_same_seed_gives_the_same_mutants(fuzzer: ModuleType, tiny: Path) -> None:
    models = [fuzzer.read_model(tiny)]
    assert [fuzzer.mutant(models, 1, n).build() for n in range(50)] == [
        fuzzer.mutant(models, 1, n).build() for n in range(50)
    ]
    assert fuzzer.mutant(models, 1, 5) != fuzzer.mutant(models, 2, 5)


def test_fault_in_the_validator_fails_the_run(fuzzer: ModuleType, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_data: bytes, _file_bytes: int) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(fuzzer, "parse_header", broken)
    figures = fuzzer.fuzz([fuzzer.read_model(tiny)], seed=1, count=3)
    assert len(figures["faults"]) == 3
    assert not fuzzer.sound(figures)
