"""What policy is asked, and that no answer but an exact one allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.core import decide
from appliance.core.decide import (
    ALLOW_REASONS,
    DENY_REASONS,
    MALFORMED,
    input_document,
    judge,
    policy_input,
    require_sealed,
)
from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.manifest import accompanied, as_companion
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Admission,
    Conversation,
    Digest,
    GbnfGrammar,
    Generation,
    GgufFacts,
    JsonObject,
    JsonSchema,
    Message,
    Obligations,
    Peer,
    Principal,
    SealMode,
    Signer,
    TextPrompt,
    TokenPrompt,
    Tool,
    VerifiedModel,
)

PLAIN = {
    "max_tokens": 128,
    "messages": 1,
    "prompt_bytes": 5,
    "stream": True,
    "tools": 0,
    "constraint": "none",
    "choices": 1,
}
POLICY, INPUT = Digest.of(b"policy"), Digest.of(b"input")
ALLOW = {"allow": True, "reasons": ["group-permits-model"], "obligations": {"max_tokens": 512}}
DENY = {"allow": False, "reasons": ["no-group-permits-model"], "obligations": {}}

MODEL = VerifiedModel(
    name="demo",
    digest=Digest.of(b"model"),
    size_bytes=1,
    signer=Signer(name="release", fingerprint=Digest.of(b"key")),
    bundle_digest=Digest.of(b"bundle"),
    facts=GgufFacts(
        architecture="llama",
        name="demo",
        context_tokens=512,
        vocabulary_tokens=1,
        block_count=1,
        embedding_length=1,
        parameter_count=1,
        tensor_count=1,
        has_chat_template=True,
        header_bytes=1,
        file_bytes=1,
    ),
)
ADMISSION = Admission(
    model=MODEL,
    request=Generation(
        model="demo",
        prompt=Conversation(messages=(Message(role="user", content="grün"),)),
        max_tokens=900,
        stream=True,
    ),
    context_tokens=512,
    max_prompt_tokens=100,
    max_completion_tokens=128,
)
PRINCIPAL = Principal(
    key="k",
    issuer="https://issuer.example",
    subject="alice",
    client_id="notebook",
    groups=("staff", "research"),
    models=("*",),
    token_id="t",
    token_sha256=Digest.of(b"token"),
)


def asked(what, now_seconds=1_700_000_000):
    return policy_input(
        what,
        principal=PRINCIPAL,
        peer=Peer(address="192.0.2.7", port=4711),
        method="POST",
        route="/v1/chat/completions",
        now_seconds=now_seconds,
    )


def judged(answer):
    return judge(answer, policy_digest=POLICY, input_digest=INPUT)


def test_the_input_says_what_was_admitted_and_not_what_was_asked_for():
    assert asked(ADMISSION) == {
        "principal": {
            "subject": "alice",
            "client_id": "notebook",
            "issuer": "https://issuer.example",
            "groups": ["staff", "research"],
            "models": ["*"],
            "acting": [],
        },
        "action": {"operation": "chat", "method": "POST", "route": "/v1/chat/completions"},
        "model": {
            "name": "demo",
            "digest": str(MODEL.digest),
            "signer": "release",
            "base": "demo",
            "companions": [],
        },
        "request": PLAIN,
        "peer": {"address": "192.0.2.7"},
        "time": {"unix_seconds": 1_700_000_000, "weekday": 1, "minute_of_day": 22 * 60 + 13},
    }


def test_the_input_says_who_signed_all_that_is_served_and_what_the_store_calls_it():
    companion = as_companion(
        replace(MODEL, name="small", signer=Signer(name="vendor", fingerprint=INPUT)), "draft", None
    )
    document = asked(accompanied(MODEL, "bot", (companion,)))
    assert document["model"] == {
        "name": "bot",
        "digest": str(MODEL.digest),
        "signer": "release",
        "base": "demo",
        "companions": [{"kind": "draft", "name": "small", "digest": str(MODEL.digest), "signer": "vendor"}],
    }


def test_listing_a_model_asks_without_a_request():
    document = asked(MODEL)
    assert document["action"]["operation"] == "list"
    nothing = {"max_tokens": None, "messages": 0, "prompt_bytes": 0, "stream": False, "tools": 0, "choices": 0}
    assert document["request"] == nothing | {"constraint": "none"}


@pytest.mark.parametrize(
    ("changes", "operation", "said"),
    [
        ({"prompt": TextPrompt(text="grün")}, "complete", {"messages": 0, "prompt_bytes": 5}),
        ({"prompt": TokenPrompt(ids=(1, 2))}, "complete", {"messages": 0, "prompt_bytes": 2 * MAX_TOKEN_BYTES}),
        ({"constraint": GbnfGrammar(text="root ::= [a]")}, "chat", {"constraint": "gbnf"}),
        ({"constraint": JsonObject()}, "chat", {"constraint": "json-object"}),
        ({"constraint": JsonSchema(schema="{}")}, "chat", {"constraint": "json-schema"}),
        ({"choices": 3}, "chat", {"choices": 3}),
        (
            {"prompt": Conversation(messages=(), tools=(Tool(name="f"),))},
            "chat",
            {"messages": 0, "tools": 1, "prompt_bytes": len("f" + Tool(name="f").parameters)},
        ),
    ],
)
def test_what_is_asked_for_is_told_by_its_kind_and_never_by_its_text(changes, operation, said):
    document = asked(replace(ADMISSION, request=replace(ADMISSION.request, **changes)))
    assert document["action"]["operation"] == operation
    assert document["request"] == PLAIN | said


def test_no_prompt_text_reaches_the_policy_or_the_log():
    assert "grün" not in str(asked(ADMISSION))


@pytest.mark.parametrize(
    ("now_seconds", "weekday", "minute_of_day"),
    [(0, 3, 0), (59, 3, 0), (60, 3, 1), (86_399, 3, 1439), (86_400, 4, 0), (4 * 86_400, 0, 0)],
)
def test_time_is_utc_and_monday_is_zero(now_seconds, weekday, minute_of_day):
    assert asked(MODEL, now_seconds)["time"] == {
        "unix_seconds": now_seconds,
        "weekday": weekday,
        "minute_of_day": minute_of_day,
    }


def test_the_input_document_does_not_depend_on_the_order_of_keys():
    document = asked(ADMISSION)
    assert input_document(dict(reversed(document.items()))) == input_document(document)


def test_an_exact_allow_allows():
    decision = judged(ALLOW)
    assert decision.allow is True
    assert decision.reasons == ("group-permits-model",)
    assert decision.obligations == Obligations(max_tokens=512)
    assert (decision.policy_digest, decision.input_digest) == (POLICY, INPUT)


@pytest.mark.parametrize("seal", ["ro-store", "verity", "sealed-memfd"])
def test_an_allow_may_demand_a_seal(seal: SealMode):
    assert judged({**ALLOW, "obligations": {"minimum_seal": seal}}).obligations == Obligations(minimum_seal=seal)
    both = judged({**ALLOW, "obligations": {"minimum_seal": seal, "max_tokens": 5}})
    assert both.obligations == Obligations(minimum_seal=seal, max_tokens=5)


def test_a_seal_weaker_than_demanded_is_refused():
    seals: tuple[SealMode, ...] = ("ro-store", "verity", "sealed-memfd")  # weakest first
    for demanded, minimum in enumerate(seals):
        for had, seal in enumerate(seals):
            if had >= demanded:
                require_sealed(Obligations(minimum_seal=minimum), seal)
                continue
            with pytest.raises(Refused, match=f"loaded as {seal} and policy demands {minimum}") as caught:
                require_sealed(Obligations(minimum_seal=minimum), seal)
            assert caught.value.reason is Reason.POLICY_DENIED
    require_sealed(Obligations(), "ro-store")


def test_an_allow_without_obligations_allows():
    assert judged({**ALLOW, "obligations": {}}).obligations == Obligations()


def test_an_exact_deny_denies_for_its_own_reasons_in_order():
    decision = judged({**DENY, "reasons": ["subject-closed", "model-closed"]})
    assert decision.allow is False
    assert decision.reasons == ("model-closed", "subject-closed")


MALFORMED_ANSWERS = {
    "undefined": None,
    "empty": {},
    "true": True,
    "text": "true",
    "list": [ALLOW],
    "one": 1,
    "only-allow": {"allow": True},
    "no-reasons": {"allow": True, "obligations": {}},
    "no-obligations": {"allow": True, "reasons": ["group-permits-model"]},
    "allow-text": {**ALLOW, "allow": "true"},
    "allow-one": {**ALLOW, "allow": 1},
    "allow-one-point-zero": {**ALLOW, "allow": 1.0},
    "allow-null": {**ALLOW, "allow": None},
    "allow-list": {**ALLOW, "allow": [True]},
    "allow-object": {**ALLOW, "allow": {"value": True}},
    "extra-key": {**ALLOW, "note": "x"},
    "key-of-another-case": {"Allow": True, "reasons": ["group-permits-model"], "obligations": {}},
    "reasons-empty": {**ALLOW, "reasons": []},
    "reasons-text": {**ALLOW, "reasons": "group-permits-model"},
    "reasons-object": {**ALLOW, "reasons": {"group-permits-model": True}},
    "reason-unknown": {**ALLOW, "reasons": ["because-i-say-so"]},
    "reason-known-and-unknown": {**ALLOW, "reasons": ["group-permits-model", "because-i-say-so"]},
    "reason-twice": {**ALLOW, "reasons": ["group-permits-model", "group-permits-model"]},
    "reason-number": {**ALLOW, "reasons": [1]},
    "reason-null": {**ALLOW, "reasons": [None]},
    "reason-list": {**ALLOW, "reasons": [["group-permits-model"]]},
    "reason-object": {**ALLOW, "reasons": [{}]},
    "reason-of-denial": {**ALLOW, "reasons": ["no-group-permits-model"]},
    "reason-of-both": {**ALLOW, "reasons": ["group-permits-model", "no-group-permits-model"]},
    "reason-ours": {**DENY, "reasons": [MALFORMED]},
    "deny-with-reason-of-allowing": {**DENY, "reasons": ["group-permits-model"]},
    "deny-without-reason": {**DENY, "reasons": []},
    "deny-with-obligation": {**DENY, "obligations": {"max_tokens": 1}},
    "obligations-null": {**ALLOW, "obligations": None},
    "obligations-list": {**ALLOW, "obligations": []},
    "obligation-unknown": {**ALLOW, "obligations": {"max_tokens": 1, "redact": True}},
    "obligation-misspelt": {**ALLOW, "obligations": {"max_token": 1}},
    "tokens-zero": {**ALLOW, "obligations": {"max_tokens": 0}},
    "tokens-negative": {**ALLOW, "obligations": {"max_tokens": -1}},
    "tokens-huge": {**ALLOW, "obligations": {"max_tokens": 2**31}},
    "tokens-text": {**ALLOW, "obligations": {"max_tokens": "512"}},
    "tokens-float": {**ALLOW, "obligations": {"max_tokens": 512.0}},
    "tokens-true": {**ALLOW, "obligations": {"max_tokens": True}},
    "seal-unknown": {**ALLOW, "obligations": {"minimum_seal": "wax"}},
    "seal-null": {**ALLOW, "obligations": {"minimum_seal": None}},
    "seal-list": {**ALLOW, "obligations": {"minimum_seal": ["verity"]}},
    "seal-with-bad-tokens": {**ALLOW, "obligations": {"minimum_seal": "verity", "max_tokens": 0}},
    "deny-with-seal": {**DENY, "obligations": {"minimum_seal": "verity"}},
    "tokens-null": {**ALLOW, "obligations": {"max_tokens": None}},
}


@pytest.mark.parametrize("answer", MALFORMED_ANSWERS.values(), ids=MALFORMED_ANSWERS.keys())
def test_a_malformed_answer_denies_and_raises_nothing(answer):
    decision = judged(answer)
    assert decision.allow is False
    assert decision.reasons == (MALFORMED,)
    assert decision.obligations == Obligations()
    assert (decision.policy_digest, decision.input_digest) == (POLICY, INPUT)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(sorted(ALLOW_REASONS | DENY_REASONS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["allow", "reasons", "obligations", "max_tokens", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    answer=JSON_VALUES
    | st.fixed_dictionaries({"allow": JSON_VALUES, "reasons": JSON_VALUES, "obligations": JSON_VALUES})
)
def test_nothing_but_true_with_known_reasons_is_an_allow(answer):
    decision = judged(answer)
    if decision.allow:
        assert answer["allow"] is True
        assert set(answer) == {"allow", "reasons", "obligations"}
        assert set(answer["reasons"]) <= ALLOW_REASONS
    else:
        assert decision.obligations == Obligations()
        assert decision.reasons == (MALFORMED,) or set(decision.reasons) <= DENY_REASONS


def test_the_lists_of_reasons_are_kebab_case_and_disjoint():
    words = ALLOW_REASONS | DENY_REASONS | {MALFORMED}
    assert not ALLOW_REASONS & DENY_REASONS
    assert MALFORMED not in ALLOW_REASONS | DENY_REASONS
    assert all(word == word.lower() and word.replace("-", "").isalpha() for word in words)


def test_a_denied_request_is_refused_and_an_allowed_one_is_not():
    decide.require_allowed(judged(ALLOW))
    for answer in (DENY, None):
        with pytest.raises(Refused) as refused:
            decide.require_allowed(judged(answer))
        assert refused.value.reason is Reason.POLICY_DENIED
        assert refused.value.detail == ", ".join(judged(answer).reasons)


def test_the_metrics_are_of_no_model_and_ask_for_no_token():
    document = asked("metrics")
    assert document["action"]["operation"] == "metrics"
    assert document["model"] is None
    assert document["request"] == asked(MODEL)["request"]
    assert document["request"]["max_tokens"] is None
    assert document["principal"] == asked(ADMISSION)["principal"]
