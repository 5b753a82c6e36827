"""LoRA adapters: what one must hold, and whether it fits the model that it is for.

An adapter changes a weight matrix W of its base by a product of two thin ones: W x becomes W x + s alpha/r B(A x), for
a scale s that the operator chooses. In a GGUF (llama.cpp's ``convert_lora_to_gguf.py``) these are the tensors ``<name
of W>.lora_a``, of dimensions [n_in, r], and ``<name of W>.lora_b``, of [r, n_out], where W has [n_in, n_out].

Stricter than llama.cpp (``llama-adapter.cpp``), which takes every ``.lora_a`` out of a name, not only the last; passes
over tensors of norms in silence, so that a part of what was signed would not be computed; looks at two dimensions of
tensors that may have four; asserts, which ends the process, the type of a key; and asserts while it decodes that it can
multiply with the type of a tensor, and that a matrix of embeddings is not used a second time for the output.

Left out, and refused: adapters that work only from certain words on (aLoRA), those of embeddings, whose halves stand
the other way round, and those of experts, which have three dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from appliance.core.values import AdapterFacts

ADAPTER: Final = "adapter"
"""``general.type`` of the files that are judged here."""
MAX_RANK: Final = 1024
"""Known adapters have 4 to 256."""
MAX_ALPHA: Final = 65_536.0

_A, _B = ".lora_a", ".lora_b"
_TYPES: Final = frozenset({0, 1, 8, 30})
"""F32, F16, Q8_0 and BF16: what converters write, and what llama.cpp multiplies with everywhere."""
_LOOKED_UP: Final = frozenset(
    {"token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"}
)
"""Whose rows are looked up. llama.cpp would leave what an adapter adds to most of them out, and say nothing."""


class GgufInvalid(Exception):
    """The file is not a GGUF that Paddock loads. ``reason`` is a kebab-case code that starts with ``gguf-``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Tensor(NamedTuple):
    """As a header describes it: ``kind`` is ggml's number of its type."""

    name: str
    dimensions: tuple[int, ...]
    kind: int


def check_adapter_keys(*, kind: str | None, alpha: float | None, is_activated: bool) -> None:
    """``adapter.type`` and ``adapter.lora.alpha``, None where they are missing. Raises ``GgufInvalid``."""
    _require(kind == "lora", "gguf-adapter-kind", "adapter.type is not 'lora'")
    _require(not is_activated, "gguf-adapter-kind", "the adapter works only from certain words on (aLoRA)")
    _require(alpha is not None and 0.0 < alpha <= MAX_ALPHA, "gguf-adapter-alpha", f"adapter.lora.alpha is {alpha}")


def adapter_facts(tensors: Sequence[Tensor]) -> AdapterFacts:
    """Raises ``GgufInvalid`` unless the tensors, whose names all differ, are whole pairs and nothing else."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        base, half = tensor.name[: -len(_A)], tensor.name[-len(_A) :]
        _require(half in {_A, _B} and base != "", "gguf-adapter-tensor", "a tensor is neither .lora_a nor .lora_b")
        _require(_A not in base and _B not in base, "gguf-adapter-tensor", "a tensor is a half of a half")
        _require(base not in _LOOKED_UP, "gguf-adapter-tensor", "the adapter changes the embeddings")
        _require(tensor.kind in _TYPES, "gguf-adapter-type", f"a tensor has type {tensor.kind}")
        _require(len(tensor.dimensions) == 2, "gguf-adapter-shape", f"a tensor of {len(tensor.dimensions)} dimensions")
        halves.setdefault(base, {})[half] = tensor
    ranks = [_rank(pair) for pair in halves.values()]
    return AdapterFacts(pairs=len(ranks), rank=max(ranks))


def _rank(pair: Mapping[str, Tensor]) -> int:
    _require(len(pair) == 2, "gguf-adapter-pair", "half of a pair is missing")
    rank, other = pair[_A].dimensions[1], pair[_B].dimensions[0]
    _require(rank == other, "gguf-adapter-shape", f"one half has rank {rank}, the other {other}")
    _require(rank <= MAX_RANK, "gguf-adapter-rank", f"rank {rank}")
    return rank


def require_fit(adapter: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> None:
    """Dimensions of both files' tensors, by name. Raises ``GgufInvalid("gguf-adapter-misfit")`` unless each pair of the
    adapter, which ``adapter_facts`` has seen, is for a matrix of the base, of its dimensions."""
    for name, dimensions in adapter.items():
        matrix = base.get(name[: -len(_A)], ())
        _require(len(matrix) == 2, "gguf-adapter-misfit", f"the model has no matrix for {name}")
        fits = dimensions[0] == matrix[0] if name.endswith(_A) else dimensions[1] == matrix[1]
        _require(fits, "gguf-adapter-misfit", f"{name} is for a matrix of other dimensions than the model's")


def _require(condition: bool, reason: str, detail: str) -> None:
    if not condition:
        raise GgufInvalid(reason, detail)
