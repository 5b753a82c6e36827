"""The radix tree against a simple model, and who gets which stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.runner.engine.prefixes import PrefixTree
from appliance.runner.engine.streams import Place, Streams

TOKENS = st.lists(st.integers(0, 2), max_size=12)
NUMBERS = st.integers(0, 5)


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def common(left: list[int], right: list[int]) -> int:
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.none() | TOKENS), max_size=30), TOKENS)
def test_tree_never_tells_a_prefix_that_is_not_there_nor_misses_one(
    changes: list[tuple[int, list[int] | None]], asked: list[int]
) -> None:
    tree, model = PrefixTree(), dict[int, list[int]]()
    for number, tokens in changes:
        if tokens is None:
            tree.drop(number)
            model.pop(number, None)
        else:
            tree.put(number, array(tokens))
            model[number] = tokens
    matches = list(tree.matches(array(asked)))
    lengths = [length for length, _ in matches]
    assert lengths == sorted(set(lengths))
    assert max(lengths, default=0) == max((common(tokens, asked) for tokens in model.values()), default=0)
    for length, members in matches:
        assert members == {number for number, tokens in model.items() if common(tokens, asked) >= length}
    for number in list(model):
        tree.drop(number)
    assert not len(tree)
    assert not tree._root.children, "an empty tree keeps nothing"


def test_tree_does_not_grow_with_time() -> None:
    tree = PrefixTree()
    tree.put(0, np.zeros(1000, np.int32))
    for cut in range(1, 999):
        tree.put(1, np.concatenate([np.zeros(cut, np.int32), np.ones(1, np.int32)]))
    tree.drop(1)
    nodes, depth = [tree._root], 0
    while nodes:
        depth += 1
        nodes = [child for node in nodes for child in node.children.values()]
    assert depth == 2


# --- streams ----------------------------------------------------------------------------------------------------------

PROMPT = np.arange(100, dtype=np.int32)


def answered(streams: Streams, partition: str, prompt: np.ndarray, *, keep: bool = True) -> Place:
    """A request that has come and gone, with ten tokens of answer."""
    place = streams.place(partition, prompt)
    streams.computed(place.slot, len(prompt) - place.kept)
    streams.release(place.slot, np.concatenate([prompt, np.full(10, 7, np.int32)]), keep=keep)
    return place


def test_nothing_is_taken_over_across_partitions() -> None:
    streams = Streams(4, 16)
    answered(streams, "one", PROMPT)
    assert answered(streams, "two", PROMPT).kept == 0
    assert answered(streams, "one", PROMPT).kept == 99


def test_last_token_of_a_prompt_is_always_computed() -> None:
    streams = Streams(2, 16)
    streams.computed(streams.place("one", PROMPT).slot, 100)
    assert streams.place("one", PROMPT) == Place(1, 0, 99)


def test_longer_conversation_goes_on_in_its_stream() -> None:
    streams = Streams(4, 16)
    answered(streams, "one", np.full(50, 3, np.int32))
    slot = answered(streams, "one", PROMPT).slot
    longer = np.concatenate([PROMPT, np.full(10, 7, np.int32), np.full(20, 9, np.int32)])
    assert streams.place("one", longer) == Place(slot, slot, 110)


def test_beginning_of_a_long_one_is_copied_and_not_taken_away() -> None:
    streams = Streams(3, 16)
    answered(streams, "one", PROMPT)
    other = np.concatenate([PROMPT[:30], np.full(50, 9, np.int32)])
    assert answered(streams, "one", other) == Place(1, 0, 30)
    assert streams.place("one", PROMPT).kept == 99


def test_what_is_not_worth_a_copy_is_computed() -> None:
    streams = Streams(3, 16)
    answered(streams, "one", PROMPT)
    other = np.concatenate([PROMPT[:15], np.full(50, 9, np.int32)])
    assert streams.place("one", other).kept == 0


def test_least_recently_used_goes_first() -> None:
    streams = Streams(3, 16)
    prompts = [np.full(50, number, np.int32) for number in range(4)]
    for prompt in prompts[:3]:
        answered(streams, "one", prompt)
    answered(streams, "one", prompts[0])
    assert answered(streams, "one", prompts[3]) == Place(1, 0, 0), "the second is the oldest now"
    assert [streams.holds(slot) for slot in range(3)] == [60, 60, 60]
    assert answered(streams, "one", prompts[0]).kept == 49


def test_one_partition_cannot_clear_out_another() -> None:
    streams = Streams(3, 16)
    answered(streams, "quiet", PROMPT)
    for number in range(20):
        answered(streams, "loud", np.full(50, number, np.int32))
    assert answered(streams, "quiet", PROMPT).kept == 99


def test_busy_stream_is_never_given_away() -> None:
    streams = Streams(2, 16)
    for number in range(2):
        streams.place("one", np.full(50, number, np.int32))
    assert not streams.free
    with pytest.raises(ValueError, match="empty"):
        streams.place("one", PROMPT)


def test_only_what_is_computed_is_taken_over() -> None:
    streams = Streams(2, 16)
    first = streams.place("one", PROMPT)
    streams.computed(first.slot, 40)
    assert streams.place("one", PROMPT) == Place(1, 0, 40)
    assert streams.catch_up(1, [0]) is None, "the first will have more of it"
    streams.computed(first.slot, 60)
    assert streams.catch_up(1, [0]) == Place(1, 0, 99)


def test_a_partition_of_nobody_keeps_nothing() -> None:
    streams = Streams(2, 16)
    answered(streams, "one", PROMPT, keep=False)
    assert streams.place("one", PROMPT).kept == 0
    assert streams.used_cells == 0


def test_memory_that_cannot_be_cut_is_never_used_again() -> None:
    streams = Streams(2, None)
    answered(streams, "one", PROMPT)
    assert answered(streams, "one", PROMPT).kept == 0
    assert streams.used_cells == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), TOKENS.filter(len), st.integers(0, 12), st.booleans()), max_size=40))
def test_books_are_right_whatever_comes(requests: list[tuple[int, list[int], int, bool]]) -> None:
    """Against a model that keeps, per slot, the tokens that llama.cpp would have."""
    streams = Streams(3, 2)
    held: list[tuple[str, list[int]]] = [("", []) for _ in range(3)]
    busy: list[int] = []
    for tenant, prompt, computed, leaves in requests:
        partition = f"tenant-{tenant}"
        if not streams.free:
            streams.release(busy[0], array(held[busy[0]][1]), keep=True)
            busy.pop(0)
        place = streams.place(partition, array(prompt))
        assert place.slot not in busy
        assert place.kept < len(prompt)
        if place.kept:
            owner, tokens = held[place.source]
            assert owner == partition
            assert tokens[: place.kept] == prompt[: place.kept]
        done = prompt[: max(place.kept, min(computed, len(prompt)))]
        streams.computed(place.slot, len(done) - place.kept)
        held[place.slot] = (partition, done)
        if leaves:
            streams.release(place.slot, array(done), keep=True)
        else:
            busy.append(place.slot)
        assert streams.used_cells == sum(len(tokens) for _, tokens in held)
