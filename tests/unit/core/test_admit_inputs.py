"""What vectors, scores and tokens may cost at worst, and what policy is told of them."""

from typing import Any

import pytest

from appliance.core.admit import TEXT_TOKENS, admit, asked_bytes, constrain
from appliance.core.decide import policy_input
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Admission,
    Asked,
    Detokenisation,
    Obligations,
    TextPrompt,
    Tokenisation,
    TokenPrompt,
    Vectors,
)
from tests.support.made_values import ALICE, LIMITS, PEER, chat_request, model

CONTEXT = LIMITS.context_tokens


def _vectors(*inputs: str | tuple[int, ...], **fields: Any) -> Vectors:
    prompts = tuple(TextPrompt(text=each) if isinstance(each, str) else TokenPrompt(ids=each) for each in inputs)
    return Vectors(**({"model": "demo", "kind": "embed", "inputs": prompts} | fields))


def _admitted(request: Asked) -> Admission:
    return admit(request, ALICE, [model(pools=isinstance(request, Vectors))], LIMITS)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (_vectors("hello"), 5 + 2 * TEXT_TOKENS),
        (_vectors("hello", (1, 2, 3)), 5 + 2 * TEXT_TOKENS + 3 + TEXT_TOKENS),
        (_vectors("a" * 2 * CONTEXT, "b"), CONTEXT + 1 + 2 * TEXT_TOKENS),
        (_vectors("ab", "c", kind="rerank", query="query"), (5 + 2) + (5 + 1) + 4 * TEXT_TOKENS),
        (Tokenisation(model="demo", text="\u00e9\u00e9"), 4 + TEXT_TOKENS),
        (Detokenisation(model="demo", ids=(1, 2)), 2),
        (Detokenisation(model="demo", ids=()), 1),
    ],
)
def test_the_worst_case_is_every_input_at_a_token_a_byte_or_a_whole_context(request_: Asked, tokens: int) -> None:
    admission = _admitted(request_)
    assert (admission.max_prompt_tokens, admission.max_completion_tokens) == (tokens, 0)
    assert admission.worst_case_tokens == tokens


@pytest.mark.parametrize(
    "request_",
    [
        _vectors("ok", "a" * (16 * CONTEXT + 1)),
        _vectors((1,) * CONTEXT),
        Tokenisation(model="demo", text="a" * (16 * CONTEXT + 1)),
    ],
)
def test_what_cannot_fit_is_refused_without_asking_the_runner(request_: Asked) -> None:
    with pytest.raises(Refused) as caught:
        _admitted(request_)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG


@pytest.mark.parametrize(
    ("request_", "pools"),
    [
        (chat_request(), True),
        (_vectors("hello"), False),
        (_vectors("hello", kind="rerank", query="q"), False),
    ],
)
def test_a_model_is_not_loaded_for_what_it_is_not_for(request_: Asked, pools: bool) -> None:
    with pytest.raises(Refused) as caught:
        admit(request_, ALICE, [model(pools=pools)], LIMITS)
    assert (caught.value.reason, caught.value.param) == (Reason.OPERATION_UNSUPPORTED, "model")


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("request_", [Tokenisation(model="demo", text="hello"), Detokenisation(model="demo", ids=(1,))])
def test_every_model_has_a_vocabulary(request_: Asked, pools: bool) -> None:
    assert admit(request_, ALICE, [model(pools=pools)], LIMITS).request == request_


def test_what_may_be_cut_may_be_of_any_length() -> None:
    assert _admitted(_vectors("a" * (16 * CONTEXT + 1), truncate=True)).max_prompt_tokens == CONTEXT


def test_a_cap_on_what_is_generated_does_not_touch_what_generates_nothing() -> None:
    admission = _admitted(_vectors("hello"))
    assert constrain(admission, Obligations(max_tokens=1)) == admission


@pytest.mark.parametrize(
    ("request_", "operation", "n_bytes"),
    [
        (_vectors("hello", "\u00e9"), "embed", 7),
        (_vectors("hello", kind="rerank", query="query"), "rerank", 10),
        (Tokenisation(model="demo", text="hello"), "tokenise", 5),
        (Detokenisation(model="demo", ids=(1,)), "tokenise", 256),
    ],
)
def test_policy_is_told_what_is_asked(request_: Asked, operation: str, n_bytes: int) -> None:
    document = policy_input(
        _admitted(request_), principal=ALICE, peer=PEER, method="POST", route="/v1/embeddings", now_seconds=0
    )
    assert document["action"] == {"operation": operation, "method": "POST", "route": "/v1/embeddings"}
    assert document["request"] == {
        "max_tokens": 0,
        "messages": 0,
        "prompt_bytes": n_bytes,
        "stream": False,
        "tools": 0,
        "constraint": "none",
        "choices": 1,
    }
    assert asked_bytes(request_) == n_bytes
