"""What a catalogue may not say, and what it does not permit."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.catalogue import (
    MAX_MODELS,
    MAX_REMEMBERED,
    NOTHING_SEEN,
    Catalogue,
    CatalogueEntry,
    Seen,
    accept,
    decode_catalogue,
    encode_catalogue,
)
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, SealMode, Signer, VerifiedModel
from tests.support.made_values import model
from tests.support.refusals import code_of

NOW = 1_800_000_000
MODEL = model("demo")
SEALS: list[SealMode] = ["ro-store", "verity", "sealed-memfd"]


def entry(name: str = "demo", **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": 3,
        "digest": str(Digest.of(name.encode())),
        "signer": "release",
        "minimum_seal": "ro-store",
        "expires_at_seconds": NOW + 50,
    } | values


def document(*entries: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "version": 7,
        "expires_at_seconds": NOW + 100,
        "models": list(entries or (entry(), entry("other"))),
    } | values


def payload(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def without(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in value.items() if name != key}


MALFORMED: list[tuple[str, Any, str]] = [
    ("not JSON", b"{", "catalogue-malformed"),
    ("empty", b"", "catalogue-malformed"),
    ("an array", [], "catalogue-malformed"),
    ("deep nesting", b"[" * 100_000, "catalogue-malformed"),
    ("duplicate key", payload(document()).replace(b'"version": 7', b'"version": 8, "version": 7'),
     "catalogue-malformed"),
    ("text after it", payload(document()) + b"{}", "catalogue-malformed"),
    ("unknown key", document(critical=True), "catalogue-malformed"),
    ("no version", without("version", document()), "catalogue-malformed"),
    ("no expiry", without("expires_at_seconds", document()), "catalogue-malformed"),
    ("no models", without("models", document()), "catalogue-malformed"),
    ("version 0", document(version=0), "catalogue-malformed"),
    ("version below 0", document(version=-1), "catalogue-malformed"),
    ("version 2^53", document(version=2**53), "catalogue-malformed"),
    ("version as text", document(version="7"), "catalogue-malformed"),
    ("version and a half", document(version=7.5), "catalogue-malformed"),
    ("version true", document(version=True), "catalogue-malformed"),
    ("version null", document(version=None), "catalogue-malformed"),
    ("expiry as a date", document(expires_at_seconds="2030-01-01"), "catalogue-malformed"),
    ("expiry null", document(expires_at_seconds=None), "catalogue-malformed"),
    ("expiry 1e300", document(expires_at_seconds=1e300), "catalogue-malformed"),
    ("models as an object", document(models={}), "catalogue-malformed"),
    ("1001 models", document(*(entry(f"m{number}") for number in range(1001))), "catalogue-malformed"),
    ("model listed twice", document(entry(), entry()), "catalogue-duplicate"),
    ("model listed with two digests", document(entry(), entry(digest=str(Digest.of(b"x")))), "catalogue-duplicate"),
    ("model listed in two versions", document(entry(), entry(version=4)), "catalogue-duplicate"),
    ("unknown entry key", document(entry(note="x")), "catalogue-malformed"),
    *((f"entry without {key}", document(without(key, entry())), "catalogue-malformed") for key in entry()),
    ("upper-case name", document(entry("Demo")), "catalogue-malformed"),
    ("name with a slash", document(entry("a/b")), "catalogue-malformed"),
    ("name with a newline", document(entry("demo\n")), "catalogue-malformed"),
    ("empty name", document(entry("")), "catalogue-malformed"),
    ("two tags", document(entry("a:b:c")), "catalogue-malformed"),
    ("digest without its kind", document(entry(digest="0" * 64)), "catalogue-malformed"),
    ("short digest", document(entry(digest="sha256:" + "0" * 63)), "catalogue-malformed"),
    ("upper-case digest", document(entry(digest="sha256:" + "A" * 64)), "catalogue-malformed"),
    ("digest that is a path", document(entry(digest="sha256:../../etc/passwd")), "catalogue-malformed"),
    ("another digest", document(entry(digest="sha512:" + "0" * 128)), "catalogue-malformed"),
    ("empty signer", document(entry(signer="")), "catalogue-malformed"),
    ("two signers", document(entry(signer=["a", "b"])), "catalogue-malformed"),
    ("unknown seal", document(entry(minimum_seal="none")), "catalogue-malformed"),
    ("entry version 0", document(entry(version=0)), "catalogue-malformed"),
    ("entry expiry 0", document(entry(expires_at_seconds=0)), "catalogue-malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "code"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_catalogue_is_refused(value: Any, code: str) -> None:
    assert code_of(lambda: decode_catalogue(payload(value))) == code


def seen_of(value: dict[str, Any]) -> Seen:
    return accept(payload(value), NOTHING_SEEN, now_seconds=NOW)[1]


NOT_CURRENT: list[tuple[str, Seen, dict[str, Any], int, str]] = [
    ("older", seen_of(document()), document(version=6), NOW, "catalogue-rollback"),
    ("much older", seen_of(document(version=2**53 - 1)), document(), NOW, "catalogue-rollback"),
    ("older and expired", seen_of(document()), document(version=6, expires_at_seconds=1), NOW, "catalogue-rollback"),
    ("same version with other content", seen_of(document()), document(entry()), NOW, "catalogue-equivocation"),
    ("same version with another expiry", seen_of(document()), document(expires_at_seconds=NOW + 101), NOW,
     "catalogue-equivocation"),
    ("newer with an older model", seen_of(document()), document(entry(version=2), version=8), NOW, "model-rollback"),
    ("older model after it was left out",
     accept(payload(document(entry("other"), version=8)), seen_of(document()), now_seconds=NOW)[1],
     document(entry(version=2), version=9), NOW, "model-rollback"),
    ("expired", NOTHING_SEEN, document(), NOW + 100, "catalogue-expired"),
    ("expired long ago", NOTHING_SEEN, document(expires_at_seconds=1), NOW, "catalogue-expired"),
    ("expired since it was seen", seen_of(document()), document(), NOW + 100, "catalogue-expired"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "value", "now", "code"), [row[1:] for row in NOT_CURRENT], ids=[row[0] for row in NOT_CURRENT]
)
def test_catalogue_that_is_not_current_is_refused(seen: Seen, value: dict[str, Any], now: int, code: str) -> None:
    assert code_of(lambda: accept(payload(value), seen, now_seconds=now)) == code


def test_same_catalogue_is_accepted_again() -> None:
    catalogue, seen = accept(payload(document()), NOTHING_SEEN, now_seconds=NOW)
    assert accept(payload(document()), seen, now_seconds=NOW) == (catalogue, seen)


def test_newer_catalogue_is_accepted_and_remembered() -> None:
    _, seen = accept(payload(document(entry(version=9), version=8)), seen_of(document()), now_seconds=NOW)
    assert (seen.version, seen.models) == (8, {"demo": 9, "other": 3})


def test_catalogue_of_nothing_permits_nothing() -> None:
    catalogue = decode_catalogue(payload(document(models=[])))
    assert code_of(lambda: catalogue.permits(MODEL, "sealed-memfd", now_seconds=NOW)) == "not-in-catalogue"


def test_written_catalogue_is_read() -> None:
    catalogue = decode_catalogue(payload(document()))
    assert decode_catalogue(encode_catalogue(catalogue)) == catalogue


# --- what it permits --------------------------------------------------------------------------------------------------


def catalogue_of(*entries: dict[str, Any], **values: Any) -> Catalogue:
    return decode_catalogue(payload(document(*entries, **values)))


def signed_by(*names: str) -> VerifiedModel:
    signers = tuple(Signer(name=name, fingerprint=Digest.of(name.encode())) for name in names)
    made = model("demo")
    return VerifiedModel(
        name=made.name,
        digest=made.digest,
        size_bytes=made.size_bytes,
        signer=signers[0],
        bundle_digest=made.bundle_digest,
        facts=made.facts,
        cosigners=signers[1:],
    )


NOT_PERMITTED: list[tuple[str, Catalogue, VerifiedModel, SealMode, int, str]] = [
    ("not listed", catalogue_of(entry("other")), MODEL, "sealed-memfd", NOW, "not-in-catalogue"),
    ("listed under another name", catalogue_of(entry("twin", digest=str(MODEL.digest))), MODEL, "sealed-memfd", NOW,
     "not-in-catalogue"),
    ("listed with a tag", catalogue_of(entry("demo:q4", digest=str(MODEL.digest))), MODEL, "sealed-memfd", NOW,
     "not-in-catalogue"),
    ("other bytes", catalogue_of(entry(digest=str(Digest.of(b"x")))), MODEL, "sealed-memfd", NOW, "catalogue-digest"),
    ("bytes of another entry", catalogue_of(entry(), entry("other")), model("demo", digest=Digest.of(b"other")),
     "sealed-memfd", NOW, "catalogue-digest"),
    ("another signer", catalogue_of(entry(signer="board")), MODEL, "sealed-memfd", NOW, "catalogue-signer"),
    ("another signer's longer name", catalogue_of(entry(signer="release-2")), MODEL, "sealed-memfd", NOW,
     "catalogue-signer"),
    ("cosigners, none of them the one", catalogue_of(), signed_by("a", "b"), "sealed-memfd", NOW, "catalogue-signer"),
    ("entry expired", catalogue_of(), MODEL, "sealed-memfd", NOW + 50, "catalogue-entry-expired"),
    ("catalogue expired", catalogue_of(entry(expires_at_seconds=NOW + 10**6)), MODEL, "sealed-memfd", NOW + 100,
     "catalogue-expired"),
    ("store where verity is asked", catalogue_of(entry(minimum_seal="verity")), MODEL, "ro-store", NOW,
     "seal-too-weak"),
    ("store where memory is asked", catalogue_of(entry(minimum_seal="sealed-memfd")), MODEL, "ro-store", NOW,
     "seal-too-weak"),
    ("verity where memory is asked", catalogue_of(entry(minimum_seal="sealed-memfd")), MODEL, "verity", NOW,
     "seal-too-weak"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("catalogue", "found", "seal", "now", "code"),
    [row[1:] for row in NOT_PERMITTED],
    ids=[row[0] for row in NOT_PERMITTED],
)
def test_model_that_is_not_permitted_is_refused(
    catalogue: Catalogue, found: VerifiedModel, seal: SealMode, now: int, code: str
) -> None:
    assert code_of(lambda: catalogue.permits(found, seal, now_seconds=now)) == code


@pytest.mark.parametrize("minimum", SEALS)
@pytest.mark.parametrize("seal", SEALS)
def test_stronger_seal_is_permitted(minimum: SealMode, seal: SealMode) -> None:
    catalogue = catalogue_of(entry(minimum_seal=minimum))
    if SEALS.index(seal) >= SEALS.index(minimum):
        catalogue.permits(MODEL, seal, now_seconds=NOW)
    else:
        assert code_of(lambda: catalogue.permits(MODEL, seal, now_seconds=NOW)) == "seal-too-weak"


def test_any_of_the_signers_may_be_the_listed_one() -> None:
    for names in (("release", "b"), ("a", "release"), ("a", "b", "release")):
        catalogue_of().permits(signed_by(*names), "ro-store", now_seconds=NOW)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), max_size=12))
def test_no_order_of_catalogues_ever_goes_back(offers: list[tuple[int, int]]) -> None:
    """Whatever is offered in whatever order: versions that were accepted never fall, of the whole or of a model."""
    seen, accepted = NOTHING_SEEN, []
    for version, model_version in offers:
        value = document(entry(version=model_version), version=version)
        try:
            catalogue, seen = accept(payload(value), seen, now_seconds=NOW)
        except Refused:
            continue
        accepted.append((catalogue.version, catalogue.models[0].version))
    assert accepted == sorted(accepted)
    assert [one for _, one in accepted] == sorted(one for _, one in accepted)


@given(st.data())
def test_mutated_catalogue_never_raises_anything_else(data: st.DataObject) -> None:
    mutant = bytearray(payload(document()))
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode_catalogue(bytes(mutant)).models[0], CatalogueEntry)
    except Refused as error:
        assert error.reason is Reason.MODEL_NOT_VERIFIED


def test_memory_stays_bounded_and_never_forgets_what_is_listed() -> None:
    seen = NOTHING_SEEN
    for version in range(1, 40):
        models = [entry(f"m{version if number else 0}-{number}", version=version) for number in range(MAX_MODELS)]
        _, seen = accept(payload(document(*models, version=version)), seen, now_seconds=NOW)
        assert seen.models["m0-0"] == version
        assert MAX_MODELS <= len(seen.models) <= MAX_REMEMBERED
    assert code_of(lambda: accept(payload(document(entry("m0-0", version=1), version=99)), seen, now_seconds=NOW)) == (
        "model-rollback"
    )
