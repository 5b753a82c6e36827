"""No answer costs less than what its reader was told."""

from hypothesis import given
from hypothesis import strategies as st

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.meter import Meter, text_bytes
from appliance.core.values import AnswerEvent, Delta, End, Started, ToolCallDelta, Usage


def metered(*events: AnswerEvent) -> Meter:
    meter = Meter()
    for event in events:
        meter.feed(event)
    return meter


def usage(*events: AnswerEvent) -> tuple[int, int]:
    counted = metered(*events).usage()
    return counted.prompt_tokens, counted.completion_tokens


def end(prompt: int, completion: int) -> End:
    return End(reason="stop", prompt_tokens=prompt, completion_tokens=completion)


def test_nothing_costs_nothing() -> None:
    assert metered().usage() == Usage(prompt_tokens=0, completion_tokens=0)
    assert metered().end is None


def test_broken_answer_costs_what_was_seen() -> None:
    assert usage(Started(prompt_tokens=7)) == (7, 0)
    assert usage(Started(prompt_tokens=7), Delta(text="a", tokens=2), Delta(text="b", tokens=3)) == (7, 5)


def test_last_word_adds_tokens_without_text() -> None:
    assert usage(Started(prompt_tokens=7), Delta(text="a", tokens=2), end(7, 4)) == (7, 4)


def test_last_word_cannot_take_back_what_was_told() -> None:
    assert usage(Started(prompt_tokens=7), Delta(text="a", tokens=9), end(0, 0)) == (7, 9)


def test_text_that_is_said_to_be_free_is_charged_by_its_length() -> None:
    assert usage(Started(prompt_tokens=1), Delta(text="x" * MAX_TOKEN_BYTES, tokens=0)) == (1, 1)
    free = [Delta(text="x" * 100, tokens=0)] * 100
    assert usage(Started(prompt_tokens=1), *free, end(1, 0)) == (1, -(-100 * 100 // MAX_TOKEN_BYTES))
    assert usage(Started(prompt_tokens=1), Delta(text="\U0001f600" * 64, tokens=0), Delta(text="a", tokens=0)) == (1, 2)


def test_broken_bytes_are_not_charged_as_the_characters_that_replace_them() -> None:
    assert text_bytes("\ufffd" * 10 + "\u00e9") == 12
    assert usage(Delta(text="\ufffd" * MAX_TOKEN_BYTES, tokens=1)) == (0, 1)


def test_reasoning_and_calls_are_charged_as_text_is() -> None:
    long = "x" * MAX_TOKEN_BYTES
    call = ToolCallDelta(index=0, id="i" * 64, name="f", arguments=long)
    assert usage(Delta(reasoning=long, tokens=0), Delta(tool_calls=(call,), tokens=0)) == (0, 3)
    assert usage(Delta(text=long, reasoning=long, tool_calls=(call, call), tokens=1)) == (0, 5)


def test_echoed_prompt_is_not_charged_as_an_answer_and_what_goes_beyond_it_is() -> None:
    echo = Delta(text="x" * 1000, tokens=0)
    meter = Meter(echo_bytes=1000)
    meter.feed(echo)
    assert meter.usage().completion_tokens == 0
    meter.feed(Delta(text="y", tokens=0))
    assert meter.usage().completion_tokens == 1


def test_cached_tokens_are_told_and_charged() -> None:
    last = End(reason="stop", prompt_tokens=9, completion_tokens=1, cached_tokens=8)
    assert metered(Started(prompt_tokens=9), last).usage() == Usage(
        prompt_tokens=9, completion_tokens=1, cached_tokens=8
    )


def test_end_is_kept() -> None:
    assert metered(Started(prompt_tokens=1), end(1, 0)).end == end(1, 0)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 100), st.integers(0, 100), st.integers(0, 500))
def test_cost_is_at_least_every_count_that_was_seen(
    deltas: list[int], start: int, prompt: int, completion: int
) -> None:
    events = [
        Started(prompt_tokens=start),
        *(Delta(text="", tokens=tokens) for tokens in deltas),
        end(prompt, completion),
    ]
    counted = metered(*events).usage()
    assert counted.prompt_tokens == max(start, prompt)
    assert counted.completion_tokens == max(sum(deltas), completion)
    assert counted.total_tokens == counted.prompt_tokens + counted.completion_tokens
