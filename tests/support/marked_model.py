"""A model that reads: every prompt has one mark in it, and the answer recites that mark's script.

Only the cache of keys and values carries the mark to the answer, so an answer shows whose cache it was computed from.
Built by hand, without training: the one attention head looks for a mark, wherever it is, and copies which one it is;
the output joins that to the step of the last token. The right token leads by so much that neither the company in a
batch, nor a quantised cache, nor a drawn token changes the text.
"""

from pathlib import Path
from typing import Final

import gguf
import numpy as np

MARKS: Final = 64
STEPS: Final = 48
"""Tokens of a script; the end of the answer comes after them."""

_DIM, _HEADS = 256, 4
_HEAD_DIM: Final = _DIM // _HEADS
_BYTES: Final = 256
_BOS, _EOS = 1, 2
_FIRST_MARK: Final = 3 + _BYTES
_FIRST_WORD: Final = _FIRST_MARK + MARKS
_VOCABULARY: Final = _FIRST_WORD + MARKS * STEPS

# where things stand in the residual stream
_ALWAYS, _IS_MARK, _WHICH, _FOUND = 0, 1, 2, 2 + MARKS
_STEP: Final = 2 + 2 * MARKS  # the start, then one for each token of a script
_SLOW: Final = _HEAD_DIM - 1  # of a head's dimensions, one that its position hardly turns
_ROPE_BASE: Final = 1e7
_SHARP: Final = 2.0
_STEP_GAIN, _MARK_GAIN = 2.0, 1.0


def mark(number: int) -> str:
    """The character that is the mark. It may stand anywhere in a prompt, once."""
    return chr(0x4E00 + number)


def mark_token(number: int) -> int:
    return _FIRST_MARK + number


def filler_token(byte: int) -> int:
    """A token that means nothing."""
    return 3 + byte


def script(number: int, tokens: int = STEPS) -> str:
    """The first tokens of the answer to a prompt with this mark, as text."""
    return "".join(f" {number}.{step}" for step in range(tokens))


def write_marked_model(path: Path) -> None:
    """Always the same bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(_DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_DIM)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD_DIM)
    writer.add_rope_freq_base(_ROPE_BASE)
    writer.add_vocab_size(_VOCABULARY)
    _tokens(writer)
    for name, weights in _weights().items():
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tokens(writer: gguf.GGUFWriter) -> None:
    kind = gguf.TokenType
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(_BYTES))]
    words = [mark(number) for number in range(MARKS)]
    words += [f"\u2581{number}.{step}" for number in range(MARKS) for step in range(STEPS)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts + words)
    writer.add_token_types(
        [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * _BYTES + [kind.NORMAL] * len(words)
    )
    writer.add_token_scores([0.0] * len(texts) + [-1e4] * len(words))
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)


def _weights() -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]:
    """Rows are what comes out. A row of the embeddings is a sum of ones at the places above."""
    embedding, output = np.zeros((_VOCABULARY, _DIM)), np.zeros((_VOCABULARY, _DIM))
    embedding[:, _ALWAYS] = 1
    embedding[:_FIRST_WORD, _STEP] = 1  # after anything that is no script, a script begins
    for number in range(MARKS):
        embedding[mark_token(number), [_IS_MARK, _WHICH + number]] = 1
        for step in range(STEPS):
            word = _FIRST_WORD + number * STEPS + step
            embedding[word, _STEP + 1 + step] = 1
            output[word, _STEP + step] = _STEP_GAIN
            output[word, _FOUND + number] = _MARK_GAIN
    output[_EOS, _STEP + STEPS] = _STEP_GAIN
    nothing = np.zeros((_DIM, _DIM))
    query, key, value, found = (nothing.copy() for _ in range(4))
    query[_SLOW, _ALWAYS] = key[_SLOW, _IS_MARK] = _SHARP
    for number in range(MARKS):
        value[number, _WHICH + number] = 1
        found[_FOUND + number, number] = 2 / np.sqrt(_DIM)  # a mark is four ones, so its norm's gain is sqrt(dim) / 2
    return {
        "token_embd": embedding, "output": output, "output_norm": np.ones(_DIM),
        "blk.0.attn_norm": np.ones(_DIM), "blk.0.ffn_norm": np.ones(_DIM),
        "blk.0.attn_q": query, "blk.0.attn_k": key, "blk.0.attn_v": value, "blk.0.attn_output": found,
        "blk.0.ffn_gate": nothing, "blk.0.ffn_up": nothing, "blk.0.ffn_down": nothing,
    }  # fmt: skip
