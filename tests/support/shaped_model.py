"""Models of any shape whose weights say nothing: for what an engine allocates, not for what it answers."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    """``kv_heads`` may be one number, or one for each block."""

    blocks: int = 2
    embedding: int = 128
    feed_forward: int = 256
    heads: int = 4
    kv_heads: int | tuple[int, ...] = 2
    key: int = 32
    value: int = 32
    vocabulary: int = 512
    quantised: bool = False
    context_tokens: int = 65_536
    pooling: int = 0

    def kv_heads_of(self, block: int) -> int:
        return self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[block]


def write_shaped_model(path: Path, shape: Shape) -> Path:
    """A ``llama`` of this shape, or what comes nearest to it, its matrices all zero, as F16 or Q4_0."""
    architecture = "llama" if isinstance(shape.kv_heads, int) else "deci"  # llama.cpp's one with heads that vary
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads if isinstance(shape.kv_heads, int) else list(shape.kv_heads))
    writer.add_key_length(shape.key)
    writer.add_value_length(shape.value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.key)
    writer.add_tokenizer_model("llama")
    words = shape.vocabulary - 3 - 256
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *of_bytes, *(f"w{number}" for number in range(words))])
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * words])
    if shape.pooling:
        writer.add_pooling_type(gguf.PoolingType(shape.pooling))

    def matrix(name: str, rows: int, columns: int) -> None:
        if shape.quantised:
            n_bytes = columns // 32 * 18
            writer.add_tensor(name, np.zeros((rows, n_bytes), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, np.zeros((rows, columns), np.float16))

    matrix("token_embd.weight", shape.vocabulary, shape.embedding)
    matrix("output.weight", shape.vocabulary, shape.embedding)
    writer.add_tensor("output_norm.weight", np.ones(shape.embedding, np.float32))
    for block in range(shape.blocks):
        kv_heads = shape.kv_heads_of(block)
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.ones(shape.embedding, np.float32))
        writer.add_tensor(f"blk.{block}.ffn_norm.weight", np.ones(shape.embedding, np.float32))
        matrix(f"blk.{block}.attn_q.weight", shape.heads * shape.key, shape.embedding)
        matrix(f"blk.{block}.attn_k.weight", kv_heads * shape.key, shape.embedding)
        matrix(f"blk.{block}.attn_v.weight", kv_heads * shape.value, shape.embedding)
        matrix(f"blk.{block}.attn_output.weight", shape.embedding, shape.heads * shape.value)
        matrix(f"blk.{block}.ffn_gate.weight", shape.feed_forward, shape.embedding)
        matrix(f"blk.{block}.ffn_up.weight", shape.feed_forward, shape.embedding)
        matrix(f"blk.{block}.ffn_down.weight", shape.embedding, shape.feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
