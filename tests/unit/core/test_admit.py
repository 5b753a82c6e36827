"""No request is admitted for more than its model can hold, nor under a name that its token does not cover."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.admit import (
    PROMPT_BYTES_PER_TOKEN,
    TEMPLATE_TOKENS,
    TEMPLATE_TOKENS_PER_MESSAGE,
    AdmitLimits,
    admit,
    constrain,
    may_name,
)
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Message, Obligations
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
