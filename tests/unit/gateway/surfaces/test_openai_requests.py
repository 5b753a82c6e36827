"""No field of a request is taken without a decision about it, and nothing out of range reaches a runner."""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Conversation,
    GbnfGrammar,
    Generation,
    JsonObject,
    JsonSchema,
    Message,
    Sampling,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
)
from appliance.gateway.generation import Surface
from appliance.gateway.surfaces.openai.chat import ChatFields, ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionFields, CompletionSurface
from appliance.ipc.frames import FrameDecoder, encode
from appliance.ipc.messages import Submit, ToRunner
from tests.support.made_values import talk


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


def says(role: Any, content: str, **more: Any) -> dict[str, Any]:
    return {"prompt": talk(Message(role=role, content=content, **more))}


TEXTS = ("1", [], {}, True)
GRAMMAR = 'root ::= "a"'
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = ToolCall(id="call_1", name="f", arguments='{"a": 1}')
CALLS = says("assistant", "", tool_calls=(CALLED,))
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "b": 1}}}
OFFERED = Tool(name="f", description="d", parameters='{"type":"object","b":1}')
SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}
HI = Message(role="user", content="hi")


def tool(name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def schema_format(**changes: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **changes}}


COMMON: dict[str, Field] = {
    "model": Field((("other", {"model": "other"}),), ("", "x" * 129, None, 7, [], {}), required=True),
    "max_tokens": honoured(
        "max_tokens", (1, 1), (1_048_576, 1_048_576), refused=(0, -1, 1.0, 1.5, 1_048_577, 2**63, *TEXTS)
    ),
    "temperature": sampled((0, 0.0), (0.0, 0.0), (2, 2.0), (0.7, 0.7), name="temperature", refused=(-0.1, 2.1, *TEXTS)),
    "top_p": sampled((1, 1.0), (0.1, 0.1), name="top_p", refused=(0, 0.0, 1.1, -1, *TEXTS)),
    "top_k": sampled((40, 40), (0, 0), (-1, 0), (1000, 1000), name="top_k", refused=(-2, 1001, 1.5, *TEXTS)),
    "min_p": sampled((0, 0.0), (1, 1.0), name="min_p", refused=(-0.1, 1.1, *TEXTS)),
    "typical_p": sampled((0.5, 0.5), (1, 1.0), name="typical_p", refused=(0, 1.1, *TEXTS)),
    "presence_penalty": sampled((-2, -2.0), (0, 0.0), name="presence_penalty", refused=(-2.1, 2.1, *TEXTS)),
    "frequency_penalty": sampled((2, 2.0), (0.5, 0.5), name="frequency_penalty", refused=(-2.1, 2.1, *TEXTS)),
    "repeat_penalty": sampled((1.1, 1.1), (2, 2.0), name="repeat_penalty", refused=(0, 2.1, *TEXTS)),
    "repetition_penalty": sampled((1.1, 1.1), (0.1, 0.1), name="repeat_penalty", refused=(0, 2.1, *TEXTS)),
    "repeat_last_n": sampled((0, 0), (1024, 1024), name="repeat_last_n", refused=(-1, 1025, 2**31 - 1, 1.5, *TEXTS)),
    "mirostat": sampled((0, 0), (2, 2), name="mirostat", refused=(-1, 3, 1.0, *TEXTS)),
    "mirostat_tau": sampled((20, 20.0), name="mirostat_tau", refused=(0, 20.1, *TEXTS)),
    "mirostat_eta": sampled((1, 1.0), name="mirostat_eta", refused=(0, 1.1, *TEXTS)),
    "ignore_eos": sampled((True, True), (False, False), name="ignore_eos", refused=(1, "true", [])),
    "seed": sampled((0, 0), (2**32 - 2, 2**32 - 2), name="seed", refused=(-1, 2**32 - 1, 1.5, *TEXTS)),
    "stop": sampled(
        ("a", ("a",)),
        ([], ()),
        (["a", "b"], ("a", "b")),
        name="stop",
        refused=("", [""], ["a"] * 9, "a" * 257, ["a" * 257], [1], [None], 7, {}, True),
    ),
    "logit_bias": sampled(
        ({}, ()),
        ({"7": -100, "0": 1.5}, ((7, -100.0), (0, 1.5))),
        ({str(2**21): 1}, ((2**21, 1.0),)),
        name="logit_bias",
        refused=(
            {"a": 1},
            {"-1": 1},
            {"01": 1},
            {" 1": 1},
            {"1\n": 1},
            {"\u0661": 1},
            {"1.0": 1},
            {"": 1},
            {str(2**21 + 1): 1},
            {"1" * 40: 1},
            {"1": 100.1},
            {"1": -101},
            {"1": "1"},
            {"1": None},
            {str(token): 1 for token in range(301)},
            [],
            [[1, 1]],
            "x",
            1,
        ),
    ),
    "grammar": honoured(
        "constraint",
        (GRAMMAR, GbnfGrammar(text=GRAMMAR)),
        ("x" * 65_536, GbnfGrammar(text="x" * 65_536)),
        refused=("", "x" * 65_537, 7, [], {}),
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
    "n": honoured("choices", (1, 1), (16, 16), refused=(0, 17, -1, 1.0, 128, *TEXTS)),
    "user": ignored("alice", "", refused=("x" * 257, 7, [], {}, True)),
}

CHAT: dict[str, Field] = COMMON | {
    "messages": Field(
        (
            ([{"role": "assistant", "content": "a"}], says("assistant", "a")),
            ([{"role": "assistant", "content": "a", "tool_calls": []}], says("assistant", "a")),
            ([{"role": "assistant", "content": "", "refusal": None}], says("assistant", "")),
            (
                [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
                says("assistant", "", tool_calls=(CALLED,)),
            ),
            ([{"role": "assistant", "tool_calls": [CALL | {"index": 0}]}], says("assistant", "", tool_calls=(CALLED,))),
            ([{"role": "assistant", "content": "a", "reasoning_content": "r"}], says("assistant", "a")),
            (
                [{"role": "assistant", "content": "a", "audio": None, "function_call": None, "annotations": []}],
                says("assistant", "a"),
            ),
            ([{"role": "tool", "content": "4", "tool_call_id": "call_1"}], says("tool", "4", tool_call_id="call_1")),
            ([{"role": "tool", "content": [{"type": "text", "text": "4"}], "name": "f"}], says("tool", "4")),
            ([{"role": "developer", "content": "a"}], says("system", "a")),
            ([{"role": "system", "content": "a"}], says("system", "a")),
            ([{"role": "user", "content": "a", "name": "n"}], says("user", "a")),
            (
                [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
                says("user", "ab"),
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
            [{"role": "tool"}],
            [{"role": "tool", "content": None}],
            [{"role": "tool", "content": "a", "tool_call_id": "i" * 65}],
            [{"role": "tool", "content": "a", "tool_calls": [CALL]}],
            [{"role": "assistant"}],
            [{"role": "assistant", "content": None}],
            [{"role": "assistant", "content": None, "tool_calls": []}],
            [{"role": "assistant", "content": "a", "refusal": "no"}],
            [{"role": "assistant", "content": "a", "function_call": {"name": "f", "arguments": ""}}],
            [{"role": "assistant", "tool_calls": [CALL] * 129}],
            [{"role": "assistant", "tool_calls": [CALL | {"id": ""}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"id": "i" * 65}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f f", "arguments": ""}}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "a" * 65_537}}]}],
            [{"role": "function", "content": "a"}],
            [{"role": "User", "content": "a"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": 7}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": ["a"]}],
            [{"role": "user", "content": "a", "tool_calls": [CALL]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"text": "a"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            [{"role": "user", "content": [{"type": "file", "file": {}}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]}],
            [{"role": "user", "content": "a", "images": []}],
            [{"role": "user", "content": "a", "name": "n" * 65}],
            [{"role": "user", "content": "a"}] * 1025,
            [{"role": "user", "content": [{"type": "text", "text": "a"}] * 257}],
            [{"role": "user", "content": "a" * 262_145}],
        ),
        required=True,
    ),
    "max_completion_tokens": honoured("max_tokens", (7, 7), refused=(0, -1, 1.5, 1_048_577, *TEXTS)),
    "logprobs": sampled((True, 0), (False, None), name="logprobs", refused=(0, 1, "false", [], {})),
    "top_logprobs": ignored(0, refused=(1, -1, 21, 1.0, *TEXTS)),  # only with logprobs
    "response_format": Field(
        (
            ({"type": "text"}, {}),
            ({"type": "json_object"}, {"constraint": JsonObject()}),
            (schema_format(), {"constraint": JsonSchema(schema='{"type":"object","properties":{"z":{},"a":{}}}')}),
            (
                schema_format(schema={}, strict=True, description="d"),
                {"constraint": JsonSchema(schema="{}")},
            ),
        ),
        (
            {},
            {"type": "text", "x": 1},
            {"type": "json"},
            {"type": "json_object", "schema": {}},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
            {"type": "json_schema", "json_schema": {"name": "x"}},
            schema_format(name=""),
            schema_format(name="a b"),
            schema_format(name="a" * 65),
            schema_format(schema=[]),
            schema_format(schema=True),
            schema_format(schema="{}"),
            schema_format(schema={"a": "x" * 65_536}),
            schema_format(more=1),
            "text",
            [],
        ),
    ),
    "tools": Field(
        (
            ([], {}),
            ([TOOL], {"prompt": Conversation(messages=(HI,), tools=(OFFERED,))}),
            (
                [tool("f"), tool("g.h-1", strict=True, description=None)],
                {"prompt": Conversation(messages=(HI,), tools=(Tool(name="f"), Tool(name="g.h-1")))},
            ),
            (
                [tool(f"f{number}") for number in range(128)],
                {"prompt": Conversation(messages=(HI,), tools=tuple(Tool(name=f"f{n}") for n in range(128)))},
            ),
        ),
        (
            [tool(f"f{number}") for number in range(129)],
            [tool("f"), tool("f")],
            [tool("")],
            [tool("f f")],
            [tool("f\n")],
            [tool("f" * 65)],
            [tool(None)],
            [tool("f", parameters=[])],
            [tool("f", parameters="{}")],
            [tool("f", parameters={"a": "x" * 65_536})],
            [tool("f", description="x" * 16_385)],
            [tool("f", more=1)],
            [{"type": "function"}],
            [{"function": {"name": "f"}}],
            [{"type": "web_search"}],
            [{"type": "custom", "custom": {"name": "f"}}],
            {},
            "f",
            [None],
        ),
    ),
    "tool_choice": Field(
        (
            ("auto", {}),
            ("none", {"prompt": Conversation(messages=(HI,), tool_choice="none")}),
        ),
        ("required", "any", "", 1, [], {}, tool("f"), {"type": "function"}, {"type": "allowed_tools"}),
    ),
    "parallel_tool_calls": ignored(True, refused=(False, 1, "true", [])),
    "safety_identifier": ignored("alice", refused=("x" * 257, 7, [], {})),
    "metadata": ignored({}, {"a": "b"}, refused=({"a": 1}, {"a": {}}, [], "x", 7)),
    "store": ignored(False, refused=(True, 0, "false", [])),
    "service_tier": ignored("auto", "default", refused=("priority", "flex", "", 7, [])),
}

COMPLETIONS: dict[str, Field] = COMMON | {
    "prompt": Field(
        (
            ("", {"prompt": TextPrompt(text="")}),
            ("é<|im_end|>", {"prompt": TextPrompt(text="é<|im_end|>")}),
            (["a"], {"prompt": TextPrompt(text="a")}),
            ([0, 2**21], {"prompt": TokenPrompt(ids=(0, 2**21))}),
            ([7] * 20_000, {"prompt": TokenPrompt(ids=(7,) * 20_000)}),
        ),
        (
            None,
            [],
            {},
            7,
            True,
            ["a", "b"],
            ["a", 1],
            [1, "a"],
            [[1, 2]],
            [None],
            [True],
            [1.0],
            [-1],
            [2**21 + 1],
            "x" * 262_145,
        ),
        required=True,
    ),
    "echo": honoured("echo", (True, True), (False, False), refused=(1, "true", [])),
    "logprobs": sampled((0, 0), (20, 20), name="logprobs", refused=(-1, 21, 1.0, *TEXTS)),
    "best_of": ignored(1, refused=(0, 2, 1.0, *TEXTS)),
    "suffix": ignored(refused=("", "x", 1, [])),
}


@dataclass(frozen=True)
class Route:
    surface: Surface
    kind: type[msgspec.Struct]
    base: dict[str, Any]
    table: dict[str, Field]

    def decoded(self, **changes: Any) -> Generation:
        return self.surface.decode(json.dumps(self.base | changes).encode())

    def refusal(self, body: bytes) -> Refused:
        with pytest.raises(Refused) as caught:
            self.surface.decode(body)
        assert caught.value.reason.status == 400
        return caught.value

    def refused(self, **changes: Any) -> Refused:
        return self.refusal(json.dumps(self.base | changes).encode())


ROUTES = {
    "chat": Route(ChatSurface(), ChatFields, {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}, CHAT),
    "completions": Route(CompletionSurface(), CompletionFields, {"model": "demo", "prompt": "hi"}, COMPLETIONS),
}
CHATS, TEXT = ROUTES["chat"], ROUTES["completions"]
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@every_route
def test_table_has_every_field_and_no_other(route: Route) -> None:
    """A new field fails here until somebody has written down what becomes of it (L8)."""
    assert set(route.table) == set(route.kind.__struct_fields__)


def _cases(part: str) -> list[Any]:
    return [
        pytest.param(route, name, value, id=f"{called}-{name}={str(value)[:40]!a}")
        for called, route in ROUTES.items()
        for name, one in route.table.items()
        for value in getattr(one, part)
        if called == "chat" or name not in COMMON or name == "n"
    ]


@pytest.mark.parametrize(("route", "name", "case"), _cases("effects"))
def test_field_has_its_effect_and_no_other(route: Route, name: str, case: tuple[Any, dict[str, Any]]) -> None:
    given_value, effect = case
    assert route.decoded(**{name: given_value}) == msgspec.structs.replace(route.decoded(), **effect)


@pytest.mark.parametrize(("route", "name", "value"), _cases("refused"))
def test_value_that_we_do_not_keep_is_refused_and_the_field_named(route: Route, name: str, value: Any) -> None:
    refused = route.refused(**{name: value})
    assert refused.reason is Reason.FIELD_INVALID
    assert refused.param == name


@pytest.mark.parametrize("name", COMMON)
def test_common_field_means_the_same_on_the_older_route(name: str) -> None:
    for given_value, effect in COMMON[name].effects:
        assert TEXT.decoded(**{name: given_value}) == msgspec.structs.replace(TEXT.decoded(), **effect)


@every_route
def test_null_is_the_same_as_absent(route: Route) -> None:
    plain = route.decoded()
    for name, one in route.table.items():
        assert one.required or route.decoded(**{name: None}) == plain, name


@every_route
def test_missing_field_is_refused(route: Route) -> None:
    for name, one in route.table.items():
        if one.required:
            body = json.dumps({key: value for key, value in route.base.items() if key != name}).encode()
            assert route.refusal(body).reason is Reason.FIELD_INVALID


@every_route
@pytest.mark.parametrize(
    "name",
    [
        "functions",
        "function_call",
        "guided_json",
        "guided_grammar",
        "json_schema",
        "lora",
        "chat_template",
        "modalities",
        "audio",
        "prediction",
        "web_search_options",
        "reasoning_effort",
        "cache_salt",
        "cache_prompt",
        "id_slot",
        "n_probs",
        "n_predict",
        "priority",
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
def test_unknown_field_is_refused_and_not_repeated(route: Route, name: str) -> None:
    refused = route.refused(**{name: 1})
    assert refused.reason is Reason.FIELD_UNKNOWN
    assert refused.param is None


def test_fields_of_one_route_are_unknown_to_the_other() -> None:
    for name in set(COMPLETIONS) - set(CHAT):
        assert CHATS.refused(**{name: None}).reason is Reason.FIELD_UNKNOWN
    for name in set(CHAT) - set(COMPLETIONS):
        assert TEXT.refused(**{name: None}).reason is Reason.FIELD_UNKNOWN


def test_unknown_field_below_names_only_a_field_of_ours() -> None:
    for hostile in ("x", "`$.seed`", "` - at `$.seed", "$.seed"):
        refused = CHATS.refused(messages=[{"role": "user", "content": "a", hostile: 1}])
        assert (refused.reason, refused.param) == (Reason.FIELD_INVALID, "messages")


# --- fields that go together, or do not -----------------------------------------------------------------------------


def test_of_two_limits_the_new_name_counts() -> None:
    assert CHATS.decoded(max_tokens=5, max_completion_tokens=9).max_tokens == 9


def test_two_names_of_one_penalty_must_agree() -> None:
    assert CHATS.decoded(repeat_penalty=1.5, repetition_penalty=1.5).sampling.repeat_penalty == 1.5
    assert CHATS.refused(repeat_penalty=1.5, repetition_penalty=1.4).param == "repetition_penalty"


def test_alternatives_are_told_only_beside_their_tokens() -> None:
    assert CHATS.decoded(logprobs=True, top_logprobs=20).sampling.logprobs == 20
    assert CHATS.refused(logprobs=False, top_logprobs=1).param == "top_logprobs"


def test_forced_tool_is_one_that_is_offered() -> None:
    forced = CHATS.decoded(tools=[TOOL], tool_choice=tool("f")).prompt
    assert isinstance(forced, Conversation)
    assert (forced.tool_choice, forced.forced_tool, forced.callable_tools) == ("required", "f", {"f"})
    required = CHATS.decoded(tools=[TOOL], tool_choice="required").prompt
    assert required == Conversation(messages=(HI,), tools=(OFFERED,), tool_choice="required")
    assert CHATS.refused(tools=[TOOL], tool_choice=tool("g")).param == "tool_choice"
    assert CHATS.refused(tools=[], tool_choice="required").param == "tool_choice"


def test_answer_has_one_constraint_at_most_and_none_beside_tools() -> None:
    shape = {"type": "json_object"}
    assert CHATS.refused(grammar=GRAMMAR, response_format=shape).param == "grammar"
    assert CHATS.decoded(grammar=GRAMMAR, response_format={"type": "text"}).constraint == GbnfGrammar(text=GRAMMAR)
    assert CHATS.refused(tools=[TOOL], response_format=shape).param == "response_format"
    assert CHATS.refused(tools=[TOOL], grammar=GRAMMAR).param == "grammar"
    assert CHATS.decoded(tools=[TOOL], tool_choice="none", response_format=shape).constraint == JsonObject()


def test_probabilities_of_an_echoed_prompt_are_refused_and_not_left_out() -> None:
    assert TEXT.refused(echo=True, logprobs=0).param == "echo"
    assert TEXT.decoded(echo=False, logprobs=0).sampling.logprobs == 0


def test_schema_keeps_the_order_of_its_keys() -> None:
    """The model writes its members in this order."""
    asked = {"properties": {"zeta": {}, "alpha": {}}, "type": "object"}
    constraint = CHATS.decoded(response_format=schema_format(schema=asked)).constraint
    assert isinstance(constraint, JsonSchema)
    assert constraint.schema == '{"properties":{"zeta":{},"alpha":{}},"type":"object"}'


# --- documents ------------------------------------------------------------------------------------------------------


@every_route
@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"', b"{}", b"[" * 40, b'{"a":' * 40])
def test_other_documents_are_refused(route: Route, body: bytes) -> None:
    assert route.refusal(body).reason in {Reason.FIELD_INVALID, Reason.JSON_INVALID}


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
        b'{"model":"a","messages":[{"role":"user","content":"x"}],"logit_bias":{"1":1,"\\u0031":2}}',
        b'{"model":"a","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"a","messages":[{"role":"user","content":"x"}]} {}',
    ],
)
def test_ambiguous_json_is_refused(body: bytes) -> None:
    assert CHATS.refusal(body).reason is Reason.JSON_INVALID


def test_schema_that_is_nested_without_end_is_refused() -> None:
    deep = json.dumps(CHATS.base)[:-1].encode() + b',"response_format":' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001
    assert CHATS.refusal(deep).reason is Reason.JSON_INVALID


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_ANY = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@every_route
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_is_decoded_or_refused_and_never_an_error(route: Route, data: st.DataObject) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from([*route.table, "x"]), _ANY, max_size=4))
    try:
        route.surface.decode(json.dumps(route.base | changes).encode())
    except Refused as refused:
        assert refused.reason.status == 400


@every_route
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_let_in_is_a_message_that_the_runner_can_read(route: Route, data: st.DataObject) -> None:
    """A frame that does not decode ends the runner, and every answer in it: one caller must not be able to send one."""
    values = {name: [given for given, _effect in one.effects] for name, one in route.table.items()}
    names = data.draw(st.sets(st.sampled_from([name for name, some in values.items() if some]), max_size=8))
    changes = {name: data.draw(st.sampled_from(values[name]), label=name) for name in sorted(names)}
    try:
        asked = route.surface.decode(json.dumps(route.base | changes).encode())
    except Refused:
        return
    submit = Submit(
        request_id="r-1",
        prompt=asked.prompt,
        sampling=asked.sampling,
        constraint=asked.constraint,
        choices=asked.choices,
        echo=asked.echo,
        max_prompt_tokens=1,
        max_completion_tokens=1,
        cache_partition="p",
    )
    assert FrameDecoder[ToRunner](ToRunner).decode(encode(submit)) == submit


def test_no_more_fields_are_ignored_than_are_written_down_here() -> None:
    assert {
        name for name, one in CHAT.items() if one.effects and not any(effect for _given, effect in one.effects)
    } == {
        "user",
        "top_logprobs",
        "parallel_tool_calls",
        "safety_identifier",
        "metadata",
        "store",
        "service_tier",
    }
