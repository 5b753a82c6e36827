"""No request is admitted for more than its model can hold, nor under a name that its token does not cover."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.admit import (
    JSON_SPREAD,
    PROMPT_BYTES_PER_TOKEN,
    TEMPLATE_TOKENS,
    TEMPLATE_TOKENS_FOR_TOOLS,
    TEMPLATE_TOKENS_PER_MESSAGE,
    TEMPLATE_TOKENS_PER_TOOL,
    TEXT_TOKENS,
    AdmitLimits,
    admit,
    constrain,
    may_name,
    prompt_bytes,
)
from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Message, Obligations, TextPrompt, TokenPrompt, Tool, ToolCall
from tests.support.made_values import ALICE, LIMITS, chat_request, model, talk

CATALOGUE = (model("demo"), model("secret"))


def refusal(**arguments: object) -> Refused:
    with pytest.raises(Refused) as caught:
        admit(**({"request": chat_request(), "principal": ALICE, "catalogue": CATALOGUE, "limits": LIMITS} | arguments))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", ["secret", "absent", "", "Demo", "demo ", "*", "d\u0435mo", "../demo", "demo\x00"])
def test_model_outside_the_token_looks_exactly_like_an_absent_one(name: str) -> None:
    refused = refusal(request=chat_request(model=name))
    assert (refused.reason, refused.param, refused.retry_after_seconds) == (Reason.MODEL_NOT_FOUND, "model", None)


def test_token_without_models_names_none() -> None:
    nobody = msgspec.structs.replace(ALICE, models=())
    assert refusal(principal=nobody).reason is Reason.MODEL_NOT_FOUND
    assert not may_name(nobody, "demo")


def test_star_covers_every_model_and_only_as_the_whole_name() -> None:
    assert may_name(msgspec.structs.replace(ALICE, models=("*",)), "anything")
    assert not may_name(msgspec.structs.replace(ALICE, models=("de*", "demo*", "**")), "demo")


def test_empty_catalogue_has_nothing() -> None:
    assert refusal(catalogue=()).reason is Reason.MODEL_NOT_FOUND


def test_prompt_that_would_not_fit_is_refused_without_asking_the_runner() -> None:
    limit = LIMITS.context_tokens * PROMPT_BYTES_PER_TOKEN
    admit(chat_request("x" * limit), ALICE, CATALOGUE, LIMITS)
    refused = refusal(request=chat_request("x" * (limit + 1)))
    assert (refused.reason, refused.param) == (Reason.PROMPT_TOO_LONG, "messages")


def test_prompt_is_measured_in_bytes_of_all_messages() -> None:
    request = chat_request(prompt=talk(Message(role="system", content="é"), Message(role="user", content="😀")))
    admitted = admit(request, ALICE, CATALOGUE, LIMITS)
    assert admitted.max_prompt_tokens == 6 + 2 * TEMPLATE_TOKENS_PER_MESSAGE + TEMPLATE_TOKENS


TOOL = Tool(name="née", description="é", parameters='{"a":"é"}')
CALL = ToolCall(id="c1", name="née", arguments='{"é":1}')


def test_all_that_a_template_may_print_is_paid_for() -> None:
    plain = admit(chat_request("hi"), ALICE, CATALOGUE, LIMITS).max_prompt_tokens
    with_tool = admit(
        chat_request(prompt=talk(Message(role="user", content="hi"), tools=(TOOL,))), ALICE, CATALOGUE, LIMITS
    )
    own = 4 + 2 + 10  # bytes of name, description and parameters
    spread = (JSON_SPREAD - 1) * len(TOOL.parameters)
    assert with_tool.max_prompt_tokens == (plain + own + spread + TEMPLATE_TOKENS_PER_TOOL + TEMPLATE_TOKENS_FOR_TOOLS)
    turns = (Message(role="user", content="hi"), Message(role="assistant", content="", tool_calls=(CALL,)))
    answered = Message(role="tool", content="4", tool_call_id="c1")
    with_call = admit(chat_request(prompt=talk(*turns, answered)), ALICE, CATALOGUE, LIMITS)
    own = 2 + 4 + 8 + (JSON_SPREAD - 1) * len(CALL.arguments) + 1 + 2
    assert with_call.max_prompt_tokens == plain + own + TEMPLATE_TOKENS_PER_TOOL + 2 * TEMPLATE_TOKENS_PER_MESSAGE


def test_tools_that_would_not_fit_are_refused_without_asking_the_runner() -> None:
    tool = Tool(name="f", description="x" * (LIMITS.context_tokens * PROMPT_BYTES_PER_TOKEN))
    refused = refusal(request=chat_request(prompt=talk(tools=(tool,))))
    assert (refused.reason, refused.param) == (Reason.PROMPT_TOO_LONG, "messages")


def test_text_is_bounded_by_its_bytes_and_token_ids_by_their_number() -> None:
    text = admit(chat_request(prompt=TextPrompt(text="é")), ALICE, CATALOGUE, LIMITS)
    assert text.max_prompt_tokens == 2 + TEXT_TOKENS
    ids = admit(chat_request(prompt=TokenPrompt(ids=(1,) * 7)), ALICE, CATALOGUE, LIMITS)
    assert ids.max_prompt_tokens == 7
    context = LIMITS.context_tokens
    assert admit(chat_request(prompt=TokenPrompt(ids=(1,) * (context - 1))), ALICE, CATALOGUE, LIMITS)
    for prompt in (TokenPrompt(ids=(1,) * context), TextPrompt(text="x" * (context * PROMPT_BYTES_PER_TOKEN + 1))):
        refused = refusal(request=chat_request(prompt=prompt))
        assert (refused.reason, refused.param) == (Reason.PROMPT_TOO_LONG, "prompt")


def test_every_choice_is_paid_for_and_the_prompt_once() -> None:
    admitted = admit(chat_request("hi", choices=3, max_tokens=10), ALICE, CATALOGUE, LIMITS)
    assert admitted.max_completion_tokens == 30
    assert admitted.worst_case_tokens == admitted.max_prompt_tokens + 30


def test_only_what_is_echoed_may_be_said_without_charge() -> None:
    prompt = TextPrompt(text="hello")
    assert admit(chat_request(prompt=prompt), ALICE, CATALOGUE, LIMITS).echo_bytes == 0
    echoing = admit(chat_request(prompt=prompt, echo=True, choices=2), ALICE, CATALOGUE, LIMITS)
    assert echoing.echo_bytes == 2 * (5 + MAX_TOKEN_BYTES)


@given(st.integers(2, 2000), st.integers(1, 16), st.integers(1, 3000), st.integers(0, 3000))
def test_worst_case_holds_for_every_prompt_that_the_runner_may_find(
    context: int, choices: int, asked: int, size: int
) -> None:
    """The runner ends each choice at the context's end: no prompt within the bound can cost more."""
    limits = AdmitLimits(context_tokens=context, default_max_tokens=1)
    request = chat_request("x" * min(size, context), choices=choices, max_tokens=asked)
    admitted = admit(request, ALICE, CATALOGUE, limits)
    each = admitted.max_completion_tokens // choices
    dearest = max(
        prompt + choices * min(each, context - prompt) for prompt in range(1, max(2, admitted.max_prompt_tokens + 1))
    )
    assert dearest <= admitted.worst_case_tokens + (admitted.max_prompt_tokens == 0)


def test_absent_max_tokens_means_the_servers_default_and_not_nothing() -> None:
    assert admit(chat_request(), ALICE, CATALOGUE, LIMITS).max_completion_tokens == LIMITS.default_max_tokens


def test_smaller_of_the_operators_and_the_models_context_counts() -> None:
    small = (model("demo", context_tokens=100),)
    assert admit(chat_request(), ALICE, small, LIMITS).context_tokens == 100
    assert admit(chat_request(), ALICE, CATALOGUE, LIMITS).context_tokens == LIMITS.context_tokens


@given(
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.none() | st.integers(1, 2**20),
    st.integers(1, 5000),
    st.integers(0, 999),
)
def test_worst_case_is_never_above_the_context_and_never_nothing(
    operators: int, models: int, asked: int | None, default: int, size: int
) -> None:
    limits = AdmitLimits(context_tokens=operators, default_max_tokens=default)
    request = chat_request("x" * min(size, models, operators), max_tokens=asked)
    admitted = admit(request, ALICE, (model("demo", context_tokens=models),), limits)
    assert 0 <= admitted.max_prompt_tokens < admitted.context_tokens
    assert 1 <= admitted.max_completion_tokens <= admitted.context_tokens
    assert 1 <= admitted.worst_case_tokens <= min(operators, models)
    assert asked is None or admitted.max_completion_tokens <= asked


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000))
def test_obligation_only_ever_lowers_the_bound(asked: int, cap: int | None) -> None:
    admitted = admit(chat_request(max_tokens=asked), ALICE, CATALOGUE, LIMITS)
    bound = constrain(admitted, Obligations(max_tokens=cap))
    assert bound.max_completion_tokens == min(admitted.max_completion_tokens, cap or 10**9)
    assert bound.worst_case_tokens <= admitted.worst_case_tokens
    assert msgspec.structs.replace(bound, max_completion_tokens=admitted.max_completion_tokens) == admitted


def test_obligation_bounds_all_choices_together() -> None:
    admitted = admit(chat_request(max_tokens=100, choices=3), ALICE, CATALOGUE, LIMITS)
    assert constrain(admitted, Obligations(max_tokens=10)).max_completion_tokens == 9
    assert constrain(admitted, Obligations(max_tokens=3)).max_completion_tokens == 3
    with pytest.raises(Refused) as caught:
        constrain(admitted, Obligations(max_tokens=2))
    assert caught.value.reason is Reason.POLICY_DENIED


def test_prompt_is_counted_without_failing_on_a_lone_surrogate() -> None:
    assert prompt_bytes(TextPrompt(text="\ud800")) == 3
