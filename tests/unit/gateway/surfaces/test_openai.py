"""No field of a request is taken without a decision about it, and no chunk has another shape than clients read."""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Delta, End, FinishReason, Generation, Message, Sampling, Started, Usage
from appliance.gateway.generation import Head
from appliance.gateway.surfaces import openai
from appliance.gateway.surfaces.openai import ChunkWriter, Completion, decode_request, model_object
from tests.support.made_values import chat_request, model, talk

BASE: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


def decoded(**changes: Any) -> Generation:
    return decode_request(json.dumps(BASE | changes).encode())


def refusal(body: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        decode_request(body)
    assert caught.value.reason.status == 400
    return caught.value


PLAIN = decoded()

# --- the table of fields --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """What becomes of one field: values with their effect (none: ignored), and values that are refused."""

    effects: tuple[tuple[Any, dict[str, Any]], ...]
    refused: tuple[Any, ...]
    required: bool = field(default=False)


def honoured(name: str, *pairs: tuple[Any, Any], refused: tuple[Any, ...]) -> Field:
    return Field(tuple((given, {name: wanted}) for given, wanted in pairs), refused)


def sampled(*pairs: tuple[Any, Any], name: str, refused: tuple[Any, ...]) -> Field:
    return Field(
        tuple((given, {"sampling": msgspec.structs.replace(Sampling(), **{name: wanted})}) for given, wanted in pairs),
        refused,
    )


def ignored(*values: Any, refused: tuple[Any, ...]) -> Field:
    return Field(tuple((value, {}) for value in values), refused)


TEXTS = ("1", [], {}, True)
FIELDS: dict[str, Field] = {
    "model": Field((("other", {"model": "other"}),), ("", "x" * 129, None, 7, [], {}), required=True),
    "messages": Field(
        (
            ([{"role": "assistant", "content": "a"}], {"prompt": talk(Message(role="assistant", content="a"))}),
            ([{"role": "developer", "content": "a"}], {"prompt": talk(Message(role="system", content="a"))}),
            ([{"role": "user", "content": "a", "name": "n"}], {"prompt": talk(Message(role="user", content="a"))}),
            (
                [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
                {"prompt": talk(Message(role="user", content="ab"))},
            ),
        ),
        (
            [],
            None,
            {},
            "hi",
            [None],
            [{"role": "user"}],
            [{"content": "a"}],
            [{"role": "tool", "content": "a"}],
            [{"role": "function", "content": "a"}],
            [{"role": "User", "content": "a"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": 7}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": ["a"]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            [{"role": "user", "content": [{"type": "file", "file": {}}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]}],
            [{"role": "user", "content": "a", "images": []}],
            [{"role": "assistant", "content": "a", "tool_calls": []}],
            [{"role": "user", "content": "a", "name": "n" * 65}],
            [{"role": "user", "content": "a"}] * 1025,
            [{"role": "user", "content": [{"type": "text", "text": "a"}] * 257}],
            [{"role": "user", "content": "a" * 262_145}],
        ),
        required=True,
    ),
    "max_tokens": honoured(
        "max_tokens", (1, 1), (1_048_576, 1_048_576), refused=(0, -1, 1.0, 1.5, 1_048_577, 2**63, *TEXTS)
    ),
    "max_completion_tokens": honoured("max_tokens", (7, 7), refused=(0, -1, 1.5, 1_048_577, *TEXTS)),
    "temperature": sampled((0, 0.0), (0.0, 0.0), (2, 2.0), (0.7, 0.7), name="temperature", refused=(-0.1, 2.1, *TEXTS)),
    "top_p": sampled((1, 1.0), (0.1, 0.1), name="top_p", refused=(0, 0.0, 1.1, -1, *TEXTS)),
    "presence_penalty": sampled((-2, -2.0), (0, 0.0), name="presence_penalty", refused=(-2.1, 2.1, *TEXTS)),
    "frequency_penalty": sampled((2, 2.0), (0.5, 0.5), name="frequency_penalty", refused=(-2.1, 2.1, *TEXTS)),
    "seed": sampled((0, 0), (2**32 - 2, 2**32 - 2), name="seed", refused=(-1, 2**32 - 1, 1.5, *TEXTS)),
    "stop": sampled(
        ("a", ("a",)),
        ([], ()),
        (["a", "b"], ("a", "b")),
        name="stop",
        refused=("", [""], ["a"] * 9, "a" * 257, ["a" * 257], [1], [None], 7, {}, True),
    ),
    "stream": honoured("stream", (True, True), (False, False), refused=(1, 0, "true", [], {})),
    "stream_options": Field(
        (
            ({}, {}),
            ({"include_usage": True}, {"include_usage": True}),
            ({"include_usage": False, "include_obfuscation": True}, {}),
        ),
        ({"include_usage": 1}, {"include_usage": None}, {"other": 1}, [], True, "x"),
    ),
    "n": ignored(1, refused=(0, 2, -1, 1.0, 128, *TEXTS)),
    "logprobs": ignored(False, refused=(True, 0, 1, "false", [], {})),
    "response_format": ignored(
        {"type": "text"},
        refused=(
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {}},
            {},
            {"type": "text", "x": 1},
            "text",
            [],
        ),
    ),
    "user": ignored("alice", "", refused=("x" * 257, 7, [], {}, True)),
    "safety_identifier": ignored("alice", refused=("x" * 257, 7, [], {})),
    "metadata": ignored({}, {"a": "b"}, refused=({"a": 1}, {"a": {}}, [], "x", 7)),
    "store": ignored(False, refused=(True, 0, "false", [])),
    "service_tier": ignored("auto", "default", refused=("priority", "flex", "", 7, [])),
}


def test_table_has_every_field_and_no_other() -> None:
    """A new field fails here until somebody has written down what becomes of it (L8)."""
    assert set(FIELDS) == set(openai._Request.__struct_fields__)


def _cases(part: str) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={str(value)[:40]!a}")
        for name, one in FIELDS.items()
        for value in getattr(one, part)
    ]


@pytest.mark.parametrize(("name", "case"), _cases("effects"))
def test_field_has_its_effect_and_no_other(name: str, case: tuple[Any, dict[str, Any]]) -> None:
    given_value, effect = case
    assert decoded(**{name: given_value}) == msgspec.structs.replace(PLAIN, **effect)


@pytest.mark.parametrize(("name", "value"), _cases("refused"))
def test_value_that_we_do_not_keep_is_refused_and_the_field_named(name: str, value: Any) -> None:
    refused = refusal(json.dumps(BASE | {name: value}).encode())
    assert refused.reason is Reason.FIELD_INVALID
    assert refused.param == name


@pytest.mark.parametrize("name", [name for name, one in FIELDS.items() if not one.required])
def test_null_is_the_same_as_absent(name: str) -> None:
    assert decoded(**{name: None}) == PLAIN


@pytest.mark.parametrize("name", ["model", "messages"])
def test_missing_field_is_refused(name: str) -> None:
    body = json.dumps({key: value for key, value in BASE.items() if key != name}).encode()
    assert refusal(body).reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    "name",
    [
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "parallel_tool_calls",
        "logit_bias",
        "top_logprobs",
        "grammar",
        "guided_json",
        "modalities",
        "audio",
        "prediction",
        "web_search_options",
        "reasoning_effort",
        "cache_salt",
        "prompt",
        "suffix",
        "best_of",
        "top_k",
        "Model",
        "MODEL",
        "model ",
        "mod\u0435l",
        "access_token",
        "",
        "$.model",
        "`$.model`",
    ],
)
def test_unknown_field_is_refused_and_not_repeated(name: str) -> None:
    refused = refusal(json.dumps(BASE | {name: 1}).encode())
    assert refused.reason is Reason.FIELD_UNKNOWN
    assert refused.param is None


def test_unknown_field_below_names_only_a_field_of_ours() -> None:
    for hostile in ("x", "`$.seed`", "` - at `$.seed", "$.seed"):
        body = json.dumps(BASE | {"messages": [{"role": "user", "content": "a", hostile: 1}]}).encode()
        refused = refusal(body)
        assert (refused.reason, refused.param) == (Reason.FIELD_INVALID, "messages")


def test_of_two_limits_the_new_name_counts() -> None:
    assert decoded(max_tokens=5, max_completion_tokens=9).max_tokens == 9


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"', b"{}", b"[" * 40, b'{"a":' * 40])
def test_other_documents_are_refused(body: bytes) -> None:
    assert refusal(body).reason in {Reason.FIELD_INVALID, Reason.JSON_INVALID}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"a","\\u006dodel":"b","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"a","messages":[{"role":"user","role":"system","content":"x"}]}',
        b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
        b'\xef\xbb\xbf{"model":"a","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"a","messages":[{"role":"user","content":"x"}],"seed":1e999}',
        b'{"model":"a","messages":[{"role":"user","content":"x"}]} {}',
    ],
)
def test_ambiguous_json_is_refused(body: bytes) -> None:
    assert refusal(body).reason is Reason.JSON_INVALID


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_ANY = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_value_in_any_field_is_decoded_or_refused_and_never_an_error(data: st.DataObject) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from([*FIELDS, "tools", "x"]), _ANY, max_size=4))
    try:
        decode_request(json.dumps(BASE | changes).encode())
    except Refused as refused:
        assert refused.reason.status == 400


# --- the answer -----------------------------------------------------------------------------------------------------


def head(**changes: Any) -> Head:
    return Head(request_id="r-1", created=1_790_000_000, fingerprint="sha256-00", request=chat_request(**changes))


def writer(**changes: Any) -> ChunkWriter:
    return ChunkWriter(head(**changes))


def said(data: bytes) -> list[Any]:
    """The events of a stream."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def end(reason: FinishReason, **changes: Any) -> End:
    return msgspec.structs.replace(End(reason=reason, prompt_tokens=9, completion_tokens=2), **changes)


USAGE = Usage(prompt_tokens=9, completion_tokens=2)


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


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"delta": delta, "index": 0, "finish_reason": finish_reason, "logprobs": None}


def test_chunks_have_exactly_these_shapes() -> None:
    one = writer(include_usage=True)
    assert said(one.begin()) == [chunk([choice({"role": "assistant", "content": ""})])]
    assert said(one.events([Delta(text="Hé\n", tokens=1)])) == [chunk([choice({"content": "Hé\n"})])]
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    assert said(one.finish(end("stop"), USAGE)) == [chunk([choice({}, "stop")]), chunk([], usage=usage), "[DONE]"]


def test_nothing_to_say_is_no_chunk() -> None:
    assert writer().events([Started(prompt_tokens=9), end("stop")]) == b""


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
    assert said(writer().finish(end(reason), USAGE))[0]["choices"] == [choice({}, told)]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_text_breaks_a_chunk_into_two_lines(text: str) -> None:
    data = writer().events([Delta(text=text, tokens=1)])
    assert data.count(b"\n") == 2
    assert b"\r" not in data
    assert said(data)[0]["choices"][0]["delta"]["content"] == text


def test_whole_answer_has_exactly_this_shape() -> None:
    one = Completion(head())
    one.add([Started(prompt_tokens=9), Delta(text="Hel", tokens=1)])
    one.add([Delta(text="lo", tokens=1)])
    assert json.loads(one.body(end("length"), USAGE)) == {
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
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }


def test_model_object_tells_what_was_verified() -> None:
    one = model("demo")
    assert model_object(one) == {
        "id": "demo",
        "object": "model",
        "created": 0,
        "owned_by": "release",
        "paddock": {"digest": str(one.digest), "signer": str(one.signer.fingerprint), "context_length": 2048},
    }
