"""No adapter passes that llama.cpp would abort on, read in part, or take for something else."""

from collections.abc import Callable

import pytest

from appliance.core.gguf import GgufInvalid, parse_header, tensor_shapes
from appliance.core.gguf_adapter import MAX_RANK, require_fit
from appliance.core.values import AdapterFacts, GgufFacts
from tests.support.adapter_files import RANK, small_adapter
from tests.support.gguf_files import ARRAY, F32, F64, STRING, U32, Gguf, Tensor, array, small_model


def parse(file: Gguf) -> GgufFacts:
    data = file.build()
    return parse_header(data, len(data))


def refusal(change: Callable[[Gguf], object]) -> str:
    file = small_adapter()
    change(file)
    with pytest.raises(GgufInvalid) as caught:
        parse(file)
    return caught.value.reason


def pair(file: Gguf, matrix: str, n_in: int = 8, n_out: int = 6, rank: int = RANK) -> None:
    file.tensors.append(Tensor(f"{matrix}.lora_a", [n_in, rank], data=b"\1" * (4 * n_in * rank)))
    file.tensors.append(Tensor(f"{matrix}.lora_b", [rank, n_out], data=b"\1" * (4 * rank * n_out)))


def test_facts_of_an_adapter() -> None:
    file = small_adapter("style")
    pair(file, "blk.0.ffn_up.weight", rank=16)
    facts = parse(file)
    assert (facts.architecture, facts.name, facts.adapter) == ("llama", "style", AdapterFacts(pairs=2, rank=16))
    assert (facts.vocabulary_tokens, facts.context_tokens, facts.has_chat_template) == (0, 0, False)


def test_model_is_no_adapter() -> None:
    assert parse(small_model()).adapter is None


def as_adapter(file: Gguf) -> None:
    file.set("general.type", STRING, "adapter")
    file.set("adapter.type", STRING, "lora")
    file.set("adapter.lora.alpha", F32, 1.0)


def half_type(file: Gguf, kind: int, n_bytes: int) -> None:
    file.tensors[0].kind, file.tensors[0].data = kind, b"\1" * n_bytes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.set("adapter.type", STRING, "ia3"), "gguf-adapter-kind"),
        (lambda file: file.drop("adapter.type"), "gguf-adapter-kind"),
        (lambda file: file.set("adapter.type", U32, 1), "gguf-key-type"),
        (lambda file: file.set("general.type", U32, 1), "gguf-key-type"),
        (
            lambda file: file.put("adapter.alora.invocation_tokens", ARRAY, array(U32, [1, 2])),
            "gguf-adapter-kind",
        ),
        (lambda file: file.drop("adapter.lora.alpha"), "gguf-adapter-alpha"),
        (lambda file: file.set("adapter.lora.alpha", F32, float("nan")), "gguf-float"),
        (lambda file: file.set("adapter.lora.alpha", F32, float("inf")), "gguf-float"),
        (lambda file: file.set("adapter.lora.alpha", F32, 0.0), "gguf-adapter-alpha"),
        (lambda file: file.set("adapter.lora.alpha", F32, -1.0), "gguf-adapter-alpha"),
        (lambda file: file.set("adapter.lora.alpha", F32, 1e9), "gguf-adapter-alpha"),
        (lambda file: file.set("adapter.lora.alpha", F64, 8.0), "gguf-key-type"),  # llama.cpp asserts it
        (lambda file: file.set("general.architecture", STRING, ""), "gguf-architecture"),
        (lambda file: file.drop("general.architecture"), "gguf-architecture"),
        (lambda file: file.tensors.pop(), "gguf-adapter-pair"),
        (lambda file: file.tensors.pop(0), "gguf-adapter-pair"),
        (lambda file: file.tensors.clear(), "gguf-tensor-count"),
        (lambda file: pair(file, "blk.0.attn_q.weight"), "gguf-duplicate-tensor"),
        (
            lambda file: file.tensors.append(Tensor("blk.0.attn_norm.weight", [8], data=b"\1" * 32)),
            "gguf-adapter-tensor",
        ),
        (lambda file: file.tensors.append(Tensor("blk.0.attn_q.weight", [8], data=b"\1" * 32)), "gguf-adapter-tensor"),
        (lambda file: pair(file, "blk.0.attn_q.weight.lora_a"), "gguf-adapter-tensor"),  # llama.cpp: the same name
        (lambda file: pair(file, ""), "gguf-adapter-tensor"),
        (lambda file: pair(file, "token_embd.weight"), "gguf-adapter-tensor"),
        (lambda file: pair(file, "position_embd.weight"), "gguf-adapter-tensor"),
        (lambda file: pair(file, "per_layer_token_embd.weight"), "gguf-adapter-tensor"),
        (lambda file: pair(file, "x", rank=MAX_RANK + 1), "gguf-adapter-rank"),
        (lambda file: setattr(file.tensors[0], "dimensions", [RANK, 8]), "gguf-adapter-shape"),  # not transposed
        (lambda file: setattr(file.tensors[0], "dimensions", [8, 2, 2]), "gguf-adapter-shape"),
        (lambda file: setattr(file.tensors[0], "dimensions", [8 * RANK]), "gguf-adapter-shape"),
        (lambda file: setattr(file.tensors[0], "dimensions", [0, RANK]), "gguf-tensor-shape"),
        (lambda file: half_type(file, 24, 8 * RANK), "gguf-adapter-type"),  # I8, which is not multiplied with
        (lambda file: half_type(file, 28, 8 * 8 * RANK), "gguf-adapter-type"),  # F64
        (lambda file: setattr(file, "tail", b"more"), "gguf-trailing-bytes"),
        (lambda file: file.set("split.count", 2, 2), "gguf-split"),
        (lambda file: file.set("general.type", STRING, "model"), "gguf-vocabulary"),  # an adapter as a model
        (lambda file: file.drop("general.type"), "gguf-vocabulary"),
        (lambda file: file.set("general.type", STRING, "Adapter"), "gguf-vocabulary"),
    ],
)
def test_no_unsound_adapter_passes(change: Callable[[Gguf], object], reason: str) -> None:
    assert refusal(change) == reason


def test_model_does_not_pass_as_an_adapter() -> None:
    file = small_model()
    as_adapter(file)
    with pytest.raises(GgufInvalid, match="gguf-adapter-tensor"):
        parse(file)


def test_adapter_that_is_cut_does_not_pass() -> None:
    data = small_adapter().build()
    assert not data.endswith(b"\0")  # nothing of it is padding
    for n_bytes in range(len(data)):
        with pytest.raises(GgufInvalid):
            parse_header(data[:n_bytes], n_bytes)


BASE = {"blk.0.attn_q.weight": (8, 6), "blk.0.attn_norm.weight": (8,), "blk.0.experts.weight": (8, 6, 4)}


def shapes(file: Gguf) -> dict[str, tuple[int, ...]]:
    data = file.build()
    return tensor_shapes(data, len(data))


def test_adapter_that_fits() -> None:
    require_fit(shapes(small_adapter()), BASE)


@pytest.mark.parametrize(
    "file",
    [
        small_adapter(matrix="blk.1.attn_q.weight"),
        small_adapter(matrix="blk.0.attn_norm.weight"),
        small_adapter(matrix="blk.0.experts.weight"),
        small_adapter(n_in=16),
        small_adapter(n_out=5),
        small_adapter(n_in=6, n_out=8),
    ],
    ids=["no such matrix", "a norm", "experts", "other input", "other output", "turned"],
)
def test_no_adapter_of_other_matrices_passes(file: Gguf) -> None:
    parse(file)
    with pytest.raises(GgufInvalid, match="gguf-adapter-misfit"):
        require_fit(shapes(file), BASE)
