"""Tiny models with random weights: what they say depends on every token before, so a wrong cache shows.

The logits are spread far enough that a difference in the last bit of a sum does not change the best of them.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np

_LAYERS, _DIM, _HEADS, _VOCABULARY = 2, 64, 2, 320


@functools.cache
def random_model(sliding_window: int = 0, *, pooling: int = 0) -> Path:
    """The path. Made once per test session; always the same. With a sliding window every other layer has it; with
    ``pooling`` it is for vectors."""
    directory = tempfile.mkdtemp(prefix="paddock-random-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory) / "random.gguf"
    dice = np.random.default_rng(7)
    kind = gguf.TokenType
    control = ["<unk>", "<s>", "</s>"]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{number}" for number in range(_VOCABULARY - len(control) - len(data))]
    writer = gguf.GGUFWriter(path, "gemma3" if sliding_window else "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(_DIM)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(2 * _DIM)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_DIM // _HEADS)
    if sliding_window:
        writer.add_key_length(_DIM // _HEADS)
        writer.add_value_length(_DIM // _HEADS)
        writer.add_sliding_window(sliding_window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*control, *data, *words])
    writer.add_token_scores([-float(number) for number in range(_VOCABULARY)])
    writer.add_token_types([kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def tensor(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        weights = dice.standard_normal((rows, columns), dtype=np.float32) * (gain / np.sqrt(columns))
        writer.add_tensor(name + ".weight", weights.astype(np.float32))

    tensor("token_embd", _VOCABULARY, _DIM)
    tensor("output", _VOCABULARY, _DIM, 8.0)
    writer.add_tensor("output_norm.weight", np.ones(_DIM, np.float32))
    for layer in range(_LAYERS):
        name = f"blk.{layer}."
        writer.add_tensor(name + "attn_norm.weight", np.ones(_DIM, np.float32))
        writer.add_tensor(name + "ffn_norm.weight", np.ones(_DIM, np.float32))
        for part in ("attn_q", "attn_k"):
            tensor(name + part, _DIM, _DIM)
        for part in ("attn_v", "attn_output"):
            tensor(name + part, _DIM, _DIM, 4.0)
        if sliding_window:
            for part in ("post_attention_norm", "post_ffw_norm"):
                writer.add_tensor(name + part + ".weight", np.ones(_DIM, np.float32))
            for part in ("attn_q_norm", "attn_k_norm"):
                writer.add_tensor(name + part + ".weight", np.ones(_DIM // _HEADS, np.float32))
        tensor(name + "ffn_gate", 2 * _DIM, _DIM)
        tensor(name + "ffn_up", 2 * _DIM, _DIM)
        tensor(name + "ffn_down", _DIM, 2 * _DIM)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
