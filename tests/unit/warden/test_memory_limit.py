"""The limit of a runner's memory: above what a sound model takes, below what the host has."""

import msgspec

from appliance.warden import memory
from tests.support.made_values import model

GIB = 2**30


def limit(host_gib: int = 1024, slots: int = 4, threads: int = 8, context_tokens: int = 4096, **changed: int) -> int:
    facts = msgspec.structs.replace(model().facts, **changed)
    return memory.limit_bytes(
        facts, tokens=context_tokens * slots, slots=slots, threads=threads, host_bytes=host_gib * GIB
    )


def test_no_model_is_without_a_limit() -> None:
    assert limit() >= memory.LEAST_BYTES
    assert limit(file_bytes=2**62) <= memory.MOST_BYTES
    assert limit(file_bytes=2**62, host_gib=16) == 12 * GIB
    assert limit(host_gib=0) == memory.LEAST_BYTES


def test_every_part_of_what_a_model_needs_raises_it() -> None:
    shape = {"block_count": 28, "embedding_length": 1024, "vocabulary_tokens": 152_000, "file_bytes": 640_000_000}
    before = limit(**shape)
    for name, value in shape.items():
        assert limit(**{**shape, name: 2 * value}) > before, name
    assert limit(**shape, slots=8) > before
    assert limit(**shape, threads=16) > before
    assert limit(**shape, context_tokens=8192) > before


def test_known_shapes_have_room_for_weights_and_whole_cache() -> None:
    """Keys and values as llama.cpp keeps them (2 bytes each), for heads that are wider than the embedding too."""
    for blocks, embedding, cached, file_bytes in (
        (28, 1024, 1024, 640_000_000),  # Qwen3 0.6B
        (28, 3072, 4096, 5_000_000_000),  # Gemma 7B
        (80, 8192, 1024, 40_000_000_000),  # Llama 3 70B
    ):
        given = limit(block_count=blocks, embedding_length=embedding, vocabulary_tokens=256_000, file_bytes=file_bytes)
        assert given > file_bytes + 4 * 4096 * blocks * 2 * cached * 2 + GIB
