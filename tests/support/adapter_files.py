"""LoRA adapters for tests: as files that a test can spoil, and drawn by chance for a real model."""

from pathlib import Path

import gguf
import numpy as np

from tests.support.gguf_files import F32, STRING, Gguf, Tensor

RANK = 4


def small_adapter(
    name: str = "small",
    *,
    architecture: str = "llama",
    matrix: str = "blk.0.attn_q.weight",
    n_in: int = 8,
    n_out: int = 6,
) -> Gguf:
    """A header that passes: one pair, of rank 4."""
    file = Gguf()
    file.set("general.type", STRING, "adapter")
    file.set("general.architecture", STRING, architecture)
    file.set("general.name", STRING, name)
    file.set("adapter.type", STRING, "lora")
    file.set("adapter.lora.alpha", F32, 8.0)
    file.tensors.append(Tensor(f"{matrix}.lora_a", [n_in, RANK], data=b"\1" * (4 * n_in * RANK)))
    file.tensors.append(Tensor(f"{matrix}.lora_b", [RANK, n_out], data=b"\2" * (4 * RANK * n_out)))
    return file


def drawn_adapter(
    path: Path,
    model: Path,
    *,
    strength: float = 0.05,
    seed: int = 1,
    kind: type = np.float32,
    rank: int = RANK,
    output: bool = False,
) -> Path:
    """Changes every matrix of each layer of a real model, and with ``output`` the one behind them, so much that another
    token is the likeliest."""
    chance = np.random.default_rng(seed)
    base = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, base.fields["general.architecture"].contents())
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    for tensor in base.tensors:
        if tensor.name.startswith(("blk.", "output.")[: 1 + output]) and len(tensor.shape) == 2:
            n_in, n_out = (int(size) for size in tensor.shape)
            writer.add_tensor(f"{tensor.name}.lora_a", chance.normal(0, strength, (rank, n_in)).astype(kind))
            writer.add_tensor(f"{tensor.name}.lora_b", chance.normal(0, strength, (n_out, rank)).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
