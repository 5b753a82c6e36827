"""No chunk and no object has another shape than OpenAI's clients read."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.manifest import accompanied, as_companion
from appliance.core.values import (
    Delta,
    End,
    FinishReason,
    SampledToken,
    Sampling,
    Started,
    TextPrompt,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from appliance.gateway.generation import Head
from appliance.gateway.surfaces.openai.chat_answer import ChunkWriter, Completion
from appliance.gateway.surfaces.openai.completions import TextCompletion, TextWriter
from appliance.gateway.surfaces.openai.models import model_object
from tests.support.made_values import adapter, chat_request, model, talk

USAGE = Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=4)
USAGE_OBJECT = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4},
}
STARTED = Started(prompt_tokens=9)
HALF = SampledToken(
    chosen=TokenLogprob(piece="é".encode()[:1], logprob=-0.5),
    alternatives=(TokenLogprob(piece=b"a", logprob=-0.25), TokenLogprob(piece=b"b", logprob=float("-inf"))),
)
CERTAIN = SampledToken(chosen=TokenLogprob(piece=b" yes", logprob=0.0))


def head(**changes: Any) -> Head:
    return Head(request_id="r-1", created=1_790_000_000, fingerprint="sha256-00", request=chat_request(**changes))


def said(data: bytes) -> list[Any]:
    """The events of a stream."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text(content: str, choice: int = 0, **more: Any) -> Delta:
    return Delta(text=content, choice=choice, tokens=1, **more)


def called(index: int, name: str = "", arguments: str = "", choice: int = 0) -> Delta:
    call = ToolCallDelta(index=index, id=f"call-{index}" if name else "", name=name, arguments=arguments)
    return Delta(tool_calls=(call,), choice=choice, tokens=1)


def end(reason: FinishReason, *choice_reasons: FinishReason) -> End:
    return End(reason=reason, prompt_tokens=9, completion_tokens=2, choice_reasons=choice_reasons)


# --- chat, streamed -------------------------------------------------------------------------------------------------


def chunk(choices: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-r-1",
        "created": 1_790_000_000,
        "model": "demo",
        "choices": choices,
        "object": "chat.completion.chunk",
        "system_fingerprint": "sha256-00",
        **more,
    }


def choice(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"delta": delta, "index": 0, "finish_reason": finish_reason, "logprobs": None} | more


def written(*pieces: Delta, **changes: Any) -> list[Any]:
    """The choices of the chunks for pieces that came at once."""
    return [event["choices"] for event in said(ChunkWriter(head(**changes)).events(pieces))]


def test_chunks_have_exactly_these_shapes() -> None:
    one = ChunkWriter(head(include_usage=True))
    assert said(one.begin()) == [chunk([choice({"role": "assistant", "content": ""})])]
    assert said(one.events([text("Hé\n")])) == [chunk([choice({"content": "Hé\n"})])]
    assert said(one.finish(end("stop"), USAGE)) == [
        chunk([choice({}, "stop")]),
        chunk([], usage=USAGE_OBJECT),
        "[DONE]",
    ]


def test_nothing_to_say_is_no_chunk() -> None:
    assert ChunkWriter(head()).events([STARTED, end("stop")]) == b""


def test_each_choice_has_its_role_first_and_its_reason_last() -> None:
    one = ChunkWriter(head(choices=3))
    role = {"role": "assistant", "content": ""}
    assert [event["choices"] for event in said(one.begin())] == [[choice(role, index=index)] for index in range(3)]
    assert written(text("a", 2), text("b", 0), choices=3) == [
        [choice({"content": "a"}, index=2)],
        [choice({"content": "b"})],
    ]
    *finish, done = said(one.finish(end("length", "length", "stop", "tool-calls"), USAGE))
    assert [event["choices"] for event in finish] == [
        [choice({}, reason, index=index)] for index, reason in enumerate(["length", "stop", "tool_calls"])
    ]
    assert done == "[DONE]"


def test_choices_that_broke_off_all_end() -> None:
    *finish, _done = said(ChunkWriter(head(choices=2)).finish(end("cancelled"), USAGE))
    assert [event["choices"][0]["finish_reason"] for event in finish] == ["stop", "stop"]


def test_text_that_comes_at_once_is_one_chunk_for_each_choice_and_in_order() -> None:
    assert written(text("a"), text("b"), text("c", 1), text("d", 1), text("e"), choices=2) == [
        [choice({"content": "ab"})],
        [choice({"content": "cd"}, index=1)],
        [choice({"content": "e"})],
    ]


def test_reasoning_and_text_are_never_in_one_delta() -> None:
    """LobeChat loses the text of a delta that has both."""
    assert written(Delta(reasoning="why", text="so", tokens=2), text("!")) == [
        [choice({"reasoning_content": "why"})],
        [choice({"content": "so"})],
        [choice({"content": "!"})],
    ]


def test_call_is_named_once_and_its_arguments_follow() -> None:
    whole = {"index": 0, "id": "call-0", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    assert written(called(0, "f", '{"a"'), called(0, arguments=":1}"), called(1, "g")) == [
        [choice({"tool_calls": [whole]})],
        [choice({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})],
        [
            choice(
                {
                    "tool_calls": [
                        {"index": 1, "id": "call-1", "type": "function", "function": {"name": "g", "arguments": ""}}
                    ]
                }
            )
        ],
    ]


def test_probabilities_stand_beside_their_text_and_are_numbers() -> None:
    told = {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -0.5,
                "bytes": [0xC3],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "b", "logprob": -9999.0, "bytes": [98]},
                ],
            },
            {"token": " yes", "logprob": 0.0, "bytes": [32, 121, 101, 115], "top_logprobs": []},
        ],
        "refusal": None,
    }
    assert written(text("x", logprobs=(HALF, CERTAIN)), text("y")) == [
        [choice({"content": "x"}, logprobs=told)],
        [choice({"content": "y"})],
    ]
    assert written(Delta(logprobs=(HALF, CERTAIN), tokens=2)) == [[choice({}, logprobs=told)]]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool-calls", "tool_calls"),
        ("cancelled", "stop"),
        ("error", "stop"),
    ],
)
def test_finish_reason_is_one_that_clients_know(reason: FinishReason, told: str) -> None:
    assert said(ChunkWriter(head()).finish(end(reason), USAGE))[0]["choices"] == [choice({}, told)]
    assert said(TextWriter(head()).finish(end(reason), USAGE))[0]["choices"][0]["finish_reason"] == told


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_text_breaks_a_chunk_into_two_lines(content: str) -> None:
    for writer, where in ((ChunkWriter(head()), "delta"), (TextWriter(head()), "text")):
        data = writer.events([text(content)])
        assert data.count(b"\n") == 2
        assert b"\r" not in data
        told = said(data)[0]["choices"][0][where]
        assert (told["content"] if where == "delta" else told) == content


# --- chat, whole ----------------------------------------------------------------------------------------------------


def gathered(*pieces: Delta, reason: End | None = None, **changes: Any) -> dict[str, Any]:
    one = Completion(head(**changes))
    one.add([STARTED])
    for piece in pieces:
        one.add([piece])
    whole: dict[str, Any] = json.loads(one.body(reason or end("stop"), USAGE))
    return whole


def test_whole_answer_has_exactly_this_shape() -> None:
    assert gathered(text("Hel"), text("lo"), reason=end("length")) == {
        "id": "chatcmpl-r-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "demo",
        "system_fingerprint": "sha256-00",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": USAGE_OBJECT,
    }


def test_whole_calls_are_joined_and_content_is_null() -> None:
    calls = (called(0, "f", '{"a"'), called(1, "g", "{}"), called(0, arguments=":1}"))
    [only] = gathered(*calls, reason=end("tool-calls"))["choices"]
    assert only["finish_reason"] == "tool_calls"
    assert only["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call-0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "call-1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_whole_reasoning_is_apart_and_absent_when_there_is_none() -> None:
    [only] = gathered(Delta(reasoning="wh", tokens=1), Delta(reasoning="y", text="so", tokens=2))["choices"]
    assert only["message"] == {"role": "assistant", "content": "so", "refusal": None, "reasoning_content": "why"}
    assert gathered()["choices"][0]["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_whole_choices_do_not_mix() -> None:
    one, two = gathered(text("a", 1), text("b"), text("c", 1), reason=end("stop", "stop", "length"), choices=2)[
        "choices"
    ]
    assert (one["index"], one["message"]["content"], one["finish_reason"]) == (0, "b", "stop")
    assert (two["index"], two["message"]["content"], two["finish_reason"]) == (1, "ac", "length")


def test_whole_probabilities_are_told_if_asked_even_when_there_are_none() -> None:
    asked = msgspec.structs.replace(Sampling(), logprobs=2)
    [only] = gathered(text("x", logprobs=(CERTAIN,)), text("y", logprobs=(CERTAIN,)), sampling=asked)["choices"]
    assert [token["token"] for token in only["logprobs"]["content"]] == [" yes", " yes"]
    assert gathered(sampling=asked)["choices"][0]["logprobs"] == {"content": [], "refusal": None}


# --- the older route ------------------------------------------------------------------------------------------------


def text_head(**changes: Any) -> Head:
    return head(prompt=TextPrompt(text="x"), **changes)


def test_older_chunks_have_exactly_these_shapes() -> None:
    one = TextWriter(text_head(include_usage=True, choices=2))
    common = {
        "id": "cmpl-r-1",
        "object": "text_completion",
        "created": 1_790_000_000,
        "model": "demo",
        "system_fingerprint": "sha256-00",
    }

    def older(index: int, content: str, reason: str | None = None) -> dict[str, Any]:
        return common | {"choices": [{"index": index, "text": content, "logprobs": None, "finish_reason": reason}]}

    assert one.begin() == b""
    assert said(one.events([STARTED, text("a", 1), text("b", 1)])) == [older(1, "ab")]
    assert said(one.finish(end("stop", "stop", "length"), USAGE)) == [
        older(0, "", "stop"),
        older(1, "", "length"),
        common | {"choices": [], "usage": USAGE_OBJECT},
        "[DONE]",
    ]


def test_older_whole_answer_has_exactly_this_shape() -> None:
    one = TextCompletion(text_head())
    one.add([STARTED, text("Hel"), text("lo")])
    assert json.loads(one.body(end("stop"), USAGE)) == {
        "id": "cmpl-r-1",
        "object": "text_completion",
        "created": 1_790_000_000,
        "model": "demo",
        "system_fingerprint": "sha256-00",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE_OBJECT,
    }


def test_older_probabilities_are_four_lists_whose_offsets_go_on() -> None:
    asked = msgspec.structs.replace(Sampling(), logprobs=2)
    first: dict[str, list[Any]] = {
        "tokens": ["\ufffd"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.25, "b": -9999.0, "\ufffd": -0.5}],
        "text_offset": [0],
    }
    second: dict[str, list[Any]] = {
        "tokens": [" yes"],
        "token_logprobs": [0.0],
        "top_logprobs": [{" yes": 0.0}],
        "text_offset": [1],
    }
    stream = TextWriter(text_head(sampling=asked, choices=2))
    pieces = [text("x", logprobs=(HALF,)), text("y", logprobs=(CERTAIN,)), text("z", 1, logprobs=(HALF,))]
    assert [event["choices"][0]["logprobs"] for event in said(stream.events(pieces))] == [first, second, first]
    whole = TextCompletion(text_head(sampling=asked))
    for piece in pieces[:2]:
        whole.add([piece])
    assert json.loads(whole.body(end("stop"), USAGE))["choices"][0]["logprobs"] == {
        name: first[name] + second[name] for name in first
    }


@pytest.mark.parametrize("kind", [Completion, TextCompletion])
def test_probabilities_hold_no_more_memory_than_they_say(kind: type[Completion] | type[TextCompletion]) -> None:
    """16 choices of 4,096 tokens with 20 alternatives each are a request that anybody may make."""
    asked = msgspec.structs.replace(Sampling(), logprobs=20)
    prompt = talk() if kind is Completion else TextPrompt(text="x")
    one = kind(head(prompt=prompt, sampling=asked))
    tracemalloc.start()
    try:
        for number in range(300):
            twenty = tuple(TokenLogprob(piece=b"%d" % other, logprob=-0.1 * number - other) for other in range(20))
            one.add([text("x", logprobs=(SampledToken(chosen=twenty[0], alternatives=twenty),))])
        body = one.body(end("stop"), USAGE)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()


# --- models ---------------------------------------------------------------------------------------------------------


def test_model_object_tells_what_was_verified() -> None:
    one = model("demo")
    assert model_object(one) == {
        "id": "demo",
        "object": "model",
        "created": 0,
        "owned_by": "release",
        "paddock": {"digest": str(one.digest), "signer": str(one.signer.fingerprint), "context_length": 2048},
    }


def test_model_object_tells_what_is_served_with_it_and_not_what_the_store_calls_that() -> None:
    style = adapter("style")
    told = model_object(accompanied(model("base"), "bot", (as_companion(style, "adapter", 1000),)))
    assert told["paddock"]["companions"] == [
        {"kind": "adapter", "digest": str(style.digest), "signer": str(style.signer.fingerprint)}
    ]
    assert "style" not in str(told)
    assert "base" not in str(told)
