"""Proofs for single entries, and those that must not verify."""

from pathlib import Path

import pytest

from appliance.audit.proof import check_proof, make_proof
from appliance.audit.reading import LogBroken
from appliance.audit.signatures import CheckpointInvalid, KeyUnknown
from appliance.core.note import parse_vkey
from appliance.core.records import decode_entry
from appliance.core.tree import ProofInvalid
from appliance.notary.checkpoint import verifier_key
from tests.support.audit_log import ORIGIN, OTHER_KEY, VKEY, make_log
from tests.support.audit_records import small

KEY = parse_vkey(VKEY)


def test_every_entry_has_a_proof_of_at_most_two_kilobytes(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(1299)])
    for index in (0, 1, 254, 255, 256, 700, 1023, 1024, 1279, 1280, 1298, 1299):
        entry, text = make_proof(log, index, KEY)
        assert decode_entry(entry).seq == index
        assert check_proof(text, entry, KEY) == index
        assert len(text) <= 2048


def test_changed_proof_does_not_verify(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(9)])
    entry, text = make_proof(log, 4, KEY)
    refusals = (ProofInvalid, CheckpointInvalid, KeyUnknown)
    for position in range(len(text)):
        changed = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
        with pytest.raises(refusals):
            check_proof(changed, entry, KEY)
    with pytest.raises(ProofInvalid):
        check_proof(text, entry + b" ", KEY)
    with pytest.raises(KeyUnknown):
        check_proof(text, entry, verifier_key(ORIGIN, OTHER_KEY))
    for junk in (
        "",
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v1\nindex -1\n\n",
        text.replace("index 4", "index 04"),
    ):
        with pytest.raises(refusals):
            check_proof(junk, entry, KEY)


def test_entry_that_is_not_signed_has_no_proof(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(1)])
    with pytest.raises(LogBroken, match="not among the 2"):
        make_proof(log, 2, KEY)
    with pytest.raises(LogBroken):
        make_proof(tmp_path / "nowhere", 0, KEY)


def test_log_with_a_false_tile_has_no_proof(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(9)])
    tile = log / "tile/0/000.p/10"
    data = bytearray(tile.read_bytes())
    data[0] ^= 1
    tile.write_bytes(data)
    with pytest.raises(ProofInvalid):
        make_proof(log, 4, KEY)
