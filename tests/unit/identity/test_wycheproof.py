"""Project Wycheproof's JSON Web Signature and JSON Web Key vectors as judges of the key and signature steps.

Each vector has a verdict of ours, and each verdict that differs from Wycheproof's has its reason in ``WHY``: a genuine
signature that we refuse all the same. There is none the other way round.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from jwt.utils import base64url_decode

from appliance.core.refusals import Fault, Reason, Refused
from appliance.identity.compact import SERIALISATION, authenticated_payload, signed_payload, unverified_object
from appliance.identity.keys import parse_foreign_keys

FOLDER = Path(__file__).parents[2] / "vectors" / "wycheproof"
OURS = frozenset({"ES256", "RS256", "PS256", "EdDSA"})


def vectors(name: str) -> list[Any]:
    document = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return [
        pytest.param(group, test, id=f"{test['tcId']} {group['comment']} {test['comment']}")
        for group in document["testGroups"]
        for test in group["tests"]
    ]


SIGNATURES, KEYS = vectors("json_web_signature_test.json"), vectors("json_web_key_test.json")


def keys_of(group: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = group.get("public") or group["private"]
    return keys if "keys" in keys else {"keys": [keys]}


def verdict(group: dict[str, Any], test: dict[str, Any]) -> str:
    """ "accepted", or which step refuses."""
    try:
        keys = parse_foreign_keys(json.dumps(keys_of(group)).encode(), OURS)
    except Fault:
        return "key"
    match = SERIALISATION.fullmatch(test["jws"])
    if match is None:
        return "shape"
    try:
        header = unverified_object(match[1], Reason.TOKEN_INVALID)
        (key,) = keys.values()
        if not header.keys() <= {"alg", "kid", "typ"}:
            return "header"
        if header.get("alg") != key.algorithm:
            return "algorithm"
        signed_payload(test["jws"], key, Reason.TOKEN_INVALID)
    except Refused:
        return "signature"
    return "accepted"


def why(group: dict[str, Any], test: dict[str, Any]) -> str:
    """Why a vector that is valid is not accepted here."""
    algorithms = {key.get("alg") for key in keys_of(group)["keys"]}
    if algorithms & {"HS256", "HS384", "HS512"}:
        return "a shared secret is no verifying key"
    if not algorithms <= OURS:
        return "an algorithm that nobody can configure"
    if test["comment"] == "emptyPayload":
        return "an empty payload is no claims"
    if test["comment"] == "Figure20":
        return "its header says PS384 and its key PS256"
    return ""


@pytest.mark.parametrize(("group", "test"), SIGNATURES + KEYS)
def test_no_invalid_vector_is_accepted_and_each_refused_valid_one_has_a_reason(
    group: dict[str, Any], test: dict[str, Any]
) -> None:
    said = verdict(group, test)
    if test["result"] == "invalid":
        assert said != "accepted"
    elif said != "accepted":
        assert why(group, test)
    else:
        assert not why(group, test)


def test_genuine_signatures_of_each_family_are_accepted() -> None:
    accepted = [vector.values[0] for vector in SIGNATURES if verdict(*vector.values) == "accepted"]
    assert {key["alg"] for group in accepted for key in keys_of(group)["keys"]} == {"ES256", "RS256", "PS256"}


def test_forged_signatures_are_refused_by_the_signature_step() -> None:
    """And not by a check before it that would hide a broken one."""
    verdicts = [verdict(*vector.values) for vector in SIGNATURES if vector.values[1]["result"] == "invalid"]
    assert verdicts.count("signature") > 250


def test_weak_keys_are_refused_as_what_they_are() -> None:
    for comment, told in (
        ("rejectsKeyWithRocaVulnerability", "CVE-2017-15361"),
        ("rejects1024bitRsaKey", "2048 to 8192 bits"),
    ):
        (group,) = [vector.values[0] for vector in KEYS if vector.values[1]["comment"] == comment]
        with pytest.raises(Fault) as caught:
            parse_foreign_keys(json.dumps(keys_of(group)).encode(), OURS)
        assert told in caught.value.detail


# --- shared secrets (``identity.delegation``) ------------------------------------------------------------------------

MACS = [vector for vector in SIGNATURES if [key.get("alg") for key in keys_of(vector.values[0])["keys"]] == ["HS256"]]


def payload(group: dict[str, Any], test: dict[str, Any]) -> bytes | None:
    """Of one that is accepted, as far as shape and MAC go."""
    [key] = keys_of(group)["keys"]
    if SERIALISATION.fullmatch(test["jws"]) is None:
        return None
    try:
        return authenticated_payload(test["jws"], base64url_decode(key["k"]), Reason.TOKEN_INVALID)
    except Refused:
        return None


VALID = {test["jws"] for _group, test in (vector.values for vector in MACS) if test["result"] == "valid"}
"""Two that are called invalid, for a padding that they have lost, are to the letter one that is called valid."""


@pytest.mark.parametrize(("group", "test"), MACS)
def test_no_invalid_mac_is_accepted(group: dict[str, Any], test: dict[str, Any]) -> None:
    if test["jws"] not in VALID:
        assert payload(group, test) is None
    elif "Inserted" not in test["comment"]:  # the one thing where they are laxer than RFC 7515 section 2
        assert payload(group, test) is not None
