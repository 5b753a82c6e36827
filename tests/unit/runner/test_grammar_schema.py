"""JSON Schema as a grammar: whatever it allows is valid, and what it cannot say exactly is refused."""

import contextlib
import datetime
import json
import random
import re
import urllib.parse
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.core.strict_json import JsonInvalid
from appliance.core.strict_json import check as check_json
from appliance.runner.grammar.gbnf import check
from appliance.runner.grammar.schema import MAX_BYTES, SchemaInvalid, json_object_gbnf, to_gbnf
from tests.support.grammar_walk import Walk

CASES = json.loads((Path(__file__).parents[2] / "vectors/json-schema/schemas.json").read_text(encoding="utf-8"))
TEXTS = 40


FORMATS = jsonschema.FormatChecker()  # what the package leaves to others is judged by the standard library
FORMATS.checks("date-time", raises=ValueError)(lambda text: datetime.datetime.fromisoformat(text).tzinfo is not None)
FORMATS.checks("time", raises=ValueError)(datetime.time.fromisoformat)
FORMATS.checks("hostname")(lambda text: all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", p) for p in text.split(".")))
FORMATS.checks("uri")(lambda text: all(urllib.parse.urlsplit(text)[:2]))


def judge(schema: Any) -> Any:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, format_checker=FORMATS)


def read(text: str) -> Any:
    """Strictly, except that two additional properties may have one name: no grammar can tell."""
    try:
        return check_json(text.encode(), max_depth=200)
    except JsonInvalid as error:
        assert str(error) == "a key occurs twice"
        return json.loads(text)


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_there_are_a_hundred_schemas() -> None:
    assert len({case["name"] for case in CASES}) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_nothing_invalid_comes_out_of_the_grammar(case: dict[str, Any]) -> None:
    walk, judged = Walk(to_gbnf(json.dumps(case["schema"]))), judge(case["schema"])
    chance = random.Random(case["name"])
    texts = {walk.text(chance) for _time in range(TEXTS)}
    for text in texts:
        judged.validate(read(text))
    assert all(walk.accepts(text) for text in list(texts)[:3]), "generator and judge are not of one mind"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_what_the_schema_forbids_cannot_be_written(case: dict[str, Any]) -> None:
    walk, judged = Walk(to_gbnf(json.dumps(case["schema"]))), judge(case["schema"])
    for value in case["invalid"]:
        assert not judged.is_valid(value), "the case itself is wrong"
        assert not walk.accepts(written(value))
        assert not walk.accepts(json.dumps(value, indent=2))


VALID = [
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}, {"b": "x"}),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}, {}),
    ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"a": [{"x": None}, 1.5e3]}),
    ({"type": "integer", "minimum": -5, "maximum": 1234}, 1234),
    ({"type": "integer", "minimum": -5, "maximum": 1234}, -5),
    ({"type": "integer", "minimum": -5, "maximum": 1234}, 0),
    ({"type": "integer", "maximum": 9223372036854775807}, 9223372036854775807),
    ({"type": "number", "minimum": 0.25, "maximum": 7.5}, 7.5),
    ({"type": "number", "minimum": 0.25, "maximum": 7.5}, 3.14159),
    ({"type": "number", "minimum": 0.25, "maximum": 7.5}, 0.25),
    ({"type": "number", "exclusiveMinimum": -1}, -0.5),
    ({"type": "number", "minimum": 0.125}, 1234567.125),
    ({"type": "number", "exclusiveMaximum": 0.125}, -99999.5),
    ({"type": "string"}, 'a "quoted" \\ text\nwith \U0001f600 and \u00e9'),
    ({"type": "string", "minLength": 3, "maxLength": 3}, '"\\\n'),
    ({"type": "string", "pattern": '^".*"$'}, '"x"'),
    ({"enum": [1, "a", None, {"b": [1]}]}, {"b": [1]}),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, []),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [1, 2]),
    ({"type": "object", "properties": {"ab": {}}, "additionalProperties": {"type": "integer"}}, {"a": 1, "abc": 2}),
    ({"type": "object", "properties": {"ab": {}}, "additionalProperties": {"type": "integer"}}, {"ab": "x", "": 2}),
    ({"type": "object", "properties": {"a": {"type": "integer", "nullable": True}}}, {"a": 1}),
    ({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"$ref": "#"}}]}, {"a": {"b": "c"}}),
]


@pytest.mark.parametrize(("schema", "value"), VALID, ids=str)
def test_ordinary_answer_is_allowed(schema: Any, value: Any) -> None:
    judge(schema).validate(value)
    walk = Walk(to_gbnf(json.dumps(schema)))
    assert walk.accepts(written(value))
    assert walk.accepts(json.dumps(value, ensure_ascii=False))
    assert walk.accepts(json.dumps(value, ensure_ascii=False, indent=2))


@pytest.mark.parametrize("least", [0, 1, 9, 10, 99, 100, 120, -1, -10, -123])
@pytest.mark.parametrize("most", [0, 7, 10, 101, 119, 1000])
def test_integer_bounds_are_exact(least: int, most: int) -> None:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    if least > most:
        with pytest.raises(SchemaInvalid, match="no integer is within the bounds"):
            to_gbnf(json.dumps(schema))
        return
    walk = Walk(to_gbnf(json.dumps(schema)))
    for number in {*range(-130, 130), least - 1, least, least + 1, most - 1, most, most + 1, most * 10, least * 10}:
        assert walk.accepts(str(number)) == (least <= number <= most), number
    assert not walk.accepts("-0")
    assert not walk.accepts(f"0{max(least, 1)}")


def test_null_is_allowed_where_openapi_says_so() -> None:
    walk = Walk(to_gbnf('{"type":"string","nullable":true,"minLength":1}'))
    assert walk.accepts("null")
    assert walk.accepts('"a"')
    assert not walk.accepts('""')


BOUNDS = [(0, 1), (0.25, 0.75), (-1.5, 2), (0.05, 10.5), (9.9, 10.1), (-3, -0.5), (99, 101), (0, 0), (0.5, 0.5)]


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize(("least", "most"), BOUNDS)
def test_number_bounds_are_exact(least: float, most: float, above: bool, below: bool) -> None:
    """Every number with two decimals around the bounds, and some with more close to them."""
    schema = {"exclusiveMinimum" if above else "minimum": least, "exclusiveMaximum" if below else "maximum": most}
    if least == most and (above or below):
        with pytest.raises(SchemaInvalid, match="no number is within the bounds"):
            to_gbnf(json.dumps({"type": "number", **schema}))
        return
    walk, judged = Walk(to_gbnf(json.dumps({"type": "number", **schema}))), judge(schema)
    numbers = [Decimal(n) / 100 for n in range(int(least * 100) - 120, int(most * 100) + 120)]
    close = [
        Decimal(str(bound)) + Decimal(f"{sign}0.000{n}") for bound in (least, most) for sign in "+-" for n in (1, 5)
    ]
    for number in [*numbers, *close]:
        text = f"{number.normalize():f}"
        assert walk.accepts(text) == judged.is_valid(float(number)), text


REFUSED = [
    ({"type": "string", "not": {"const": "a"}}, "the keyword not is not supported"),
    ({"if": {}, "then": {}}, "the keyword if is not supported"),
    ({"type": "object", "patternProperties": {"^a": {}}}, "the keyword patternProperties is not supported"),
    ({"type": "object", "dependentRequired": {}}, "the keyword dependentRequired is not supported"),
    ({"type": "array", "contains": {}}, "the keyword contains is not supported"),
    ({"type": "object", "unevaluatedProperties": False}, "the keyword unevaluatedProperties is not supported"),
    ({"type": "string", "\x1b[2J": 1}, r"the keyword \?\[2J is not supported"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
    ({"type": "string", "pattern": "a+"}, "does not start with"),
    ({"type": "string", "pattern": "^a|b$"}, "alternatives outside of a group"),
    ({"type": "string", "pattern": "^(?=a)b$"}, "a group that begins with"),
    ({"type": "string", "pattern": r"^(a)\1$"}, "an escape that is not supported"),
    ({"type": "string", "pattern": r"^a\$"}, "does not start with"),
    ({"type": "string", "pattern": "^a*?$"}, "a quantifier after a quantifier"),
    ({"type": "string", "pattern": "^(a*)*$"}, "repeats what may be empty"),
    ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 5}, "inside of what pattern or format allows"),
    ({"type": "string", "format": "iri"}, "the format iri is not supported"),
    ({"type": "string", "maxLength": 2001}, "maxLength over 2000 is not supported"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength is below minLength"),
    ({"type": "integer", "multipleOf": 7}, "multiples of 7"),
    ({"type": "number", "multipleOf": 0.01}, "multipleOf of anything but a whole number"),
    ({"type": "number", "minimum": 2, "maximum": 1}, "no number is within the bounds"),
    ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "no integer is within the bounds"),
    ({"type": "number", "exclusiveMinimum": True}, "exclusiveMinimum is no number"),
    ({"$ref": "https://example.com/schema"}, "does not start with #/"),
    ({"$ref": "other.json#/a"}, "does not start with #/"),
    ({"$ref": "#/$defs/none"}, "a .ref to what is not there"),
    ({"$ref": "#"}, "can begin with itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "can begin with itself"),
    ({"allOf": [{"$ref": "#"}]}, "leads to itself"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf whose branches could hold at once"),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "oneOf whose branches could hold at once"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "two different type"),
    (
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"required": ["b"]}]},
        "additionalProperties",
    ),
    ({"enum": ["a"], "minLength": 2}, "the keyword minLength beside enum"),
    ({"type": "integer", "enum": ["a"]}, "allows nothing of its type"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "required names a property"),
    ({"type": "object", "minProperties": 2, "properties": {"a": {}}}, "minProperties beyond"),
    ({"type": "object", "maxProperties": 1, "properties": {"a": {}, "b": {}}}, "maxProperties below"),
    ({"type": "thing"}, "type is none of the seven"),
    ({"properties": {"a": False}}, "allows nothing"),
    ({"properties": {"a": {"$id": "x"}}}, "id inside a schema"),
    (False, "allows nothing"),
    ([], "no object"),
    ({"oneOf": [{"const": number} for number in range(41)]}, "oneOf of more than 40 branches"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_said_exactly_is_refused_by_name(schema: Any, reason: str) -> None:
    with pytest.raises(SchemaInvalid, match=reason):
        to_gbnf(json.dumps(schema))


def kinds(*lasts: str) -> dict[str, Any]:
    """Objects that begin alike for longer than Python would follow them."""
    same = {f"p{number}": True for number in range(600)}
    return {"anyOf": [{"properties": same | {last: True}, "required": [*same, last]} for last in lasts]}


BOUNDED = {"type": "number", "minimum": -12345678.123456789, "maximum": 98765432.1234567}
LABELLED = {"additionalProperties": True, "properties": {f"{key}-property-of-no-short-name": {} for key in range(6)}}


LONG = {
    "alike": (kinds("a", "b"), "too long before they differ"),
    "bounded": ({"properties": {f"p{number}": BOUNDED for number in range(700)}}, "too large"),
    "labelled": ({"properties": {f"p{number}": LABELLED for number in range(150)}}, "too large"),
    "branches": ({"oneOf": [{"enum": [f"{one}-{other}" for other in range(8)]} for one in range(600)]}, "oneOf of"),
}


@pytest.mark.parametrize(("schema", "reason"), LONG.values(), ids=LONG)
def test_schema_for_which_everybody_would_wait_is_refused(schema: dict[str, Any], reason: str) -> None:
    text = json.dumps(schema)
    assert len(text) <= MAX_BYTES
    with pytest.raises(SchemaInvalid, match=reason):
        to_gbnf(text)


ODD: tuple[Any, ...] = (None, True, -1, 2**63, 0.5, 1e300, "", "^a$", "#", [], [[]], ["a", "a"], {}, {"a": []})
KEYWORDS = [
    "type", "properties", "required", "additionalProperties", "minProperties", "maxProperties", "items",
    "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern",
    "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "nullable", "enum", "const",
    "$ref", "allOf", "anyOf", "oneOf", "$defs", "title", "strict", "$id",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_odd_schema_is_translated_or_refused_and_nothing_else(seed: int) -> None:
    """What escaped would end the process."""
    chance = random.Random(seed)

    def odd(depth: int) -> Any:
        if not depth or chance.random() < 0.2:
            return chance.choice(ODD)
        made = {keyword: chance.choice([odd(0), odd(depth - 1)]) for keyword in chance.sample(KEYWORDS, 3)}
        for keyword in ("allOf", "anyOf", "oneOf", "items", "prefixItems"):
            if chance.random() < 0.2:
                made[keyword] = [odd(depth - 1) for _ in range(2)]
        if chance.random() < 0.5:
            made["properties"] = {name: odd(depth - 1) for name in "ab"}
            made["type"] = "object"
        return made

    for _time in range(400):
        with contextlib.suppress(SchemaInvalid):
            to_gbnf(json.dumps(odd(4)))


@pytest.mark.parametrize("text", ["", "{", '{"type":"string","type":"integer"}', '{"minimum":NaN}', "[" * 50_000])
def test_text_that_is_no_strict_json_is_refused(text: str) -> None:
    with pytest.raises(SchemaInvalid):
        to_gbnf(text)


def test_json_mode_allows_objects_and_nothing_else() -> None:
    check(json_object_gbnf())
    walk = Walk(json_object_gbnf())
    chance = random.Random(1)
    for _time in range(50):
        assert isinstance(read(walk.text(chance)), dict)
    assert walk.accepts('{"a": [1, true, null, {"b": "c"}], "d": -1.5e+3}')
    for text in ("[]", "1", "", "{", '{"a":1,}', '{"a" : 1}', "{}{}", '{"a":01}', '{"\\ud800":1}', '{"a":"\x01"}'):
        assert not walk.accepts(text), text
    assert walk.accepts('{"\\ud83d\\ude00":1}')


def test_grammar_grows_with_the_schema_and_not_faster() -> None:
    """Optional properties are where a grammar doubles with each of them, if it is not written with care."""
    sizes = []
    for count in (40, 80):
        properties = {f"property-{number}": {"type": "integer"} for number in range(count)}
        sizes.append(len(to_gbnf(json.dumps({"type": "object", "properties": properties}))))
    assert sizes[1] < 2.2 * sizes[0]


JUNK = [None, True, -1, 2.5, 10**18, "", "x", "#", [], {}, [[]], [{}], {"": None}, {"type": "string"}, ["a"], [1]]


def damaged(value: Any, chance: random.Random) -> Any:
    """The same with one part of it replaced."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(JUNK)
    copy = value.copy()
    place = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
    copy[place] = damaged(copy[place], chance)
    return copy


def test_damaged_schema_is_translated_or_refused_and_nothing_else() -> None:
    chance = random.Random(4)
    refused = 0
    for case in CASES * 8:
        try:
            check(to_gbnf(json.dumps(damaged(damaged(case["schema"], chance), chance))))
        except SchemaInvalid as error:
            refused += 1
            assert error.detail.isprintable()
    assert 100 < refused < 900
