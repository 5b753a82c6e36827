"""Models of real shapes with weights drawn by chance: what they say means nothing, what they cost is a real model's.

The quantised blocks themselves are drawn, which takes seconds where quantising takes minutes. The vocabulary is made of
syllables and short words; control tokens and lone bytes have rows of zeros in the output matrix, so that they are never
among the likely ones: answers never end by themselves, and are always valid text. Whoever asks for so many tokens gets
so many, from every server, without asking for the end to be ignored.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """Of a llama model. ``kind`` is that of the matrices in the layers; the embeddings are Q8_0."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    kind: Kind = Kind.Q4_0
    tied: bool = True
    """Whether the output matrix is that of the embeddings."""


TINY: Final = Shape(layers=2, dim=64, heads=2, kv_heads=1, feed_forward=128, vocabulary=2048, tied=False)
"""For tests: makes and answers in milliseconds."""
MINI: Final = Shape(layers=4, dim=256, heads=4, kv_heads=2, feed_forward=768, vocabulary=32_000, tied=False)
"""Steps so short that what a server adds to them shows."""
HALF_BILLION: Final = Shape(layers=24, dim=896, heads=14, kv_heads=2, feed_forward=4864, vocabulary=151_936)
"""The shape of Qwen2.5-0.5B."""

_BYTES: Final = 256
FIRST_WORD: Final = 3 + _BYTES
"""The first token id after the control tokens and the lone bytes."""
_CONTEXT_TOKENS: Final = 32_768
_LOGIT_SPREAD: Final = 2.5
_EMBEDDING_SPREAD: Final = 0.2
"""Small beside what the layers add to it, or the likeliest next token would be the last one."""
_SEED: Final = 4
_FORMAT: Final = 2
"""Rises with any change of what is written, so that no file of an older kind is found."""


def cached_drawn_model(shape: Shape, cache: Path) -> Path:
    """The file, made now if the folder does not have it. Nobody sees half of one."""
    name = "-".join(str(value) for value in (*vars(shape).values(), _FORMAT))
    path = cache / f"drawn-{name}.gguf".lower()
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        write_drawn_model(part, shape)
        part.rename(path)
    return path


def write_drawn_model(path: Path, shape: Shape, words: Callable[[int], list[str]] | None = None) -> None:
    """The same bytes for the same shape, always. ``words`` makes so many, all different, for the vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    _facts(writer, shape)
    _tokens(writer, (words or _words)(shape.vocabulary - FIRST_WORD))
    for name, array, kind in _tensors(shape, np.random.default_rng(_SEED)):
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _facts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("drawn")
    writer.add_context_length(_CONTEXT_TOKENS)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(0)


# --- vocabulary -----------------------------------------------------------------------------------------------------


def _tokens(writer: gguf.GGUFWriter, words: list[str]) -> None:
    """A SentencePiece vocabulary, in which an earlier word is joined before a later one."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(_BYTES))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * _BYTES]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts + words)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * len(words))
    writer.add_token_scores([0.0] * FIRST_WORD + [-1.0 - rank for rank in range(len(words))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _words(count: int) -> list[str]:
    """Letters, then joins of two earlier ones, so that each can be reached by joining. All differ."""
    letters = "abcdefghijklmnopqrstuvwxyz.,\u00e9\u00df\u6f22\u5b57\U0001f600"
    words = ["\u2581", *letters]
    shorter = [word + letter for word in words for letter in letters]
    while len(words) + len(shorter) < count:
        words += shorter
        shorter = [word + letter for word in shorter for letter in letters]
    return words + shorter[: count - len(words)]


# --- weights --------------------------------------------------------------------------------------------------------


def _tensors(shape: Shape, chance: np.random.Generator) -> Iterator[tuple[str, NDArray[Any], Kind | None]]:
    """Name, content and kind. Rows are what comes out."""
    dim, ff, kv = shape.dim, shape.feed_forward, shape.dim // shape.heads * shape.kv_heads
    matrices = {
        "attn_q": (dim, dim), "attn_k": (kv, dim), "attn_v": (kv, dim), "attn_output": (dim, dim),
        "ffn_gate": (ff, dim), "ffn_up": (ff, dim), "ffn_down": (dim, ff),
    }  # fmt: skip
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", np.ones(dim, np.float32), None
        for name, (rows, columns) in matrices.items():
            yield f"blk.{layer}.{name}.weight", *_drawn(chance, rows, columns, shape.kind, 1 / sqrt(columns))
    yield "output_norm.weight", np.ones(dim, np.float32), None
    logits = _LOGIT_SPREAD / sqrt(dim)
    names = {"token_embd": logits} if shape.tied else {"token_embd": _EMBEDDING_SPREAD, "output": logits}
    for name, spread in names.items():
        blocks, kind = _drawn(chance, shape.vocabulary, dim, Kind.Q8_0, spread)
        if shape.tied or name == "output":
            blocks[:FIRST_WORD] = 0
        yield f"{name}.weight", blocks, kind


def _drawn(
    chance: np.random.Generator, rows: int, columns: int, kind: Kind, spread: float
) -> tuple[NDArray[np.uint8], Kind]:
    """Blocks of 32 weights: one scale in half precision, then the quants, even around zero. ``spread`` is the standard
    deviation of the weights."""
    blocks = columns // 32
    if kind is Kind.Q4_0:
        low, high = chance.integers(1, 16, (2, rows, blocks, 16), np.uint8)
        quants, deviation = low | high << 4, sqrt((15**2 - 1) / 12)
    else:
        quants = chance.integers(-127, 128, (rows, blocks, 32), np.int8).view(np.uint8)
        deviation = sqrt((255**2 - 1) / 12)
    scale = np.full((rows, blocks, 1), spread / deviation, np.float16).view(np.uint8)
    return np.concatenate([scale, quants], axis=2).reshape(rows, -1), kind
