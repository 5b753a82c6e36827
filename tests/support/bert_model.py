"""Small encoders: random weights for what pools, and a real one from the package that carries it.

``bert_model`` makes a BERT of two layers with a WordPiece vocabulary of single characters; ``write_bert`` writes any
BERT from named tensors, for the fixture that converts a real one.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float32]]

POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
CLS, SEP, PAD, UNK = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
WIDTH = 32
_HEADS, _LAYERS, _INNER = 4, 2, 64
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
VOCABULARY = (PAD, UNK, CLS, SEP, *_LETTERS, *(f"##{letter}" for letter in _LETTERS[:36]))


@dataclass(frozen=True)
class Shape:
    """What a BERT's file says about itself."""

    width: int = WIDTH
    heads: int = _HEADS
    layers: int = _LAYERS
    inner: int = _INNER
    context_tokens: int = 128
    epsilon: float = 1e-12


@functools.cache
def _directory() -> Path:
    path = tempfile.mkdtemp(prefix="paddock-bert-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def bert_model(
    pooling: int | None = POOLING["mean"],
    *,
    head: bool = False,
    half_head: bool = False,
    spoiled: bool = False,
    context_tokens: int = 128,
) -> Path:
    """The path of a tiny BERT. ``head`` adds one to rank with, ``half_head`` one without its last layer; ``spoiled``
    makes its numbers not finite."""
    path = _directory() / f"{len(list(_directory().iterdir()))}.gguf"
    shape = Shape(context_tokens=context_tokens)
    weights = dict(_random(shape))
    numbers = np.random.default_rng(1)
    if head or half_head:
        weights["cls.weight"] = numbers.standard_normal((shape.width, shape.width), np.float32) * 0.3
        weights["cls.bias"] = np.zeros(shape.width, np.float32)
    if head:
        weights["cls.output.weight"] = numbers.standard_normal((1, shape.width), np.float32)
        weights["cls.output.bias"] = np.zeros(1, np.float32)
    if spoiled:
        weights["blk.1.layer_output_norm.weight"][:] = np.nan
    write_bert(path, shape, VOCABULARY, weights, pooling=pooling)
    return path


def _random(shape: Shape) -> dict[str, NDArray[np.float32]]:
    numbers = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return numbers.standard_normal((rows, columns), np.float32) * np.float32(0.5)

    weights = {
        "token_embd.weight": matrix(len(VOCABULARY), shape.width),
        "token_types.weight": matrix(2, shape.width),
        "position_embd.weight": matrix(shape.context_tokens, shape.width),
    }
    norms = ["token_embd_norm"]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norms += [f"{block}attn_output_norm", f"{block}layer_output_norm"]
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[f"{block}{name}.weight"] = matrix(shape.width, shape.width)
            weights[f"{block}{name}.bias"] = np.zeros(shape.width, np.float32)
        weights[f"{block}ffn_up.weight"] = matrix(shape.inner, shape.width)
        weights[f"{block}ffn_up.bias"] = np.zeros(shape.inner, np.float32)
        weights[f"{block}ffn_down.weight"] = matrix(shape.width, shape.inner)
        weights[f"{block}ffn_down.bias"] = np.zeros(shape.width, np.float32)
    for norm in norms:
        weights[f"{norm}.weight"] = np.ones(shape.width, np.float32)
        weights[f"{norm}.bias"] = np.zeros(shape.width, np.float32)
    return weights


def write_bert(path: Path, shape: Shape, vocabulary: Sequence[str], weights: Weights, *, pooling: int | None) -> None:
    """A GGUF of architecture ``bert``: F32 matrices by llama.cpp's names, and a WordPiece vocabulary in its notation,
    in which a word's beginning is marked and its continuation is not."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_vocab_size(len(vocabulary))
    writer.add_token_type_count(len(weights["token_types.weight"]))
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    _add_vocabulary(writer, vocabulary)
    for name, weight in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, vocabulary: Sequence[str]) -> None:
    special = {token for token in vocabulary if token.startswith("[") and token.endswith("]") and len(token) > 2}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_marked(token, token in special) for token in vocabulary])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(vocabulary.index(CLS))
    writer.add_sep_token_id(vocabulary.index(SEP))
    writer.add_pad_token_id(vocabulary.index(PAD))
    writer.add_unk_token_id(vocabulary.index(UNK))


def _marked(token: str, special: bool) -> str:
    if special:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"
