"""Notes, verifier keys and checkpoints that must not be read."""

import pytest

from appliance.core.note import (
    Checkpoint,
    NoteInvalid,
    Signature,
    VerifierKey,
    find_signature,
    format_note,
    parse_checkpoint,
    parse_note,
    parse_vkey,
    valid_name,
)

KEY = VerifierKey(name="example.com/log", public_key=bytes(range(32)))
CHECKPOINT = Checkpoint(origin="example.com/log", size=70000, root=b"\x01" * 32)
SIGNATURE = Signature(name=KEY.name, key_id=KEY.key_id, signature=b"s" * 64)


def test_example_of_the_note_specification_parses() -> None:
    text = (
        "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n"
        "\u2014 quasimodo.example/salvatore "
        "NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
    )
    note = parse_note(text.encode())
    assert note.text.endswith("ed è subito sera.\n")
    assert note.signatures[0].name == "quasimodo.example/salvatore"
    assert note.signatures[0].key_id.hex() == "367ba04b"
    assert len(note.signatures[0].signature) == 64
    assert format_note(note.text, note.signatures) == text


def test_known_vkey_of_the_go_checksum_database() -> None:
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert str(parse_vkey(text)) == text
    assert parse_vkey(text + "\n").key_id.hex() == "033de0ae"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name+00000000",
        str(KEY).replace("+", "-"),
        str(KEY) + "\n\n",
        str(KEY) + "x",
        str(KEY).upper(),
        str(KEY).replace(KEY.key_id.hex(), "00000000"),
        str(KEY).replace("example", "exam ple"),
        "n+6bee19a1+AgAAAA==",
    ],
)
def test_malformed_vkey_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        parse_vkey(text)


def test_checkpoint_round_trip() -> None:
    note = parse_note(format_note(CHECKPOINT.text, (SIGNATURE,)).encode())
    assert parse_checkpoint(note.text) == CHECKPOINT
    assert find_signature(note, KEY) == b"s" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n",
        "o\n1\n",
        "\n1\n" + "AQEB" * 10 + "AQE=\n",
        CHECKPOINT.text.replace("70000", "070000"),
        CHECKPOINT.text.replace("70000", "-1"),
        CHECKPOINT.text.replace("70000", "7e4"),
        CHECKPOINT.text.replace("70000", "\u0667"),
        CHECKPOINT.text.replace("70000", "9" * 40),
        CHECKPOINT.text + "extension\n",
        CHECKPOINT.text[:-1],
        CHECKPOINT.text.replace("AQE=", "AQF="),  # the same bytes in another encoding
        CHECKPOINT.text.replace("AQE=", "AQ=="),
    ],
)
def test_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        parse_checkpoint(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\nno dash\n",
        "text\n\n\u2014 name AAAA\n".encode(),
        "text\n\n\u2014 name !!!!\n".encode(),
        "text\n\n\u2014 na+me AAAAAAAA\n".encode(),
        "text\n\n\u2014 name AAAAAAAA".encode(),
        "te\rxt\n\n\u2014 name AAAAAAAA\n".encode(),
        b"te\xffxt\n\n\xe2\x80\x94 name AAAAAAAA\n",
        b"x" * 70_000,
    ],
)
def test_malformed_note_is_refused(data: bytes) -> None:
    with pytest.raises(NoteInvalid):
        parse_note(data)


def test_signature_by_another_name_or_id_is_not_found() -> None:
    for other in (
        Signature(name="other", key_id=KEY.key_id, signature=b"s" * 64),
        Signature(name=KEY.name, key_id=b"0000", signature=b"s" * 64),
    ):
        assert find_signature(parse_note(format_note(CHECKPOINT.text, (other,)).encode()), KEY) is None


def test_two_signatures_by_one_key_are_refused() -> None:
    with pytest.raises(NoteInvalid, match="two signatures"):
        find_signature(parse_note(format_note(CHECKPOINT.text, (SIGNATURE, SIGNATURE)).encode()), KEY)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2003b"])
def test_name_with_space_or_plus_is_not_valid(name: str) -> None:
    assert not valid_name(name)
