"""What OpenAI's client can ask beyond text, from the unmodified client to the model's tokens and back.

One model recites a story whatever it is asked, the other a thought and a call, so that every answer is known.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance
from tests.support.chain_model import STORY, chain_model

HELLO: Final = [{"role": "user", "content": "hi"}]
SCHEMA: Final = {
    "type": "object",
    "properties": {"a": {"const": 1}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS: Final = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
FORCED: Final = {"type": "function", "function": {"name": "f"}}
CALLS: Final = 'Let me see. </think> <tool_call> {"name": "f", "arguments": {"a": 1}} </tool_call>'
TEMPLATE: Final = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n{# </think> #}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    models = {"chain": chain_model(), "caller": chain_model(CALLS, template=TEMPLATE)}
    with appliance(tmp_path_factory.mktemp("features"), models) as one:
        yield one


@pytest.fixture
def client(server: TestAppliance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=server.token(), timeout=LIMIT_SECONDS, max_retries=0
    ) as one:
        yield one


def asked(client: openai.OpenAI, model: str = "chain", messages: Any = HELLO, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(model=model, messages=messages, **fields)
    return answer


def streamed(client: openai.OpenAI, model: str, **fields: Any) -> list[ChatCompletionChunk]:
    with client.chat.completions.create(model=model, messages=HELLO, stream=True, **fields) as stream:  # type: ignore[call-overload]
        return list(stream)


# --- choices --------------------------------------------------------------------------------------------------------


def test_choices_are_whole_and_the_prompt_is_counted_once(client: openai.OpenAI) -> None:
    one, three = asked(client), asked(client, n=3)
    assert [(choice.index, choice.message.content) for choice in three.choices] == [(i, STORY) for i in range(3)]
    assert one.usage
    assert three.usage
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_each_streamed_choice_has_its_role_its_text_and_its_reason(client: openai.OpenAI) -> None:
    texts, roles, reasons = ["", ""], [0, 0], ["", ""]
    for chunk in streamed(client, "chain", n=2, max_tokens=3):
        for choice in chunk.choices:
            assert not reasons[choice.index], "nothing comes after the reason"
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
            reasons[choice.index] += choice.finish_reason or ""
    assert (texts, roles, reasons) == (["Once upon a"] * 2, [1, 1], ["length"] * 2)


# --- probabilities --------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_tokens_that_were_told(client: openai.OpenAI) -> None:
    [choice] = asked(client, logprobs=True, top_logprobs=2).choices
    assert choice.logprobs
    assert choice.logprobs.content
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode() == STORY
    for token in choice.logprobs.content:
        assert token.top_logprobs[0].token == token.token
        assert (len(token.top_logprobs), token.logprob <= 0.0) == (2, True)
    assert asked(client).choices[0].logprobs is None


def test_older_probabilities_are_told_too_and_streamed_alike(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "chain", "prompt": "hi", "logprobs": 1, "max_tokens": 3}
    whole = client.completions.create(**fields).choices[0].logprobs
    assert whole
    assert (whole.tokens, whole.text_offset) == (["Once", " upon", " a"], [0, 4, 9])
    with client.completions.create(**fields, stream=True) as stream:
        told = [choice.logprobs for chunk in stream for choice in chunk.choices if choice.logprobs]
    assert [token for one in told for token in one.tokens or []] == whole.tokens
    assert [offset for one in told for offset in one.text_offset or []] == whole.text_offset


# --- constraints ----------------------------------------------------------------------------------------------------


def test_answer_is_held_to_its_schema(client: openai.OpenAI) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = asked(client, response_format=shape, max_tokens=200).choices[0].message.content
    assert json.loads(answer or "") == {"a": 1}


def test_answer_is_a_json_object(client: openai.OpenAI) -> None:
    answer = asked(client, response_format={"type": "json_object"}, max_tokens=200).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content or ""), dict)
    else:
        assert (answer.message.content or "").startswith("{")


def test_answer_is_held_to_its_grammar(client: openai.OpenAI) -> None:
    answer = asked(client, extra_body={"grammar": 'root ::= "ab" [0-9]'}).choices[0].message.content or ""
    assert answer.startswith("ab")
    assert answer[2:].isdecimal()
    assert len(answer) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_body": {"grammar": "root ::= " + "(" * 20_000 + ")" * 20_000}},
        {"extra_body": {"grammar": "no grammar"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}},
        {"logit_bias": {"2000000": 1}},
    ],
    ids=["a deep grammar", "no grammar", "a schema without end", "a token beyond the vocabulary"],
)
def test_what_the_engine_cannot_take_costs_one_request_and_not_the_runner(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(client, **fields)
    assert refused.value.code == "field-invalid"
    assert asked(client, max_tokens=1).choices[0].message.content == "Once"


# --- tools ----------------------------------------------------------------------------------------------------------


def test_call_and_the_thought_before_it_are_told_apart(client: openai.OpenAI) -> None:
    [choice] = asked(client, "caller", tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert not (choice.message.content or "").strip()
    assert (choice.message.model_extra or {})["reasoning_content"].strip() == "Let me see."
    assert choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": 1})


def test_streamed_call_is_named_once_and_joins_to_the_same(client: openai.OpenAI) -> None:
    ids, names, arguments, reasons = [], [], "", []
    for chunk in streamed(client, "caller", tools=TOOLS):
        for choice in chunk.choices:
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for piece in choice.delta.tool_calls or []:
                assert piece.index == 0
                assert piece.function
                ids += [piece.id] if piece.id else []
                names += [piece.function.name] if piece.function.name else []
                arguments += piece.function.arguments or ""
    assert (len(ids), names, json.loads(arguments), reasons) == (1, ["f"], {"a": 1}, ["tool_calls"])


def test_call_and_its_result_can_be_sent_back(client: openai.OpenAI) -> None:
    message = asked(client, "caller", tools=TOOLS).choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4"}
    again = asked(client, "caller", messages=[*HELLO, message, result], tools=TOOLS)
    assert again.choices[0].finish_reason == "tool_calls"


def test_tool_that_was_not_offered_is_not_called_and_the_runner_lives(client: openai.OpenAI) -> None:
    """The model names ``f`` whatever it is offered: what it writes is then text, on both sides of the channel."""
    other = [{"type": "function", "function": {"name": "g"}}]
    for fields in ({"tools": other}, {"tools": TOOLS, "tool_choice": "none"}, {}):
        [choice] = asked(client, "caller", **fields).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)


@pytest.mark.parametrize("choice", ["required", FORCED])
def test_call_that_is_demanded_is_made_and_valid(client: openai.OpenAI, choice: Any) -> None:
    [only] = asked(client, "caller", tools=TOOLS, tool_choice=choice, max_tokens=300).choices
    assert only.finish_reason == "tool_calls"
    assert only.message.tool_calls
    [call] = only.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": 1})


def test_model_without_tools_refuses_them_and_does_not_leave_them_out(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(client, tools=TOOLS)
    assert refused.value.code == "field-invalid"
    assert "does not offer" in str(refused.value)


# --- the rest of sampling -------------------------------------------------------------------------------------------


def test_echo_begins_each_choice_with_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chain", prompt="Say: ", echo=True, n=2)
    assert [choice.text for choice in answer.choices] == [f"Say: {STORY}"] * 2


def test_bias_decides_what_is_drawn(client: openai.OpenAI) -> None:
    """Token 40 stands for one character, and no two logits of this model are 100 apart."""
    favoured = asked(client, max_tokens=3, logit_bias={"40": 100}).choices[0].message.content or ""
    assert len(favoured) == 3
    assert len(set(favoured)) == 1


def test_end_that_is_ignored_does_not_end_the_answer(client: openai.OpenAI) -> None:
    assert asked(client, max_tokens=120).choices[0].finish_reason == "stop"
    assert asked(client, max_tokens=120, extra_body={"ignore_eos": True}).choices[0].finish_reason == "length"


@pytest.mark.parametrize("extra", [{"mirostat": 2}, {"repetition_penalty": 1.2}, {"typical_p": 0.5, "min_p": 0.5}])
def test_sampling_of_other_servers_leaves_a_certain_model_certain(client: openai.OpenAI, extra: Any) -> None:
    assert asked(client, extra_body=extra).choices[0].message.content == STORY


def test_cached_tokens_are_told_to_whoever_asked_before_and_to_nobody_else(
    server: TestAppliance, client: openai.OpenAI
) -> None:
    def cached(one: openai.OpenAI) -> int:
        messages = [{"role": "user", "content": "the same long prompt " * 10}]
        usage = asked(one, messages=messages, max_tokens=1).usage
        assert usage
        assert usage.prompt_tokens_details
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached(client) == 0
    assert cached(client) > 0
    with client.with_options(api_key=server.token("somebody-else")) as other:
        assert cached(other) == 0
