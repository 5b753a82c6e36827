"""No public text says anything of ours, and no two reasons share a word."""

import re

import pytest

from appliance.core.refusals import Fault, PaddockError, Reason, Refused


def test_codes_are_unique_and_kebab_case() -> None:
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes) == len(Reason.__members__)
    for name, reason in Reason.__members__.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason.code)
        assert name == reason.code.upper().replace("-", "_")


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_public_text_is_a_sentence_without_anything_of_ours(reason: Reason) -> None:
    assert 400 <= reason.status <= 599
    assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,'/-]*\.", reason.text)
    assert not re.search(r"llama|python|litestar|socket|notary|warden|sandbox|exception|traceback", reason.text, re.I)
    assert " /" not in reason.text


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_status_fits_the_room(reason: Reason) -> None:
    """An outage is never the caller's fault, and what the caller may cure is never an outage."""
    ours = ("unavailable", "lost", "error", "timeout", "overloaded", "internal", "verified")
    assert (reason.status >= 500) == (reason.code.endswith(ours) and reason is not Reason.BODY_TIMEOUT)


def test_refusal_carries_both_messages_apart() -> None:
    refused = Refused(Reason.POLICY_DENIED, "no-group-permits-model", retry_after_seconds=3, param="model")
    assert str(refused) == "policy-denied: no-group-permits-model"
    assert "no-group" not in refused.reason.text
    assert (refused.detail, refused.retry_after_seconds, refused.param) == ("no-group-permits-model", 3, "model")
    assert str(Refused(Reason.POLICY_DENIED)) == "policy-denied"


def test_the_two_families_are_apart() -> None:
    assert issubclass(Refused, PaddockError)
    assert issubclass(Fault, PaddockError)
    assert not issubclass(Refused, Fault)
    assert not issubclass(Fault, Refused)
    assert Fault("disk").detail == "disk"
