"""Keys that were replaced never sign a catalogue again, and no keys come into force that the last did not name."""

import json
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.cli.main import main
from appliance.core.catalogue import CATALOGUE_TYPE
from appliance.core.catalogue_root import ROOT_TYPE, Root, RootKey, encode_root
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models import envelope
from appliance.models.catalogue import CatalogueKeeper, cosign_catalogue, sign_catalogue
from appliance.models.keys import key_fingerprint, private_pem, public_pem
from appliance.models.roots import sign_root
from tests.support.refusals import code_of
from tests.support.signed_models import spoiled

NOW = 1_800_000_000
A, B, C, D, E = (ec.generate_private_key(ec.SECP256R1()) for _ in range(5))
NAMES = {id(key): name for key, name in zip((A, B, C, D, E), "ABCDE", strict=True)}

Key = ec.EllipticCurvePrivateKey


def catalogue(version: int, *keys: Key, expires: int = NOW + 1000) -> bytes:
    listed = {"name": "demo", "version": 1, "digest": str(Digest.of(b"demo")), "signer": "acme",
              "minimum_seal": "ro-store", "expires_at_seconds": NOW + 1000}  # fmt: skip
    text = json.dumps({"version": version, "expires_at_seconds": expires, "models": [listed]})
    return sign_catalogue(text.encode(), keys)


def root(version: int, *keys: Key, required: int = 1, expires: int = NOW + 500) -> Root:
    named = tuple(RootKey(name=NAMES[id(key)], pem=public_pem(key.public_key()).decode()) for key in keys)
    return Root(version=version, expires_at_seconds=expires, required=required, keys=named)


def hand_over(version: int, to: tuple[Key, ...], by: tuple[Key, ...], **values: Any) -> bytes:
    return sign_root(root(version, *to, **values), [*by])


class Place:
    """An appliance whose operator trusts A."""

    def __init__(self, folder: Path) -> None:
        self.trust, self.store = folder / "trust", folder / "models"
        self.keys, self.roots = self.trust / "catalogue-keys", self.trust / "catalogue-roots"
        self.seen = self.store / "catalogue" / "seen.json"
        for directory in (self.trust, self.store, self.keys, self.roots):
            directory.mkdir(mode=0o700, parents=True)
        self.trusts(A)

    def trusts(self, *keys: Key) -> None:
        for path in self.keys.iterdir():
            path.unlink()
        for key in keys:
            (self.keys / f"{NAMES[id(key)]}.pem").write_bytes(public_pem(key.public_key()))

    def publish(self, *keys: Key, version: int = 1) -> None:
        (self.trust / "catalogue.json").write_bytes(catalogue(version, *keys))

    def put(self, version: int, made: bytes) -> None:
        (self.roots / f"{version}.json").write_bytes(made)

    def requires(self, count: int) -> None:
        (self.trust / "policy.toml").write_text(f"required_catalogue_signers = {count}\n")

    def current(self, now: int = NOW) -> tuple[int, int]:
        """The versions of the catalogue and of the root."""
        found, held = CatalogueKeeper(self.trust, self.store).in_force(now_seconds=now)
        assert found is not None
        return found.version, 0 if held is None else held.version


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- the operator's own hands: no root at all -------------------------------------------------------------------------


def test_operator_changes_the_key_by_hand_and_the_old_one_is_out(place: Place) -> None:
    """Beside it, then without it. The version never goes back, whoever signs."""
    place.publish(A, version=5)
    assert place.current() == (5, 0)
    place.trusts(A, B)
    assert place.current() == (5, 0)
    place.publish(B, version=4)
    assert code_of(place.current) == "catalogue-rollback"
    place.publish(B, version=6)
    assert place.current() == (6, 0)
    place.trusts(B)
    assert place.current() == (6, 0)
    for version in (5, 6, 7, 1000):
        place.publish(A, version=version)
        assert code_of(place.current) == "signer-unknown"
    place.publish(A, B, version=8)
    assert code_of(place.current) == "signer-unknown"


def test_other_content_under_the_seen_version_is_refused_from_the_new_key_too(place: Place) -> None:
    place.publish(A, version=5)
    place.current()
    place.trusts(A, B)
    (place.trust / "catalogue.json").write_bytes(catalogue(5, B, expires=NOW + 999))
    assert code_of(place.current) == "catalogue-equivocation"


# --- handing over -----------------------------------------------------------------------------------------------------


def test_keys_hand_over_step_by_step(place: Place) -> None:
    place.publish(A, version=3)
    assert place.current() == (3, 0)
    place.put(1, hand_over(1, to=(B,), by=(A, B)))
    assert code_of(place.current) == "signer-unknown"  # the catalogue is still signed by A
    place.publish(B, version=4)
    assert place.current() == (4, 1)
    place.put(2, hand_over(2, to=(C, D), by=(B, C, D), required=2))
    place.publish(C, D, version=5)
    assert place.current() == (5, 2)


def test_appliance_that_missed_some_steps_takes_them_all_at_once(place: Place) -> None:
    place.publish(A)
    place.current()
    place.put(1, hand_over(1, to=(B,), by=(A, B), expires=NOW - 10))  # an expired step on the way is no matter
    place.put(2, hand_over(2, to=(C,), by=(B, C)))
    place.put(3, hand_over(3, to=(D,), by=(C, D)))
    place.publish(D, version=2)
    assert place.current() == (2, 3)


def test_version_of_the_catalogue_never_goes_back_across_roots(place: Place) -> None:
    place.publish(A, version=9)
    place.current()
    place.put(1, hand_over(1, to=(B,), by=(A, B)))
    place.publish(B, version=8)
    assert code_of(place.current) == "catalogue-rollback"
    place.publish(B, version=10)
    assert place.current() == (10, 1)


STEPS: list[tuple[str, int, bytes, str]] = [
    ("by the old keys alone", 1, hand_over(1, to=(B,), by=(A,)), "signers-missing"),
    ("by the new keys alone", 1, hand_over(1, to=(B,), by=(B,)), "signers-missing"),
    ("by a stranger", 1, hand_over(1, to=(B,), by=(E,)), "signer-unknown"),
    ("by both and a stranger", 1, hand_over(1, to=(B,), by=(A, B, E)), "signer-unknown"),
    ("by too few of the new", 1, hand_over(1, to=(B, C), by=(A, B), required=2), "signers-missing"),
    ("by a key that is new and signs twice", 1,
     spoiled(hand_over(1, to=(B, C), by=(A, B), required=2), lambda e: e["signatures"].append(e["signatures"][1])),
     "signers-missing"),
    ("with one bad signature", 1,
     spoiled(hand_over(1, to=(B,), by=(A, B)), lambda e: e["signatures"][1].update(sig="AAAA")), "signature-invalid"),
    ("with swapped signatures", 1,
     spoiled(hand_over(1, to=(B,), by=(A, B)),
             lambda e: e["signatures"][0].update(sig=e["signatures"][1]["sig"])), "signature-invalid"),
    ("with another payload", 1,
     spoiled(hand_over(1, to=(B,), by=(A, B)),
             lambda e: e.update(payload=b64encode(encode_root(root(1, E))).decode())), "signature-invalid"),
    ("with another payload of the same keys", 1,
     spoiled(hand_over(1, to=(B,), by=(A, B)),
             lambda e: e.update(payload=b64encode(encode_root(root(1, B, expires=NOW + 10**6))).decode())),
     "signature-invalid"),
    ("that skips a version", 1, hand_over(2, to=(B,), by=(A, B)), "root-version"),
    ("of a far version", 1, hand_over(2**53 - 1, to=(B,), by=(A, B)), "root-version"),
    ("that is missing before another", 2, hand_over(2, to=(B,), by=(A, B)), "root-missing"),
    ("that is a catalogue", 1, catalogue(1, A), "payload-type"),
    ("signed as a catalogue", 1, envelope.sign(encode_root(root(1, B)), CATALOGUE_TYPE, [A, B]), "payload-type"),
    ("called a root and signed as a catalogue", 1,
     spoiled(envelope.sign(encode_root(root(1, B)), CATALOGUE_TYPE, [A, B]), lambda e: e.update(payloadType=ROOT_TYPE)),
     "signature-invalid"),
    ("that holds no root", 1, envelope.sign(b"{}", ROOT_TYPE, [A, B]), "root-malformed"),
    ("to what is no key", 1,
     envelope.sign(encode_root(Root(version=1, expires_at_seconds=NOW + 9, required=1,
                                    keys=(RootKey(name="B", pem="no key"),))), ROOT_TYPE, [A]), "root-malformed"),
    ("to one key under two names", 1,
     envelope.sign(encode_root(Root(version=1, expires_at_seconds=NOW + 9, required=2,
                                    keys=tuple(RootKey(name=name, pem=public_pem(B.public_key()).decode())
                                               for name in ("b1", "b2")))), ROOT_TYPE, [A, B]), "root-malformed"),
    ("that is empty", 1, b"", "catalogue-malformed"),
    ("that is too large", 1, hand_over(1, to=(B,), by=(A, B)) + b" " * 2**20, "larger"),
]  # fmt: skip


@pytest.mark.parametrize(("version", "made", "code"), [row[1:] for row in STEPS], ids=[row[0] for row in STEPS])
def test_step_is_refused_and_leaves_the_last_keys_in_force(place: Place, version: int, made: bytes, code: str) -> None:
    place.publish(A)
    place.current()
    place.put(version, made)
    for keys in ((A,), (B,), (A, B)):
        place.publish(*keys, version=2)
        if code == "larger":
            with pytest.raises(Fault, match=code):
                place.current()
        else:
            assert code_of(place.current) == code
    (place.roots / f"{version}.json").unlink()
    place.publish(A, version=2)
    assert place.current() == (2, 0)


def test_no_changed_byte_of_a_step_changes_what_it_says(place: Place) -> None:
    good = hand_over(1, to=(B,), by=(A, B))
    place.publish(B)
    for position in range(0, len(good), 3):
        mutant = bytearray(good)
        mutant[position] ^= 0x01
        place.put(1, bytes(mutant))
        try:
            assert place.current() == (1, 1)
        except (Refused, Fault):
            continue
        (place.store / "catalogue" / "seen.json").unlink()


# --- what was replaced does not come back -----------------------------------------------------------------------------


@pytest.fixture
def moved(place: Place) -> Place:
    """A handed over to B, and B to C."""
    place.put(1, hand_over(1, to=(B,), by=(A, B)))
    place.put(2, hand_over(2, to=(C,), by=(B, C)))
    place.publish(C, version=7)
    assert place.current() == (7, 2)
    return place


@pytest.mark.parametrize("key", [A, B], ids="AB")
def test_replaced_key_signs_no_catalogue_whatever_becomes_of_the_files(moved: Place, key: Key) -> None:
    kept = {path: path.read_bytes() for path in moved.roots.iterdir()}
    for forget in (None, 2, 1):
        if forget is not None:
            (moved.roots / f"{forget}.json").unlink()
        for keys in ((key,), (key, C)):
            moved.publish(*keys, version=8)
            assert code_of(moved.current) == ("signer-unknown" if forget is None else "root-rollback")
    moved.roots.rmdir()
    for one in (key, C):
        moved.publish(one, version=8)
        assert code_of(moved.current) == "root-rollback"
    moved.roots.mkdir(mode=0o700)
    for path, made in kept.items():
        path.write_bytes(made)
    assert moved.current() == (8, 2)


def test_what_is_remembered_puts_no_key_in_force(moved: Place) -> None:
    """The warden may write it; with the operator's files as they are, the most it does is to refuse."""
    text = json.loads(moved.seen.read_bytes())
    (anchor,) = text["roots"]
    strangers = json.loads(encode_root(root(2, E)))
    for planted in (
        {"version": 2, "digest": str(Digest.of(encode_root(root(2, E))))},
        {"version": 3, "digest": str(Digest.of(encode_root(root(3, E))))},
        strangers,
        strangers | {"digest": text["roots"][anchor]["digest"]},
    ):
        moved.seen.unlink()
        moved.seen.write_text(json.dumps(text | {"roots": {anchor: planted}}))
        moved.seen.chmod(0o444)
        for key in (E, A, B, C):
            moved.publish(key, version=9)
            with pytest.raises((Refused, Fault)):
                moved.current()
    moved.seen.unlink()
    moved.publish(E, version=9)
    assert code_of(moved.current) == "signer-unknown"


@pytest.mark.parametrize("by", [(A, E), (B, E)], ids=["the operator's first", "the last but one"])
def test_replaced_key_hands_over_to_nobody(moved: Place, by: tuple[Key, ...]) -> None:
    """A thief of an old key makes the next root, or another one in place of an old."""
    moved.publish(E, version=8)
    kept = {version: (moved.roots / f"{version}.json").read_bytes() for version in (1, 2)}
    for version in (1, 2, 3):
        moved.put(version, hand_over(version, to=(E,), by=by))
        assert code_of(moved.current) in {"signer-unknown", "root-equivocation"}
        (moved.roots / f"{version}.json").unlink()
        if version in kept:
            moved.put(version, kept[version])
    moved.publish(C, version=8)
    assert moved.current() == (8, 2)


def test_another_succession_that_is_as_well_signed_is_refused(moved: Place) -> None:
    """Thieves of the operator's first key make one of their own, as long as the one that was seen, and longer."""
    moved.put(1, hand_over(1, to=(E,), by=(A, E)))
    moved.publish(E, version=8)
    (moved.roots / "2.json").unlink()
    assert code_of(moved.current) == "root-rollback"
    for version in (2, 3):
        moved.put(version, hand_over(version, to=(E,), by=(E,)))
        assert code_of(moved.current) == "root-equivocation"


def test_step_that_was_taken_is_not_taken_again_under_another_number(moved: Place) -> None:
    moved.put(3, (moved.roots / "1.json").read_bytes())
    assert code_of(moved.current) == "root-version"


def test_root_is_remembered_even_where_the_catalogue_is_refused(place: Place) -> None:
    place.publish(A)
    place.current()
    place.put(1, hand_over(1, to=(B,), by=(A, B)))
    assert code_of(place.current) == "signer-unknown"
    (place.roots / "1.json").unlink()
    place.publish(A, version=2)
    assert code_of(place.current) == "root-rollback"


@pytest.mark.parametrize("step", ["fsync", "rename", "write", "fchmod"])
def test_root_that_cannot_be_remembered_is_not_relied_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place.publish(A)
    place.current()
    place.put(1, hand_over(1, to=(B,), by=(A, B)))
    place.publish(B, version=2)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(Fault):
            place.current()
    assert place.current() == (2, 1)


def test_expired_root_signs_nothing_but_its_successor(moved: Place) -> None:
    late = NOW + 500
    assert code_of(lambda: moved.current(late)) == "root-expired"
    moved.put(3, hand_over(3, to=(D,), by=(C, D), expires=late))
    moved.publish(D, version=8)
    assert code_of(lambda: moved.current(late)) == "root-expired"
    moved.put(4, hand_over(4, to=(D,), by=(D,), expires=late + 500))
    assert moved.current(late) == (8, 4)


def test_withheld_root_holds_up_the_catalogue_of_its_keys(moved: Place) -> None:
    """Mix and match: the catalogue of the next keys, and not the root that names them."""
    moved.publish(D, version=8)
    assert code_of(moved.current) == "signer-unknown"


def test_revoked_key_neither_hands_over_nor_takes_over(place: Place) -> None:
    place.publish(A)
    place.current()
    for revoked in (A, B):
        (place.trust / "revoked.txt").write_text(f"{key_fingerprint(revoked.public_key())}\n")
        place.put(1, hand_over(1, to=(B,), by=(A, B)))
        assert code_of(place.current) == "signer-revoked"
    (place.trust / "revoked.txt").write_text(f"{key_fingerprint(A.public_key())}\n")
    place.trusts(A, D)
    place.put(1, hand_over(1, to=(B,), by=(D, B)))  # those who are left do it
    place.publish(B, version=2)
    assert place.current() == (2, 1)


def test_key_that_handed_over_is_revoked_after_beginning_anew(moved: Place) -> None:
    """As docs/models.md says: without that, the succession has a revoked signature in it."""
    (moved.trust / "revoked.txt").write_text(f"{key_fingerprint(A.public_key())}\n")
    assert code_of(moved.current) == "signer-revoked"
    for path in moved.roots.iterdir():
        path.unlink()
    moved.trusts(C)
    assert moved.current() == (7, 0)


def test_operator_gives_the_catalogue_up_on_purpose(moved: Place) -> None:
    for path in (*moved.keys.iterdir(), *moved.roots.iterdir(), moved.trust / "catalogue.json"):
        path.unlink()
    moved.keys.rmdir()
    moved.roots.rmdir()
    assert code_of(moved.current) == "catalogue-missing"
    moved.seen.unlink()
    assert CatalogueKeeper(moved.trust, moved.store).current(now_seconds=NOW) is None


# --- k of n -----------------------------------------------------------------------------------------------------------


def test_two_of_three_hand_over_to_two_of_three(place: Place) -> None:
    place.trusts(A, B, C)
    place.requires(2)
    place.publish(A, B)
    assert place.current() == (1, 0)
    for by, code in (((A, D), "signers-missing"), ((A, D, E), "signers-missing"), ((A, B, D), "signers-missing")):
        place.put(1, hand_over(1, to=(C, D, E), by=by, required=2))
        assert code_of(place.current) == code
    place.put(1, hand_over(1, to=(C, D, E), by=(A, C, D), required=2))  # C counts on both sides
    place.publish(D, E, version=2)
    assert place.current() == (2, 1)
    place.publish(D, version=3)
    assert code_of(place.current) == "signers-missing"


def test_roots_minimum_and_the_operators_both_hold(place: Place) -> None:
    place.put(1, hand_over(1, to=(B, C), by=(A, B, C), required=2))
    place.publish(B, version=2)
    assert code_of(place.current) == "signers-missing"
    place.publish(B, C, version=2)
    assert place.current() == (2, 1)
    place.put(2, hand_over(2, to=(D,), by=(B, C, D)))
    place.publish(D, version=3)
    assert place.current() == (3, 2)
    place.requires(2)
    assert code_of(place.current) == "signers-missing"


# --- the operator's word is the first ---------------------------------------------------------------------------------


def test_other_keys_of_the_operator_begin_anew(moved: Place) -> None:
    moved.trusts(E)
    moved.publish(E, version=8)
    assert code_of(moved.current) == "signer-unknown"  # the roots lie there, and E signed none
    for path in moved.roots.iterdir():
        path.unlink()
    assert moved.current() == (8, 0)
    moved.publish(C, version=9)
    assert code_of(moved.current) == "signer-unknown"
    moved.publish(E, version=7)
    assert code_of(moved.current) == "catalogue-rollback"


def test_operators_former_keys_come_back_to_where_they_had_handed_over(moved: Place) -> None:
    kept = {version: (moved.roots / f"{version}.json").read_bytes() for version in (1, 2)}
    for path in moved.roots.iterdir():
        path.unlink()
    moved.trusts(E)
    moved.publish(E, version=8)
    assert moved.current() == (8, 0)
    moved.trusts(A)
    moved.publish(A, version=9)
    assert code_of(moved.current) == "root-rollback"
    for version, made in kept.items():
        moved.put(version, made)
    assert code_of(moved.current) == "signer-unknown"
    moved.publish(C, version=9)
    assert moved.current() == (9, 2)


def test_keys_that_are_gone_do_not_turn_the_catalogue_off_after_a_handing_over(moved: Place) -> None:
    moved.trusts()
    assert code_of(moved.current) == "signer-unknown"
    moved.keys.rmdir()
    assert code_of(moved.current) == "catalogue-missing"


@pytest.mark.parametrize("spoil", ["directory", "file"])
def test_roots_that_others_can_write_are_a_fault(moved: Place, spoil: str) -> None:
    moved.put(3, hand_over(3, to=(D,), by=(C, D)))
    (moved.roots if spoil == "directory" else moved.roots / "3.json").chmod(0o777)
    with pytest.raises(Fault, match=r"can be written by .*: chmod go-w /"):
        moved.current()


# --- on the command line ----------------------------------------------------------------------------------------------


def test_keys_are_handed_over_on_the_command_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.trust.parent
    settings = folder / "paddock.toml"
    settings.write_text(f'state_dir = "{folder}"\nruntime_dir = "{folder / "run"}"\n')
    for name, key in (("a", A), ("b", B)):
        (folder / f"{name}.key").write_bytes(private_pem(key))
        (folder / f"{name}.pem").write_bytes(public_pem(key.public_key()))

    half, whole = folder / "half.json", place.roots / "1.json"
    assert paddock("root", half, "--version", 1, "--trust", folder / "b.pem", "--key", folder / "a.key") == 0
    assert paddock("cosign", half, whole, "--key", folder / "b.key") == 0
    document = json.loads(catalogue(1, B))
    assert document["payloadType"] == CATALOGUE_TYPE
    (place.trust / "catalogue.json").write_bytes(catalogue(1, B, expires=2**40))
    capsys.readouterr()
    assert paddock("show", "--config", settings) == 0
    assert "signed under root 1 (1 of b), for" in capsys.readouterr().out
    assert paddock("root", half, "--version", 2, "--trust", folder / "a.pem", "--key", folder / "b.key") == 1
    assert "exists" in capsys.readouterr().err
    assert paddock("root", folder / "x", "--version", 2, "--trust", folder / "a.pem", "--required", 2, "--key",
                   folder / "b.key") == 1  # fmt: skip
    assert not (folder / "x").exists()


def paddock(*words: object) -> int:
    return main(["models", "catalogue", *map(str, words)])


def test_root_publishes_no_private_key_that_stands_beside_the_public_one(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_bytes(private_pem(A))
    (tmp_path / "b.key").write_bytes(private_pem(B))
    (tmp_path / "b.pem").write_bytes(public_pem(B.public_key()) + private_pem(B))
    keys = ("--key", tmp_path / "a.key", "--key", tmp_path / "b.key")
    assert paddock("root", tmp_path / "1.json", "--version", 1, "--trust", tmp_path / "b.pem", *keys) == 0
    payload = b64decode(json.loads((tmp_path / "1.json").read_bytes())["payload"])
    assert b"PRIVATE" not in payload
    assert json.loads(payload)["keys"] == [{"name": "b", "pem": public_pem(B.public_key()).decode()}]


@pytest.mark.parametrize("pem", [
    (public_pem(B.public_key()) + private_pem(B)).decode(), (private_pem(B) + public_pem(B.public_key())).decode(),
    f"of B\n{public_pem(B.public_key()).decode()}", public_pem(B.public_key()).decode().rstrip(),
])  # fmt: skip
def test_root_with_more_than_a_public_key_is_neither_made_nor_taken(place: Place, pem: str) -> None:
    more = Root(version=1, expires_at_seconds=NOW + 9, required=1, keys=(RootKey(name="B", pem=pem),))
    assert code_of(lambda: sign_root(more, [A, B])) == "root-malformed"
    place.put(1, envelope.sign(encode_root(more), ROOT_TYPE, [A, B]))
    place.publish(B)
    assert code_of(place.current) == "root-malformed"


@pytest.mark.parametrize("days", ["0", "-1", "0.5", "many"])
def test_root_that_has_expired_already_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    (tmp_path / "a.key").write_bytes(private_pem(A))
    (tmp_path / "a.pem").write_bytes(public_pem(A.public_key()))
    with pytest.raises(SystemExit, match="2"):
        paddock("root", tmp_path / "1.json", "--version", 1, f"--days={days}", "--trust", tmp_path / "a.pem",
                "--key", tmp_path / "a.key")  # fmt: skip
    assert f"{days} is not a whole number, 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "1.json").exists()


def test_cosigning_takes_what_would_be_accepted_alone() -> None:
    with pytest.raises(Refused, match="root-malformed"):
        cosign_catalogue(envelope.sign(b"{}", ROOT_TYPE, [A]), B)
    with pytest.raises(Refused, match="payload-type"):
        cosign_catalogue(envelope.sign(b"{}", "text/plain", [A]), B)
