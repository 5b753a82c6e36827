"""No bytes are accepted as JSON that two parsers could read differently."""

import json
import math
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.strict_json import JsonInvalid, check
from tests.support.public_vectors import vectors_folder


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(JsonInvalid) as caught:
        check(data, **limits)
    return str(caught.value)


REFUSED = [
    ("byte-order mark", b"\xef\xbb\xbf{}", "not JSON"),
    ("UTF-16", '{"a":1}'.encode("utf-16"), "not UTF-8"),
    ("invalid UTF-8", b'"\xff"', "not UTF-8"),
    ("overlong UTF-8", b'"\xc0\x80"', "not UTF-8"),
    ("surrogate as UTF-8", b'"\xed\xa0\x80"', "not UTF-8"),
    ("lone high surrogate", b'"\\ud800"', "a lone surrogate"),
    ("lone low surrogate", b'["\\udfff"]', "a lone surrogate"),
    ("surrogates in the wrong order", b'"\\udc00\\ud800"', "a lone surrogate"),
    ("lone surrogate as a key", b'{"a":{"\\ud800":1}}', "a lone surrogate"),
    ("two keys", b'{"a":1,"a":2}', "a key occurs twice"),
    ("two keys, one escaped", b'{"model":1,"\\u006dodel":2}', "a key occurs twice"),
    ("two keys, escaped twice", b'{"\\u0061":1,"\\u0061":1}', "a key occurs twice"),
    ("two keys far below", b'[[[{"x":[{"a":1,"b":2,"a":3}]}]]]', "a key occurs twice"),
    ("two empty keys", b'{"":1,"":2}', "a key occurs twice"),
    ("two keys with an escaped slash", b'{"/":1,"\\/":2}', "a key occurs twice"),
    ("NaN", b"[NaN]", "NaN and Infinity are not JSON"),
    ("Infinity", b'{"a":Infinity}', "NaN and Infinity are not JSON"),
    ("negative Infinity", b"-Infinity", "NaN and Infinity are not JSON"),
    ("too large for a double", b"1e400", "a number too large for a double"),
    ("too small for a double", b"-1e400", "a number too large for a double"),
    ("65 bits", b"18446744073709551616", "an integer of more than 64 bits"),
    ("65 bits below zero", b"-9223372036854775809", "an integer of more than 64 bits"),
    ("a million digits", b"9" * 1_000_000, "an integer of more than 64 bits"),
    ("a long fraction", b"0." + b"1" * 63, "a number of more than 64 characters"),
    ("trailing bytes", b"{} x", "not JSON"),
    ("two values", b"{}{}", "not JSON"),
    ("trailing comma", b"[1,]", "not JSON"),
    ("comment", b"{}//", "not JSON"),
    ("single quotes", b"{'a':1}", "not JSON"),
    ("leading zero", b"01", "not JSON"),
    ("plus", b"+1", "not JSON"),
    ("bare point", b".5", "not JSON"),
    ("hexadecimal", b"0x10", "not JSON"),
    ("digits of another script", "\u0661".encode(), "not JSON"),
    ("line break in a text", b'"\n"', "not JSON"),
    ("NUL in a text", b'"\x00"', "not JSON"),
    ("NUL after", b"{}\x00", "not JSON"),
    ("other white space", "\u00a0{}".encode(), "not JSON"),
    ("form feed", b"\x0c{}", "not JSON"),
    ("empty", b"", "not JSON"),
    ("unterminated", b'{"a":"', "not JSON"),
    ("33 lists", b"[" * 33 + b"]" * 33, "nested deeper than 32"),
    ("33 objects", b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32"),
    ("a million lists that never end", b"[" * 1_000_000, "nested deeper than 32"),
    ("depth after a text with quotes", b'["\\"",' + b"[" * 32, "nested deeper than 32"),
    ("depth after a text with brackets", b'["]]]]",' + b"[" * 32, "nested deeper than 32"),
    ("10,001 items", b"[" + b"1," * 10_000 + b"1]", "more than 10000 items"),
    ("2,001 keys", json.dumps({str(n): n for n in range(2001)}).encode(), "more than 2000 keys"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_ambiguous_json_is_refused(data: bytes, why: str) -> None:
    assert refusal(data) == why


ACCEPTED = [
    ("pair of surrogates", b'"\\ud83d\\ude00"', "😀"),
    ("beyond the basic plane", '"😀"'.encode(), "😀"),
    ("escaped NUL", b'"\\u0000"', "\x00"),
    ("greatest", b"18446744073709551615", 2**64 - 1),
    ("least", b"-9223372036854775808", -(2**63)),
    ("minus zero", b"-0", 0),
    ("smallest double", b"5e-324", 5e-324),
    ("underflow", b"1e-400", 0.0),
    ("greatest double", b"1.7976931348623157e308", 1.7976931348623157e308),
    ("longest number", b"0." + b"1" * 62, 0.1111111111111111),
    ("32 lists", b"[" * 32 + b"]" * 32, None),
    ("many brackets in a text", b'["' + b"[{" * 500 + b'"]', None),
    ("quotes and backslashes in a text", rb'["\\","\"[","\\\"[[["]', ["\\", '"[', '\\"[[[']),
    ("same key in two objects", b'[{"a":1},{"a":{"a":2}}]', None),
    ("keys that differ in case", b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    ("keys that differ in normalisation", '{"é":1,"e\u0301":2}'.encode(), None),
    ("white space", b" \t\r\n{} \t\r\n", {}),
    ("10,000 items", b"[" + b"1," * 9_999 + b"1]", None),
    ("2,000 keys", json.dumps({str(n): n for n in range(2000)}).encode(), None),
]  # fmt: skip


@pytest.mark.parametrize(("data", "value"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_plain_json_is_not_refused(data: bytes, value: Any) -> None:
    assert check(data) == (json.loads(data) if value is None else value)


def test_limits_are_the_callers() -> None:
    assert refusal(b"[[1]]", max_depth=1) == "nested deeper than 1"
    assert refusal(b"[1,2]", max_items=1) == "more than 1 items"
    assert refusal(b'{"a":1,"b":2}', max_keys=1) == "more than 1 keys"


@pytest.mark.parametrize(
    "data",
    [
        b'"' + b'\\"' * 120_000,  # was quadratic: a pattern that failed at each quote; 40 kB took seven seconds
        b'"' * 240_001,
        b'"' + b"\\" * 240_001,
        b"[" * 240_000,
        b'[""' + b',""' * 9_000,
        b"-" * 240_000,
        b"{" + b'"a":{' * 40_000,
        b"[" + b"1" * 240_000,
        b"\\" * 240_000,
    ],
    ids=lambda data: repr(data[:6]),
)
def test_work_is_linear_in_the_size(data: bytes) -> None:
    started = time.process_time()
    refusal(data)
    assert time.process_time() - started < 2.0


def test_reason_never_repeats_the_senders_bytes() -> None:
    for _name, data, _why in REFUSED:
        assert len(refusal(data)) < 60


# --- JSONTestSuite --------------------------------------------------------------------------------------------------

OUR_EXTRA_RULES = {
    "y_object_duplicated_key.json": "a key occurs twice",
    "y_object_duplicated_key_and_value.json": "a key occurs twice",
    "y_number_double_close_to_zero.json": "a number of more than 64 characters",
}
"""What RFC 8259 permits and we refuse: RFC 7493 section 2.3 forbids the first two; the last has 80 digits of zeros."""


def _suite(kind: str) -> list[tuple[str, bytes]]:
    folder = vectors_folder("json") / "test_parsing"
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob(f"{kind}_*.json"))]


def test_every_valid_text_of_the_suite_is_accepted_or_breaks_a_rule_of_ours() -> None:
    suite = _suite("y")
    assert len(suite) == 95
    refused = {}
    for name, data in suite:
        try:
            assert check(data) == json.loads(data), name
        except JsonInvalid as invalid:
            refused[name] = str(invalid)
    assert refused == OUR_EXTRA_RULES


def test_every_invalid_text_of_the_suite_is_refused() -> None:
    suite = _suite("n")
    assert len(suite) == 188
    for name, data in suite:
        try:
            check(data)
        except JsonInvalid:
            continue
        pytest.fail(f"{name} was accepted")


LONE, UTF_8, BITS = "a lone surrogate", "not UTF-8", "an integer of more than 64 bits"
DOUBLE = "a number too large for a double"
DECIDED: dict[str, str | list[float]] = {
    "i_number_double_huge_neg_exp.json": [0.0],
    "i_number_huge_exp.json": "a number of more than 64 characters",
    "i_number_neg_int_huge_exp.json": DOUBLE,
    "i_number_pos_double_huge_exp.json": DOUBLE,
    "i_number_real_neg_overflow.json": DOUBLE,
    "i_number_real_pos_overflow.json": DOUBLE,
    "i_number_real_underflow.json": [0.0],
    "i_number_too_big_neg_int.json": BITS,
    "i_number_too_big_pos_int.json": BITS,
    "i_number_very_big_negative_int.json": BITS,
    "i_object_key_lone_2nd_surrogate.json": LONE,
    "i_string_1st_surrogate_but_2nd_missing.json": LONE,
    "i_string_1st_valid_surrogate_2nd_invalid.json": LONE,
    "i_string_UTF-16LE_with_BOM.json": UTF_8,
    "i_string_UTF-8_invalid_sequence.json": UTF_8,
    "i_string_UTF8_surrogate_U+D800.json": UTF_8,
    "i_string_incomplete_surrogate_and_escape_valid.json": LONE,
    "i_string_incomplete_surrogate_pair.json": LONE,
    "i_string_incomplete_surrogates_escape_valid.json": LONE,
    "i_string_invalid_lonely_surrogate.json": LONE,
    "i_string_invalid_surrogate.json": LONE,
    "i_string_invalid_utf-8.json": UTF_8,
    "i_string_inverted_surrogates_U+1D11E.json": LONE,
    "i_string_iso_latin_1.json": UTF_8,
    "i_string_lone_second_surrogate.json": LONE,
    "i_string_lone_utf8_continuation_byte.json": UTF_8,
    "i_string_not_in_unicode_range.json": UTF_8,
    "i_string_overlong_sequence_2_bytes.json": UTF_8,
    "i_string_overlong_sequence_6_bytes.json": UTF_8,
    "i_string_overlong_sequence_6_bytes_null.json": UTF_8,
    "i_string_truncated-utf-8.json": UTF_8,
    "i_string_utf16BE_no_BOM.json": UTF_8,
    "i_string_utf16LE_no_BOM.json": UTF_8,
    "i_structure_500_nested_arrays.json": "nested deeper than 32",
    "i_structure_UTF-8_BOM_empty_object.json": "not JSON",
}
"""What RFC 8259 leaves open: the value of the two that we take, or why not. Those are too small to be more than zero,
and every parser reads them so."""


def test_every_text_that_the_suite_leaves_open_is_decided() -> None:
    found: dict[str, Any] = {}
    for name, data in _suite("i"):
        try:
            found[name] = check(data)
        except JsonInvalid as invalid:
            found[name] = str(invalid)
    assert found == DECIDED


# --- any bytes ------------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_what_a_plain_writer_writes_is_accepted_and_unchanged(value: Any, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert check(data, max_depth=99) == value


def _keeps_our_rules(value: Any) -> bool:
    match value:
        case str():
            return not any("\ud800" <= character <= "\udfff" for character in value)
        case bool() | None:
            return True
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case list():
            return all(_keeps_our_rules(item) for item in value)
    return all(_keeps_our_rules(key) and _keeps_our_rules(item) for key, item in value.items())


_PIECES = st.sampled_from(
    [
        *'{}[]:,"\\0123456789-+.eE \n',
        '"a":',
        '"a"',
        "\\u0061",
        "\\ud800",
        "NaN",
        "Infinity",
        "true",
        "null",
        "1e999",
        "é",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_PIECES, max_size=25).map("".join).map(str.encode) | st.binary(max_size=40))
def test_what_is_accepted_is_what_a_lenient_parser_reads_and_keeps_our_rules(data: bytes) -> None:
    """And nothing is ever raised but ``JsonInvalid``; msgspec, which decodes the same bytes next, agrees."""
    try:
        value = check(data)
    except JsonInvalid:
        return
    assert value == json.loads(data)
    assert _keeps_our_rules(value)
    assert msgspec.json.decode(data) == value
