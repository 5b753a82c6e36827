"""``tools/fuzz_gguf.py`` as a module, and a model that is small enough to mutate by the thousand and still loads."""

import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.support.chain_model import chain_model

_TOOL = Path(__file__).parents[2] / "tools" / "fuzz_gguf.py"


@functools.cache
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_gguf", _TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@functools.cache
def tiny_model() -> Path:
    return chain_model("one two three", dim=64)


def accepted_mutants(seed: int) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of the mutants that the validator accepts, without end; none is the model itself."""
    tool = fuzzer()
    models = [tool.read_model(tiny_model())]
    original = tiny_model().read_bytes()
    number = 0
    while True:
        number += 1
        mutant = tool.mutant(models, seed, number)
        if tool.judged(mutant)[0] == "accepted" and mutant.build() != original:
            yield number, mutant.build()
