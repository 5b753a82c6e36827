"""No record is read that is not exactly one of ours, and none has a place for a prompt, an answer or a token."""

import inspect
import json
from typing import Any, get_args

import msgspec
import pytest

from appliance.core import records
from appliance.core.records import (
    Entry,
    Record,
    decode_entry,
    encode_entry,
    encode_entry_around,
    encode_record,
    read_record,
)
from appliance.core.values import Value
from tests.support.audit_records import ADAPTED, THROUGH, closed, model_loaded, opened, policy_loaded, small


def entry(record: Record, seq: int = 3) -> Entry:
    return Entry(v=1, seq=seq, time="2026-09-01T00:00:00.000Z", boot_id="b", monotonic_ms=5, record=record)


SAMPLES = [
    model_loaded(model=ADAPTED),
    opened("r-1"),
    opened("r-1", actor=THROUGH),
    closed("r-1"),
    policy_loaded(),
    model_loaded(),
    small(60),
    records.LogClosed(),
]


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_entry_comes_back_as_it_was(record: Record) -> None:
    data = encode_entry(entry(record))
    assert decode_entry(data) == entry(record)
    assert encode_entry(decode_entry(data)) == data


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_bytes_are_canonical(record: Record) -> None:
    """RFC 8785 for integers and plain text: keys sorted, no spaces, and no number that is not an integer."""
    data = encode_entry(entry(record))
    document = json.loads(data, parse_float=lambda text: pytest.fail(f"a float: {text}"))
    assert data == json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_entry_around_an_encoded_record_has_the_bytes_of_the_entry(record: Record) -> None:
    whole, data = entry(record), encode_record(record)
    assert read_record(data) == record
    around = encode_entry_around(
        data, seq=whole.seq, time=whole.time, boot_id=whole.boot_id, monotonic_ms=whole.monotonic_ms
    )
    assert around == encode_entry(whole)


def test_record_without_companions_has_the_bytes_that_it_had_before_there_were_any() -> None:
    assert b"companions" not in encode_entry(entry(opened("r-1")))
    assert b"companions" not in encode_entry(entry(model_loaded()))


def test_record_of_one_for_whom_nobody_acts_has_the_bytes_that_it_had_before_anybody_could() -> None:
    assert b"acting" not in encode_entry(entry(opened("r-1")))
    [service, behind] = json.loads(encode_entry(entry(opened("r-1", actor=THROUGH))))["record"]["actor"]["acting"]
    assert (service["subject"], service["token_id"]) == ("webui", "s")
    assert behind == {"issuer": "https://issuer.test", "subject": "behind"}


@pytest.mark.parametrize("text", ["\n", "\r\n", "\x1b[31m", "\x00", '"', "\\"])
def test_hostile_text_stays_inside_its_line(text: str) -> None:
    data = encode_entry(entry(opened("r-1", route=f"a{text}b")))
    assert b"\n" not in data
    assert b"\r" not in data
    assert b"\x1b" not in data
    assert decode_entry(data).record.route == f"a{text}b"  # type: ignore[union-attr]


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(encode_entry(entry(closed("r-1"))))
    return document


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": "1"},
        {"seq": "3"},
        {"seq": 1.5},
        {"extra": 1},
        {"record": {"event": "closed"}},
        {"record": {"event": "unknown"}},
        {"record": {}},
        {"record": None},
        {"record": []},
        {"record": {"event": "log-closed", "more": 1}},
        {"record": {"event": "model-refused", "name": "a", "digest": "sha256:short", "reason": "", "detail": ""}},
    ],
    ids=str,
)
def test_other_documents_are_not_entries(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_entry(json.dumps(_document() | change).encode())


@pytest.mark.parametrize("missing", ["v", "seq", "time", "boot_id", "monotonic_ms", "record"])
def test_entry_with_a_field_missing_is_refused(missing: str) -> None:
    document = _document()
    del document[missing]
    with pytest.raises(msgspec.DecodeError):
        decode_entry(json.dumps(document).encode())


def test_union_holds_every_kind_of_record_once() -> None:
    kinds = {
        kind
        for _name, kind in inspect.getmembers(records, inspect.isclass)
        if issubclass(kind, Value) and kind.__struct_config__.tag_field == "event"
    }
    assert set(get_args(Record)) == kinds
    tags = [kind.__struct_config__.tag for kind in kinds]
    assert len(set(tags)) == len(tags)


def test_no_record_has_a_place_for_a_prompt_an_answer_or_a_token() -> None:
    for kind in get_args(Record):
        names = {field.name for field in msgspec.structs.fields(kind)}
        assert not names & {"prompt", "messages", "content", "text", "answer", "completion", "token", "authorization"}
