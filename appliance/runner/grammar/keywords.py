"""The keywords of JSON Schema that are known, and what their values must look like.

Trusts: nothing; the schema is a caller's.
Promises: a keyword that is in none of these lists is refused by name, and so is a value of the wrong kind.
Not here: several schemas at once (``combining``), what is written for them (``schema``).
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from appliance.runner.grammar.numbers import Bounds
from appliance.runner.grammar.pattern import FORMATS
from appliance.runner.grammar.writing import quoted

MAX_COUNT: Final = 2000

Schema = dict[str, Any]

SAYS_NOTHING: Final = frozenset(
    {
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "discriminator",
        "externalDocs",
        "xml",
        "strict",
    }
)
BY_TYPE: Final = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
BY_TYPE["integer"] = BY_TYPE["number"]
COMBINING: Final = frozenset({"type", "nullable", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"})
HONOURED: Final = COMBINING.union(*BY_TYPE.values())
INTEGER_FORMATS: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
LOOSE_FORMATS: Final = {"integer": frozenset({"int32", "int64"}), "number": frozenset({"float", "double"})}
LOOSE_STRINGS: Final = frozenset({"password", "text", "string"})
LOWER: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
UPPER: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


class SchemaInvalid(Exception):
    """The schema is refused. ``detail`` names the keyword, in printable text."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def check_values(said: Schema) -> None:
    """Raises ``SchemaInvalid`` for a keyword whose value is of the wrong kind. Schemas inside are not looked at."""
    for keyword, value in said.items():
        wanted = _KINDS.get(keyword)
        if wanted is not None and not wanted[0](value):
            raise SchemaInvalid(f"{keyword} is no {wanted[1]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_KINDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "properties": (lambda value: isinstance(value, dict), "object"),
    "required": (_are_names, "list of names"),
    "type": (lambda value: _is_text(value) or _are_names(value), "type, nor a list of types"),
    "uniqueItems": (lambda value: isinstance(value, bool), "truth value"),
    **dict.fromkeys(("pattern", "format", "$ref"), (_is_text, "text")),
    **dict.fromkeys(("enum", "allOf", "anyOf", "oneOf", "prefixItems"), (_is_list, "list, or an empty one")),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (_is_number, "number")
    ),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        (lambda value: is_int(value) and value >= 0, "count"),
    ),
}


def schemas(said: Schema, keyword: str) -> list[Any]:
    found = said[keyword]
    if not isinstance(found, list):
        raise SchemaInvalid(f"{keyword} is no list of schemas")
    return found


def types_of(said: Schema) -> list[str]:
    """The types that a schema allows: those it names, or the one that all its keywords are about."""
    named = said.get("type")
    if named is not None:
        types = [named] if isinstance(named, str) else named
        if not isinstance(types, list) or not types or not all(isinstance(t, str) and t in BY_TYPE for t in types):
            raise SchemaInvalid("type is none of the seven")
        return [t for t in dict.fromkeys(types) if not (t == "integer" and "number" in types)]
    about = [kind for kind in ("object", "array", "string", "number") if said.keys() & BY_TYPE[kind] - {"format"}]
    if not about and "format" in said:
        about = ["string" if said["format"] in FORMATS else "number"]
    return about[:1]


def only(said: Schema, kind: str) -> Schema:
    """For one type: the keywords about other types restrict nothing then."""
    return {key: value for key, value in said.items() if key in BY_TYPE[kind]} | {"type": kind}


def listed_values(said: Schema) -> list[Any]:
    beside = next((key for key in said if key not in {"enum", "const", "type"}), None)
    if beside is not None:
        raise SchemaInvalid(f"the keyword {beside} beside enum or const is not supported")
    values = [said["const"]] if "const" in said else said["enum"]
    if not isinstance(values, list):
        raise SchemaInvalid("enum is no list")
    if "const" in said and "enum" in said:
        raise SchemaInvalid("enum beside const is not supported")
    types = types_of(said)
    return [value for value in values if not types or type_of(value) in types or ("number" in types and is_int(value))]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null"


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def key_literal(name: str) -> str:
    return quoted(json_text(name) + ":")


def common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]


def counts(said: Schema, least: str, most: str) -> tuple[int, int | None]:
    low, high = said.get(least, 0), said.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and value > MAX_COUNT:
            raise SchemaInvalid(f"{name} over {MAX_COUNT} is not supported")
    if high is not None and high < low:
        raise SchemaInvalid(f"{most} is below {least}")
    return low, high


def times(what: str, least: int, most: int | None, already: int) -> str:
    """``what`` so often that with those already there it is enough, and not too much. ``least`` counts without them."""
    least = max(least, 0)
    if most is None:
        return f"{what}*" if least == 0 else f"{what}{{{least},}}"
    return f"{what}{{{least},{most - already}}}" if most > already else ""


def bounds_of(said: Schema, of_format: tuple[int, int] | None) -> Bounds:
    least: list[tuple[Decimal, bool]] = []
    most: list[tuple[Decimal, bool]] = []
    for name, bounds in (
        ("minimum", least),
        ("maximum", most),
        ("exclusiveMinimum", least),
        ("exclusiveMaximum", most),
    ):
        if name in said:
            bounds.append((Decimal(repr(said[name])), name.startswith("exclusive")))
    if of_format:
        least.append((Decimal(of_format[0]), False))
        most.append((Decimal(of_format[1]), False))
    lowest = max(least, default=(None, False))
    highest = min(most, key=lambda bound: (bound[0], not bound[1]), default=(None, False))
    return Bounds(lowest[0], lowest[1], highest[0], highest[1])
