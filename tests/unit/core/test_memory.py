"""What a model takes is reckoned from its header, never too low, and nothing is unloaded in vain."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core import memory
from appliance.core.gguf import (
    MAX_BLOCKS,
    MAX_FEED_FORWARD_LENGTH,
    MAX_HEAD_LENGTH,
    MAX_HEADS,
    MAX_STATE_LENGTH,
    MAX_USABLE_CONTEXT_TOKENS,
    GgufInvalid,
    parse_header,
)
from appliance.core.memory import KvType, MemoryPlan, Room, who_makes_room, why_unfit
from appliance.core.values import CacheShape, GgufFacts
from tests.support.gguf_files import ARRAY, F32, I32, STRING, U32, Gguf, array, small_model
from tests.support.made_values import model

MIB = 2**20
GIB = 2**30


def facts_of(gguf: Gguf) -> GgufFacts:
    data = gguf.build()
    return parse_header(data, len(data))


def shaped(architecture: str = "llama", **keys: int | list[int]) -> GgufFacts:
    """``small_model`` with further keys, ``__`` for a dot."""
    gguf = small_model()
    gguf.set("general.architecture", STRING, architecture)
    for key in ("context_length", "embedding_length", "block_count"):
        gguf.drop(f"llama.{key}")
        gguf.set(f"{architecture}.{key}", U32, 4096)
    gguf.set(f"{architecture}.block_count", U32, 4)
    for name, value in keys.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, list):
            gguf.put(key, ARRAY, array(I32, value))
        else:
            gguf.set(key, U32, value)
    return facts_of(gguf)


def planned(facts: GgufFacts, **changes: Any) -> MemoryPlan:
    options: dict[str, Any] = {"context_tokens": 4096, "slots": 4, "threads": 2, "kv_type": "f16"}
    return memory.plan(facts, **(options | changes))


def cache_of(facts: GgufFacts) -> CacheShape:
    assert facts.cache is not None
    return facts.cache


# --- the header -----------------------------------------------------------------------------------------------------

HEADS: list[tuple[str, dict[str, int | list[int]], int]] = [
    ("as wide as the embedding", {"attention__head_count": 32}, 4 * 32 * (128 + 128)),
    ("shared", {"attention__head_count": 32, "attention__head_count_kv": 8}, 4 * 8 * 256),
    (
        "shared otherwise in each layer",
        {"attention__head_count": 32, "attention__head_count_kv": [8, 0, 4, 1]},
        13 * 256,
    ),
    ("otherwise in each layer", {"attention__head_count": [32, 16, 8, 8]}, 64 * 2 * 512),
    (
        "of their own length",
        {"attention__head_count": 32, "attention__key_length": 192, "attention__value_length": 64},
        4 * 32 * 256,
    ),
    (
        "longer where the window slides",
        {"attention__head_count": 32, "attention__key_length_swa": 256, "attention__sliding_window": 512},
        4 * 32 * (256 + 128),
    ),
    ("with an index", {"attention__head_count": 32, "attention__indexer__key_length": 64}, 4 * 32 * 256 + 4 * 64),
    ("not told", {}, 4 * 2 * 4096),
    ("none, and nothing else either", {"attention__head_count": 0}, 4 * 2 * 4096),
    ("not told but for the shared", {"attention__head_count_kv": 2}, 4 * 2 * 2 * 4096),
    ("none, and a state", {"attention__head_count": 0, "ssm__inner_size": 8, "ssm__state_size": 4}, 0),
]


@pytest.mark.parametrize(("keys", "values"), [row[1:] for row in HEADS], ids=[row[0] for row in HEADS])
def test_cached_values_are_never_fewer_than_the_engine_keeps(keys: dict[str, Any], values: int) -> None:
    assert cache_of(shaped(**keys)).values_per_token == values


STATES: list[tuple[str, dict[str, int], int]] = [
    (
        "Mamba",
        {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2},
        3 * (64 + 2 * 2 * 16) + 16 * 64,
    ),
    ("RWKV", {"wkv__head_size": 64}, 4096 * (64 + 2)),
    ("LFM2", {"shortconv__l_cache": 3, "attention__head_count": 8}, 4096 * 2),
    ("Kimi", {"kda__head_dim": 128, "attention__head_count": 8}, 8 * 128 * (128 + 9)),
]


@pytest.mark.parametrize(("keys", "values"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_state_of_recurrent_layers_counts_for_each_sequence(keys: dict[str, Any], values: int) -> None:
    facts = shaped("hybrid", **keys)
    assert cache_of(facts).state_bytes == 4 * 4 * values
    assert planned(facts, slots=8).cache - planned(facts, slots=4).cache >= 4 * cache_of(facts).state_bytes


def test_encoder_has_no_cache() -> None:
    assert planned(shaped("bert", attention__head_count=12)).cache == 0


def test_model_that_pools_is_charged_for_one_batch_and_a_row_for_each_of_its_tokens() -> None:
    facts = shaped("qwen3", attention__head_count=32, attention__head_count_kv=8, pooling_type=3)
    assert facts.pools
    assert not shaped("qwen3", pooling_type=0).pools
    facts = msgspec.structs.replace(facts, vocabulary_tokens=150_000)
    plan = planned(facts, context_tokens=1024, slots=4, kv_type="q4_0")
    assert plan.cache == 1024 * cache_of(facts).values_per_token * 2
    assert plan == planned(facts, context_tokens=1024, slots=64, kv_type="f16")
    rows_and_scores = 2 * 1024 * 150_000 * 4 + 2 * 4 * 32 * 1024**2
    assert plan.compute >= rows_and_scores
    assert planned(facts, context_tokens=64, slots=1).compute >= 512 * 150_000 * 4
    assert why_unfit(facts, plan, kv_type="q4_0", budget_bytes=2**46) == ""


def test_experts_of_a_token_count_together() -> None:
    facts = shaped(expert_count=64, expert_used_count=8, expert_feed_forward_length=1024, feed_forward_length=2048)
    assert facts.feed_forward_length == 8192
    assert shaped(feed_forward_length=[1, 2, 3, 4096]).feed_forward_length == 4096


def test_a_vector_may_be_of_another_length_than_the_embedding() -> None:
    assert shaped().vector_length == 0
    assert shaped(embedding_length_out=128).vector_length == 128


def test_tensors_are_told_by_type() -> None:
    assert facts_of(small_model(n_bytes=4096)).tensor_bytes == ((0, 4096 + 36),)


# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv_type", "n_bytes"), [("f16", 2 * MIB), ("q8_0", 34 * MIB // 32), ("q4_0", 18 * MIB // 32)])
def test_cache_is_as_large_as_its_type_says(kv_type: KvType, n_bytes: int) -> None:
    facts = msgspec.structs.replace(
        model(context_tokens=65536).facts,
        cache=CacheShape(values_per_token=64, heads=1, row_values=1, state_bytes=0, quantisable=True),
    )
    assert planned(facts, kv_type=kv_type).cache == n_bytes
    assert planned(facts, kv_type=kv_type, context_tokens=4095).cache == n_bytes  # each slot's 4,095 become 4,096
    assert planned(facts, kv_type=kv_type, context_tokens=8192).cache == 2 * n_bytes
    assert planned(facts, kv_type=kv_type, slots=8).cache == 2 * n_bytes


def test_model_is_not_charged_for_more_context_than_it_has() -> None:
    facts = model(context_tokens=2048).facts
    assert planned(facts, context_tokens=262_144) == planned(facts, context_tokens=2048)


def test_facts_that_do_not_say_cost_the_most() -> None:
    silent = msgspec.structs.replace(model().facts, embedding_length=4096, block_count=32, file_bytes=GIB)
    said = msgspec.structs.replace(
        silent,
        feed_forward_length=14336,
        cache=CacheShape(values_per_token=32 * 2048, heads=32, row_values=4096, state_bytes=0, quantisable=True),
        tensor_bytes=((8, GIB),),
    )
    assert planned(silent).cache == 8 * planned(said).cache
    assert (planned(silent).copies, planned(said).copies) == (GIB, 0)
    assert planned(said, copied_types=memory.COPIED_TYPES_ELSEWHERE).copies == GIB
    assert planned(silent).compute >= planned(said).compute


def test_header_that_claims_the_most_is_a_large_number_and_no_crash() -> None:
    """All caps at once: more than any machine has, and still a message that can be sent."""
    facts = shaped(
        block_count=MAX_BLOCKS,
        attention__head_count=MAX_HEADS,
        attention__key_length=MAX_HEAD_LENGTH,
        attention__value_length=MAX_HEAD_LENGTH,
        feed_forward_length=MAX_FEED_FORWARD_LENGTH,
    )
    facts = msgspec.structs.replace(facts, context_tokens=MAX_USABLE_CONTEXT_TOKENS)
    assert cache_of(facts).values_per_token == MAX_BLOCKS * MAX_HEADS * 2 * MAX_HEAD_LENGTH
    lie = planned(facts, context_tokens=MAX_USABLE_CONTEXT_TOKENS, slots=64)
    assert lie.cache == memory.MOST_BYTES
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(lie), type=MemoryPlan) == lie
    assert "it needs" in why_unfit(facts, lie, kv_type="f16", budget_bytes=2**46)


LIES: list[tuple[dict[str, int | list[int]], str]] = [
    ({"attention__head_count": MAX_HEADS + 1}, "gguf-out-of-range"),
    ({"attention__head_count_kv": 2**32 - 1}, "gguf-out-of-range"),
    ({"attention__head_count": [1, 1, 1, -1]}, "gguf-out-of-range"),
    ({"attention__head_count": [1, 1, 1]}, "gguf-out-of-range"),
    ({"attention__head_count": [1, 1, 1, 2**31 - 1]}, "gguf-out-of-range"),
    ({"attention__key_length": MAX_HEAD_LENGTH + 1}, "gguf-out-of-range"),
    ({"feed_forward_length": MAX_FEED_FORWARD_LENGTH + 1}, "gguf-out-of-range"),
    ({"ssm__inner_size": MAX_STATE_LENGTH + 1}, "gguf-out-of-range"),
    ({"ssm__inner_size": MAX_STATE_LENGTH, "ssm__state_size": MAX_STATE_LENGTH}, "gguf-out-of-range"),
]


@pytest.mark.parametrize(("keys", "reason"), LIES)
def test_impossible_heads_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(GgufInvalid) as caught:
        shaped(**keys)
    assert caught.value.reason == reason


def test_heads_of_another_type_are_refused() -> None:
    for put in (
        lambda gguf: gguf.put("llama.attention.head_count", ARRAY, array(F32, [1.0])),
        lambda gguf: gguf.set("llama.attention.head_count", STRING, "4"),
        lambda gguf: gguf.set("llama.attention.key_length", F32, 4.0),
    ):
        gguf = small_model()
        put(gguf)
        with pytest.raises(GgufInvalid) as caught:
            facts_of(gguf)
        assert caught.value.reason == "gguf-key-type"


# --- what never fits ------------------------------------------------------------------------------------------------


def test_what_never_fits_is_told_with_its_parts() -> None:
    facts = model().facts
    plan = MemoryPlan(weights=3 * GIB, copies=GIB, cache=512 * MIB, compute=1, process=2 * MIB)
    assert why_unfit(facts, plan, kv_type="f16", budget_bytes=plan.total) == ""
    assert why_unfit(facts, plan, kv_type="f16", budget_bytes=plan.total - 1) == (
        "it needs 4611 MiB (4096 MiB weights, 512 MiB cache, 3 MiB for the runner), "
        "and all runners together may have 4610 MiB"
    )


@pytest.mark.parametrize(("kv_type", "fits"), [("f16", True), ("q8_0", False), ("q4_0", False)])
def test_heads_that_are_no_whole_blocks_are_not_cached_in_blocks(kv_type: KvType, fits: bool) -> None:
    """llama.cpp would refuse to make the context, after all the weights were read."""
    facts = shaped(attention__head_count=32, attention__key_length=80, attention__value_length=80)
    assert (why_unfit(facts, planned(facts), kv_type=kv_type, budget_bytes=2**46) == "") is fits


# --- who makes room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "room", "idle", "going"),
    [
        (10, Room(10, 1), [("a", 5)], ()),
        (10, Room(10, 0), [("old", 5), ("new", 5)], ("old",)),
        (10, Room(4, 1), [("old", 3), ("middle", 3), ("new", 3)], ("old", "middle")),
        (10, Room(4, 1), [("small", 1), ("large", 9), ("new", 9)], ("large",)),
        (10, Room(4, 0), [("small", 1), ("large", 9)], ("large",)),
        (10, Room(-5, 3), [("a", 10), ("b", 10)], ("a", "b")),
        (10, Room(4, 1), [("a", 3)], None),
        (10, Room(10, 0), [], None),
        (10, Room(10, -1), [("a", 1)], None),
        (10, Room(10, -1), [("a", 1), ("b", 1)], ("a", "b")),
    ],
)
def test_longest_idle_go_first_and_none_in_vain(needed: int, room: Room, idle: Any, going: Any) -> None:
    assert who_makes_room(needed, room, idle) == going


@settings(max_examples=300, deadline=None)
@given(
    needed=st.integers(0, 50),
    room=st.builds(Room, st.integers(-20, 60), st.integers(-1, 3)),
    sizes=st.lists(st.integers(0, 30), max_size=6),
)
def test_nobody_goes_who_could_stay(needed: int, room: Room, sizes: list[int]) -> None:
    idle = list(enumerate(sizes))
    going = who_makes_room(needed, room, idle)
    if going is None:
        assert not room.without(*sizes).fits(needed)
        return
    assert room.without(*(sizes[key] for key in going)).fits(needed)
    for stays in going:
        assert not room.without(*(sizes[key] for key in going if key != stays)).fits(needed)
