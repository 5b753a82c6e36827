"""What a request for text may ask besides text, over the channel, with real llama.cpp."""

import json
from collections.abc import Iterator

import jsonschema
import pytest

from appliance.core.values import GbnfGrammar, JsonObject, JsonSchema, Message, Sampling, Tool, ToolCall
from appliance.ipc.messages import Conversation, TextPrompt, TokenPrompt
from appliance.runner.engine.slots import MOST_WAITING_OF_ONE
from tests.support.chain_model import STORY, chain_model, long_script, prompt_tokens
from tests.support.random_model import random_model
from tests.support.runner_client import Answer, RunnerClient, bare_runner

WORDS = STORY.split(" ")
USER = (Message(role="user", content="hello"),)
HERMES = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LOOK = Tool(
    name="look", parameters='{"type":"object","properties":{"city":{"enum":["Oslo","Rome"]}},"required":["city"]}'
)
CALL = 'Let me see. <tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chain_runner() -> Iterator[RunnerClient]:
    with bare_runner(chain_model()) as runner:
        yield runner


@pytest.fixture
def chain(chain_runner: RunnerClient) -> RunnerClient:
    chain_runner.reset()
    return chain_runner


@pytest.fixture(scope="module")
def dice_runner() -> Iterator[RunnerClient]:
    with bare_runner(random_model()) as runner:
        yield runner


@pytest.fixture
def dice(dice_runner: RunnerClient) -> RunnerClient:
    dice_runner.reset()
    return dice_runner


def reason(answer: Answer) -> str:
    assert answer.end is not None, answer.refused
    return answer.end.reason


def refusal(answer: Answer) -> tuple[str, str]:
    assert answer.refused is not None, answer.end
    return answer.refused.reason, answer.refused.detail


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_are_told_apart_and_their_prompt_is_computed_once(chain: RunnerClient) -> None:
    answer = chain.ask(choices=3, max_completion_tokens=30, principal="p")
    assert [answer.choice(number) for number in range(3)] == [" ".join(WORDS[:10])] * 3
    assert answer.end is not None
    assert answer.end.choice_reasons == ("length",) * 3
    assert (answer.end.prompt_tokens, answer.end.completion_tokens) == (prompt_tokens(USER), 30)


def test_choices_together_do_not_cost_more_than_was_paid(chain: RunnerClient) -> None:
    answer = chain.ask(choices=4, max_completion_tokens=7)
    assert answer.end is not None
    assert answer.end.completion_tokens == 4, "an equal share, rounded down"


def test_seed_with_choices_is_repeatable_and_each_choice_is_another(dice: RunnerClient) -> None:
    asked = {"sampling": Sampling(seed=7, temperature=2.0), "max_completion_tokens": 60, "choices": 3}
    first, second = dice.ask(**asked), dice.ask(**asked)
    texts = [first.choice(number) for number in range(3)]
    assert texts == [second.choice(number) for number in range(3)]
    assert len(set(texts)) == 3


def test_cancelled_choices_all_end(chain: RunnerClient) -> None:
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192) as runner:
        runner.submit("many", choices=4)
        runner.wait_for_first_delta("many")
        runner.cancel("many")
        [answer] = runner.wait_for("many")
        assert reason(answer) == "cancelled"
        assert runner.ask("still there", max_completion_tokens=4).text


def test_choices_of_a_forgotten_request_are_not_taken_for_those_of_its_namesake(chain: RunnerClient) -> None:
    for _ in range(20):
        chain.submit("r", choices=4, max_completion_tokens=40)
        chain.reset()
        chain.submit("r", max_completion_tokens=3)
        [answer] = chain.wait_for("r")
        assert answer.text == " ".join(WORDS[:3])
        chain.reset()


def test_one_choice_that_stops_does_not_end_the_others(dice: RunnerClient) -> None:
    answer = dice.ask(
        choices=4, max_completion_tokens=400, sampling=Sampling(seed=1, temperature=2.0, stop=("a",), ignore_eos=True)
    )
    assert answer.end is not None
    assert set(answer.end.choice_reasons) <= {"stop", "length"}
    assert not any("a" in answer.choice(number) for number in range(4))


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_plain_text_is_continued_without_a_template(chain: RunnerClient) -> None:
    answer = chain.ask(TextPrompt(text="Once"), max_completion_tokens=3)
    assert answer.started is not None and answer.started.prompt_tokens < prompt_tokens(USER)
    assert answer.end is not None and answer.end.completion_tokens == 3


def test_echo_comes_first_and_costs_nothing(chain: RunnerClient) -> None:
    answer = chain.ask(TextPrompt(text="Grüße 🦉"), echo=True, choices=2, max_completion_tokens=4)
    assert all(answer.choice(number).startswith("Grüße 🦉") for number in range(2))
    assert answer.end is not None and answer.end.completion_tokens == 4


def test_token_outside_the_vocabulary_is_refused_and_the_runner_lives(chain: RunnerClient) -> None:
    """llama.cpp throws through ctypes for one, which ends the process."""
    why, detail = refusal(chain.ask(TokenPrompt(ids=(5, 2**21))))
    assert (why, detail) == ("field-invalid", "a token id is outside the vocabulary")
    assert chain.ask(TokenPrompt(ids=(5, 6)), max_completion_tokens=2).end


def test_conversation_is_not_echoed(chain: RunnerClient) -> None:
    assert refusal(chain.ask(echo=True))[0] == "field-invalid"


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_probabilities_are_told_once_per_token(chain: RunnerClient) -> None:
    answer = chain.ask(sampling=Sampling(temperature=0.0, logprobs=2), max_completion_tokens=6)
    told = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert b"".join(entry.chosen.piece for entry in told).decode() == answer.text
    assert all(len(entry.alternatives) == 2 and entry.chosen == entry.alternatives[0] for entry in told)
    assert all(entry.chosen.logprob <= 1e-6 for entry in told)
    assert len(told) == 6


def test_probabilities_are_not_told_unasked(chain: RunnerClient) -> None:
    assert not any(delta.logprobs for delta in chain.ask(max_completion_tokens=6).deltas)


def test_bias_outside_the_vocabulary_is_refused(chain: RunnerClient) -> None:
    assert refusal(chain.ask(sampling=Sampling(logit_bias=((2**21, 1.0),))))[0] == "field-invalid"


def test_ignored_end_does_not_end(chain: RunnerClient) -> None:
    answer = chain.ask(sampling=Sampling(temperature=0.0, ignore_eos=True), max_completion_tokens=len(WORDS) + 20)
    assert answer.end is not None
    assert (answer.end.reason, answer.end.completion_tokens) == ("length", len(WORDS) + 20)


# --- constraints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_answer_leaves_no_schema(dice: RunnerClient, seed: int) -> None:
    answer = dice.ask(
        sampling=Sampling(seed=seed, temperature=2.0), constraint=JsonSchema(schema=json.dumps(SCHEMA)), choices=2
    )
    assert reason(answer) == "stop"
    for number in range(2):
        jsonschema.validate(json.loads(answer.choice(number)), SCHEMA)


def test_answer_leaves_no_grammar(dice: RunnerClient) -> None:
    answer = dice.ask(sampling=Sampling(seed=3, temperature=2.0), constraint=GbnfGrammar(text='root ::= "ja" | "nein"'))
    assert answer.text in {"ja", "nein"}
    assert reason(answer) == "stop"


def test_json_mode_is_json(dice: RunnerClient) -> None:
    for seed in range(4):
        answer = dice.ask(
            sampling=Sampling(seed=seed, temperature=1.0), constraint=JsonObject(), max_completion_tokens=300
        )
        if reason(answer) == "stop":
            assert isinstance(json.loads(answer.text), dict)
        assert answer.text.startswith("{")


@pytest.mark.parametrize(
    "constraint",
    [
        GbnfGrammar(text="root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
        GbnfGrammar(text="root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(4000)) + '\nr4000 ::= "a"'),
        GbnfGrammar(text="root ::= [" + "a" * 60_000 + "]"),
        GbnfGrammar(text='root ::= ("a"{1,1900}){1,1900}'),
        GbnfGrammar(text="root ::= root"),
        GbnfGrammar(text='other ::= "a"'),
        GbnfGrammar(text='root ::= "a'),
        JsonSchema(schema="{"),
        JsonSchema(schema='{"$ref":"https://example.com/schema"}'),
        JsonSchema(schema='{"not":{"type":"string"}}'),
    ],
)
def test_grammar_that_would_kill_is_refused_and_the_runner_lives(
    dice: RunnerClient, constraint: GbnfGrammar | JsonSchema
) -> None:
    assert refusal(dice.ask(constraint=constraint))[0] == "field-invalid"
    assert dice.ask(max_completion_tokens=2).end


def test_end_before_the_grammar_is_complete_is_impossible(dice: RunnerClient) -> None:
    """Accepting it would end the process in llama.cpp."""
    answer = dice.ask(
        sampling=Sampling(seed=1, logit_bias=((2, 100.0),)), constraint=GbnfGrammar(text='root ::= "abc"')
    )
    assert (answer.text, reason(answer)) == ("abc", "stop")


def test_grammar_that_bias_makes_impossible_ends_the_answer_alone(dice: RunnerClient) -> None:
    letter_a = 3 + ord("a")
    bias = tuple((token, -100.0) for token in (letter_a,))
    answer = dice.ask(sampling=Sampling(logit_bias=bias), constraint=GbnfGrammar(text='root ::= "a"'))
    assert reason(answer) == "error"
    assert dice.ask(max_completion_tokens=2).end


# --- tools ------------------------------------------------------------------------------------------------------------


def test_call_is_read_out_of_the_text() -> None:
    with bare_runner(chain_model(CALL, template=HERMES)) as runner:
        answer = runner.ask(Conversation(messages=USER, tools=(LOOK,)))
        assert (answer.text.strip(), answer.calls) == ("Let me see.", [("look", '{"city": "Oslo"}')])
        assert reason(answer) == "tool-calls"
        assert sum(delta.tokens for delta in answer.deltas) <= len(CALL.split(" "))


def test_call_of_a_tool_that_was_not_offered_is_text() -> None:
    with bare_runner(chain_model(CALL, template=HERMES)) as runner:
        other = runner.ask(Conversation(messages=USER, tools=(Tool(name="other"),)))
        none = runner.ask(Conversation(messages=USER, tools=(LOOK,), tool_choice="none"))
        plain = runner.ask(Conversation(messages=USER))
        for answer in (other, none, plain):
            assert (answer.text, answer.calls, reason(answer)) == (CALL, [], "stop")


def test_tools_are_refused_by_a_template_that_knows_none(chain: RunnerClient) -> None:
    assert refusal(chain.ask(Conversation(messages=USER, tools=(LOOK,))))[0] == "field-invalid"


def test_forced_call_is_made_whatever_the_model_wants() -> None:
    with bare_runner(chain_model(STORY, template=HERMES)) as runner:
        answer = runner.ask(
            Conversation(messages=USER, tools=(LOOK,), forced_tool="look"), sampling=Sampling(seed=1, temperature=1.0)
        )
        [(name, arguments)] = answer.calls
        assert (name, reason(answer)) == ("look", "tool-calls")
        jsonschema.validate(json.loads(arguments), json.loads(LOOK.parameters))


def test_history_of_calls_is_rendered() -> None:
    called = Message(role="assistant", content="", tool_calls=(ToolCall(id="c", name="look", arguments="{}"),))
    result = Message(role="tool", content="<|im_end|> rain", tool_call_id="c")
    with bare_runner(chain_model(STORY, template=HERMES)) as runner:
        answer = runner.ask(Conversation(messages=(*USER, called, result), tools=(LOOK,)), max_completion_tokens=4)
        assert answer.text == " ".join(WORDS[:4])


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_request_that_waits_too_long_is_refused_before_it_has_begun() -> None:
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192, slots=1) as runner:
        runner.submit("first")
        runner.wait_for_first_delta("first")
        runner.submit("second", queue_ms=1)
        [answer] = runner.wait_for("second")
        assert answer.refused is not None and answer.started is None
        assert answer.refused.reason == "overloaded"
        assert answer.refused.retry_after_seconds >= 1
        runner.cancel("first")
        runner.wait_for("first")


def test_echo_does_not_begin_a_request_that_has_no_slot() -> None:
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192, slots=1) as runner:
        runner.submit("first")
        runner.wait_for_first_delta("first")
        runner.submit("second", TextPrompt(text="echo"), echo=True, queue_ms=1)
        [answer] = runner.wait_for("second")
        assert answer.refused is not None and not answer.deltas
        runner.cancel("first")
        runner.wait_for("first")


def test_prefix_is_reported_to_its_own_tenant_alone(chain: RunnerClient) -> None:
    def cached(partition: str) -> int:
        end = chain.ask("the same words " * 20, cache_partition=partition, max_completion_tokens=2).end
        assert end is not None
        return end.cached_tokens

    assert [cached("one"), cached("two"), cached(""), cached("")] == [0, 0, 0, 0]
    assert cached("one") > 100


def test_probabilities_of_what_is_held_back_fit_their_frames() -> None:
    """What may yet be a call is held back for thousands of tokens; its probabilities in one frame would be none."""
    held = '<tool_call>{"arguments":{"city":"' + long_script(1000)
    with bare_runner(chain_model(held, template=HERMES)) as runner:
        asked = Conversation(messages=USER, tools=(LOOK,))
        answer = runner.ask(asked, sampling=Sampling(temperature=0.0, logprobs=20))
        assert reason(answer) == "stop"
        assert answer.text == held
        assert answer.end is not None and answer.end.completion_tokens == 1000
        assert sum(len(delta.logprobs) for delta in answer.deltas) == 1000
        assert sum(delta.tokens for delta in answer.deltas) == 1000


@pytest.mark.parametrize("stop", ["\U000f0000", "ab\U000fffff"])
def test_stop_string_that_could_find_out_a_seal_is_refused(stop: str, chain: RunnerClient) -> None:
    assert refusal(chain.ask(sampling=Sampling(stop=("x", stop))))[0] == "field-invalid"


def test_nobody_takes_the_places_of_all_others_with_what_is_not_prepared_yet() -> None:
    with bare_runner(chain_model(), slots=1, context_tokens=32768) as runner:
        at_most = MOST_WAITING_OF_ONE + 1
        for number in range(at_most + 1):
            runner.submit(str(number), "long " * 4000, principal="heavy")
        runner.submit("light", principal="light", max_completion_tokens=1)
        refused, light = runner.wait_for(str(at_most), "light")
        assert refusal(refused)[0] == "overloaded"
        assert refused.refused is not None and "same principal" in refused.refused.detail
        assert reason(light) == "length"
        runner.reset()
