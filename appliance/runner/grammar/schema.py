"""JSON Schema to GBNF: whatever the grammar allows is valid under the schema.

Drafts 7 and 2020-12 as people write them for function calls. A keyword is honoured exactly, or known to restrict
nothing, or the schema is refused by that keyword's name: none is dropped in silence. The grammar may allow less than
the schema: properties come in the schema's order and, where it names any, no others unless it says so; a tuple comes
whole; numbers have the digits that doubles and 64-bit integers have; a format is its usual form.

What a grammar cannot promise: that a model ends in time, and that two *additional* properties have different names.

Trusts: nothing; the schema is a caller's.
Promises: bounded time and size. What comes out passes ``gbnf.check``.
Not here: the notation of numbers (``numbers``) and of texts (``pattern``).
"""

import json
from decimal import Decimal
from typing import Any, Final, NamedTuple

from appliance.core.strict_json import JsonInvalid
from appliance.core.strict_json import check as check_json
from appliance.core.text import printable
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.numbers import Bounds, NumberInvalid, decimals, integers
from appliance.runner.grammar.pattern import FORMATS, PatternInvalid, Text, translate, without
from appliance.runner.grammar.writing import PLAIN_RANGES, class_of, quoted, with_shared

MAX_BYTES: Final = 65_536
MAX_DEPTH: Final = 40
MAX_NODES: Final = 3000
"""Schemas in the schema, those counted again that are used in two places."""
MAX_GRAMMAR_CHARACTERS: Final = 120_000
_MAX_CHAIN: Final = 32
_MAX_COUNT: Final = 2000
_MAX_ALTERNATIVES: Final = 24
_MAX_KEY: Final = 100
_LONG: Final = 200

_SAYS_NOTHING: Final = frozenset(
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
_BY_TYPE: Final = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "maxProperties"}),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_BY_TYPE["integer"] = _BY_TYPE["number"]
_COMBINING: Final = frozenset({"type", "nullable", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"})
_HONOURED: Final = _COMBINING.union(*_BY_TYPE.values())
_INTEGER_FORMATS: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_LOOSE_FORMATS: Final = {"integer": frozenset({"int32", "int64"}), "number": frozenset({"float", "double"})}
_LOOSE_STRINGS: Final = frozenset({"password", "text", "string"})
_LOWER: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_UPPER: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})

Schema = dict[str, Any]


class SchemaInvalid(Exception):
    """The schema is refused. ``detail`` names the keyword, in printable text."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def to_gbnf(schema_text: str) -> str:
    """A JSON Schema as text -> a grammar with the rule ``root``. Raises ``SchemaInvalid``."""
    data = schema_text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise SchemaInvalid(f"a schema of more than {MAX_BYTES} bytes")
    try:
        schema = check_json(data, max_depth=MAX_DEPTH)
        grammar = _Translation(schema).grammar()
        check(grammar)
    except JsonInvalid as error:
        raise SchemaInvalid(str(error)) from None
    except GrammarInvalid as error:
        raise SchemaInvalid(f"its grammar is refused: {error.detail}") from None
    return grammar


def json_object_gbnf() -> str:
    """A grammar for any JSON object."""
    return _ANY_OBJECT


_ANY_OBJECT: Final = with_shared({"root": "object"})


class _Property(NamedTuple):
    name: str
    schema: Any
    required: bool


class _Object(NamedTuple):
    """``rest`` is the schema of further properties, None if there may be none; at most ``most_rest`` of them."""

    properties: tuple[_Property, ...]
    rest: Any
    most_rest: int | None
    may_be_empty: bool


class _Kind(NamedTuple):
    """A kind of object: for each place in its properties, what is written where one member from there on must come, and
    what may follow a member before there."""

    object: _Object
    starts: list[str]
    follows: list[str]

    def head(self, place: int) -> _Property | None:
        return self.object.properties[place] if place < len(self.object.properties) else None

    def needs_more(self, place: int) -> bool:
        return any(one.required for one in self.object.properties[place:])


class _Further(NamedTuple):
    """What is written where a further property must come, where it may come, and after its key."""

    start: str
    follow: str
    after_key: str


class _Translation:
    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}  # by body
        self._references: dict[str, str] = {}  # by pointer
        self._pending: list[tuple[str, Any]] = []
        self._resolutions: dict[int, Schema] = {}
        self._kept: list[Any] = []  # merged schemas: as long as they live, nothing else has their ``id``
        self._nodes = 0
        self._depth = 0
        self._characters = 0
        self._made = 0

    def grammar(self) -> str:
        self._rules["root"] = ""
        self._references["#"] = "top"
        self._pending.append(("top", self._root))
        while self._pending:
            name, schema = self._pending.pop()
            self._rules[name] = self._expression(schema)
        self._rules["root"] = "top"
        return with_shared(self._rules)

    # --- rules ------------------------------------------------------------------------------------------------------

    def _rule(self, body: str) -> str:
        """The name of a rule with this body."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = self._new_name()
            self._rules[name] = body
            self._characters += len(body)
            if self._characters > MAX_GRAMMAR_CHARACTERS:
                raise SchemaInvalid("its grammar becomes too large")
        return name

    def _new_name(self) -> str:
        self._made += 1
        return f"r{self._made}"

    # --- one schema -------------------------------------------------------------------------------------------------

    def _expression(self, schema: Any) -> str:
        """GBNF that can stand anywhere: one name or one literal."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SchemaInvalid(f"more than {MAX_NODES} schemas in the schema")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SchemaInvalid("its parts refer to each other too deeply")
        expression = self._one(self._restrictions(schema))
        self._depth -= 1
        return expression

    def _restrictions(self, schema: Any) -> Schema:
        """What a schema restricts. Raises for what is not known."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise SchemaInvalid("a schema that is no object, or allows nothing")
        said = {key: schema[key] for key in schema if key not in _SAYS_NOTHING and not key.startswith("x-")}
        unknown = next((key for key in said if key not in _HONOURED), None)
        if unknown is not None:
            raise SchemaInvalid(f"the keyword {printable(unknown[:64])} is not supported")
        if "$id" in schema and schema is not self._root:
            raise SchemaInvalid("the keyword $id inside a schema is not supported")
        nullable = said.pop("nullable", False)
        if not isinstance(nullable, bool):
            raise SchemaInvalid("nullable is true or false")
        return said if not nullable else {"anyOf": [said, {"type": "null"}]}

    def _one(self, said: Schema) -> str:
        if set(said) == {"$ref"}:
            return self._reference(said["$ref"])
        said = self._merged(said)
        if "anyOf" in said or "oneOf" in said:
            return self._union(said)
        if "enum" in said or "const" in said:
            return self._enumeration(_values(said))
        types = _types(said)
        if len(types) > 1:
            return self._union({"anyOf": [_only(said, one) for one in types]})
        if not types:
            return "value"
        return self._typed(types[0], said)

    def _typed(self, kind: str, said: Schema) -> str:
        match kind:
            case "object":
                return self._objects([self._object(said)]) if _only(said, kind).keys() != {"type"} else "object"
            case "array":
                return self._array(said)
            case "string":
                return self._string(said)
            case "integer" | "number":
                return self._number(kind, said)
        return kind

    # --- references and combinations --------------------------------------------------------------------------------

    def _reference(self, pointer: Any) -> str:
        name = self._references.get(pointer) if isinstance(pointer, str) else None
        if name is None:
            target = self._target(pointer)
            name = self._references[pointer] = self._new_name()
            self._pending.append((name, target))
        return name

    def _target(self, pointer: Any) -> Any:
        """Only inside the schema itself (RFC 6901, as a URI fragment)."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise SchemaInvalid("a $ref that does not start with #/ is not supported")
        found = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isascii() and key.isdecimal() and int(key[:6]) < len(found):
                found = found[int(key[:6])]
            else:
                raise SchemaInvalid("a $ref to what is not there")
        return found

    def _merged(self, said: Schema) -> Schema:
        """With everything that ``$ref`` beside other keywords and ``allOf`` add."""
        for _round in range(_MAX_CHAIN):
            added: list[Any] = []
            if "$ref" in said:
                added.append(self._target(said["$ref"]))
            if "allOf" in said:
                added += _schemas(said, "allOf")
            if not added:
                return said
            said = {key: value for key, value in said.items() if key not in {"$ref", "allOf"}}
            for one in added:
                said = _both(said, self._restrictions(one))
            self._kept.append(said)
        raise SchemaInvalid("a $ref or an allOf that leads to itself")

    def _union(self, said: Schema) -> str:
        if "anyOf" in said and "oneOf" in said:
            raise SchemaInvalid("anyOf beside oneOf is not supported")
        keyword = "anyOf" if "anyOf" in said else "oneOf"
        common = {key: value for key, value in said.items() if key != keyword}
        written = _schemas(said, keyword)
        whole = [self._resolved(_both(common, self._restrictions(one)) if common else one) for one in written]
        if keyword == "oneOf":
            _check_disjoint(whole)
        objects = [one for one in whole if _is_object(one)]
        ways = []
        for one, schema in zip(whole, written, strict=True):
            if len(objects) > 1 and _is_object(one):
                continue
            ways.append(self._expression(one if common else schema))
        if len(objects) > 1:
            ways.append(self._object_union(objects))
        ways = list(dict.fromkeys(ways))
        return ways[0] if len(ways) == 1 else self._rule(" | ".join(ways))

    def _object_union(self, objects: list[Schema]) -> str:
        """Named before it is made: its branches are looked into, and may hold the same union again."""
        key = "union " + " ".join(str(id(one)) for one in objects)
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = self._new_name()
            self._rules[name] = self._objects([self._object(one) for one in objects])
        return name

    def _resolved(self, schema: Any) -> Schema:
        """With references followed and merged. The same schema gives the same result, by identity too."""
        found = self._resolutions.get(id(schema))
        if found is None:
            found = self._resolutions[id(schema)] = self._merged(self._restrictions(schema))
            self._kept.append(schema)
        return found

    def _enumeration(self, values: list[Any]) -> str:
        texts = list(dict.fromkeys(_json(value) for value in values if not isinstance(value, list | dict)))
        ways = [self._constant(value) for value in values if isinstance(value, list | dict)]
        if texts:
            ways.insert(0, quoted(texts[0]) if len(texts) == 1 else self._one_of(texts))
        if not ways:
            raise SchemaInvalid("enum or const allows nothing of its type")
        return ways[0] if len(ways) == 1 else self._rule(" | ".join(dict.fromkeys(ways)))

    def _constant(self, value: Any) -> str:
        """One value, with white space where an answer may have it."""
        match value:
            case dict():
                parts = [f"{_key(name)} ws {self._constant(part)}" for name, part in value.items()]
            case list():
                parts = [self._constant(part) for part in value]
            case _:
                return quoted(_json(value))
        opening, closing = '"{"', '"}"'
        if isinstance(value, list):
            opening, closing = '"["', '"]"'
        inside = ' "," ws '.join(parts)
        return self._rule(f"{opening} ws {inside} ws {closing}" if parts else f"{opening} ws {closing}")

    def _one_of(self, texts: list[str]) -> str:
        """Many texts share their beginnings, so that few ways are open at once."""
        if len(texts) <= _MAX_ALTERNATIVES:
            return self._rule(" | ".join(quoted(text) for text in texts))
        by_first: dict[str, list[str]] = {}
        for text in texts:
            by_first.setdefault(text[:1], []).append(text)
        ways = []
        for group in by_first.values():
            start = _common_start(group)
            rest = [text[len(start) :] for text in group]
            ways.append(quoted(start) if len(group) == 1 else f"{quoted(start)} {self._one_of(rest)}")
        return self._rule(" | ".join(ways))

    # --- objects ----------------------------------------------------------------------------------------------------

    def _object(self, said: Schema) -> _Object:
        properties = said.get("properties", {})
        required = said.get("required", [])
        if not isinstance(properties, dict):
            raise SchemaInvalid("properties is no object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaInvalid("required is no list of names")
        rest = said.get("additionalProperties", not (properties or required))
        rest = None if rest is False else rest
        unnamed = [name for name in dict.fromkeys(required) if name not in properties]
        if unnamed and said.get("additionalProperties") is False:
            raise SchemaInvalid("required names a property that additionalProperties forbids")
        others = True if rest is None else rest
        found = [_Property(name, schema, name in required) for name, schema in properties.items()]
        found += [_Property(name, others, True) for name in unnamed]
        least, most = _counts(said, "minProperties", "maxProperties")
        needed = sum(one.required for one in found)
        if least > max(needed, 1):
            raise SchemaInvalid("minProperties beyond the required ones is not supported")
        if most is not None and most < len(found):
            raise SchemaInvalid("maxProperties below the named ones is not supported")
        most_rest = None if most is None else most - len(found)
        return _Object(tuple(found), None if most_rest == 0 else rest, most_rest, least <= needed == 0)

    def _objects(self, objects: list[_Object]) -> str:
        """One object that is of any of these kinds."""
        members = self._shared_start([self._members(one) for one in objects], 0)
        if not members:
            return self._rule('"{" ws "}"')
        if any(one.may_be_empty for one in objects):
            return self._rule(f'"{{" ws ({members} ws)? "}}"')
        return self._rule(f'"{{" ws {members} ws "}}"')

    def _members(self, one: _Object) -> _Kind:
        """Linear: what is written at each place refers to the next."""
        names = [place.name for place in one.properties]
        last = self._further(one, names)
        starts, follows = [last.start], [last.follow]
        leaves: dict[str, str | None] = dict.fromkeys(names)
        needed = False
        for place in reversed(one.properties):
            after = f"ws {self._expression(place.schema)} {follows[0]}".rstrip()
            own = f"{_key(place.name)} {after}"
            needed = needed or place.required
            if not needed and last.start:
                leaves[place.name] = f'"\\":" {after}'
                own = self._rule(f'"\\"" {self._keys(list(leaves.items()), last.after_key)}')
            elif not place.required and starts[0]:
                starts[0] = self._named(starts[0])
                own = self._rule(f"{own} | {starts[0]}")
            starts.insert(0, self._named(own) if len(own) > _LONG else own)
            follows.insert(0, f'"," ws {starts[0]}' if needed else f'("," ws {starts[0]})?')
        return _Kind(one, starts, follows)

    def _named(self, text: str) -> str:
        return self._rule(text) if " " in text else text

    def _further(self, one: _Object, names: list[str]) -> _Further:
        """The end of the properties, where only those can come that have no name here."""
        if one.rest is None:
            return _Further("", "", "")
        if any(len(name) > _MAX_KEY or _json(name) != f'"{name}"' for name in names):
            raise SchemaInvalid("a long property name, or one with escapes, beside additionalProperties")
        value = self._expression(one.rest)
        more = self._times_of_member(names, value, one.most_rest)
        fewer = self._times_of_member(names, value, None if one.most_rest is None else one.most_rest - 1)
        after_key = f'":" ws {value} {fewer}'.rstrip()
        return _Further(f"{self._other_key(names)} {after_key}", more, after_key)

    def _times_of_member(self, names: list[str], value: str, most: int | None) -> str:
        more = self._rule(f'"," ws {self._other_key(names)} ":" ws {value}')
        return _times(more, 0, most, 0)

    def _other_key(self, names: list[str]) -> str:
        """A key that is none of these. Without escapes, with which it could be one of them after all."""
        return self._rule(f'"\\"" {self._keys([(name, None) for name in names], "")}') if names else "string"

    def _keys(self, words: list[tuple[str, str | None]], after: str) -> str:
        """The rest of a key: of one of these words, and then its own text if it has one, or of any other key, and then
        ``after``."""
        end = self._named(f'"\\"" {after}'.rstrip())
        return self._rest_of_key(words, end, self._rule(f"plain* {end}"))

    def _rest_of_key(self, words: list[tuple[str, str | None]], end: str, other: str) -> str:
        by_first: dict[str, list[tuple[str, str | None]]] = {}
        ways = [] if any(not word for word, _leaf in words) else [end]
        for word, leaf in words:
            if word:
                by_first.setdefault(word[0], []).append((word[1:], leaf))
            elif leaf is not None:
                ways.append(leaf)
        ways += [f"{quoted(first)} {self._rest_of_key(rest, end, other)}" for first, rest in by_first.items()]
        others = without(PLAIN_RANGES, tuple((ord(first), ord(first)) for first in by_first))
        ways.append(f"{class_of(others)} {other}")
        return self._rule(" | ".join(ways))

    def _shared_start(self, objects: list[_Kind], place: int) -> str:
        """Members from a place on, of any of these kinds. What all kinds have there is written once, so that the first
        difference decides: where kinds can nest, llama.cpp could not follow several at a time."""
        if len(objects) == 1:
            return objects[0].starts[place]
        heads = [kind.head(place) for kind in objects]
        if len({head.name if head else None for head in heads}) > 1 or heads[0] is None:
            return self._rule(" | ".join(dict.fromkeys(filter(None, (kind.starts[place] for kind in objects)))))
        by_value: dict[str, list[_Kind]] = {}
        for head, kind in zip(heads, objects, strict=True):
            by_value.setdefault(self._expression(head.schema if head else True), []).append(kind)
        values = [f"{value} {self._shared_rest(group, place + 1)}".rstrip() for value, group in by_value.items()]
        ways = [f"{_key(heads[0].name)} ws {values[0] if len(values) == 1 else self._rule(' | '.join(values))}"]
        without = [kind for kind in objects if not kind.object.properties[place].required and kind.starts[place + 1]]
        if without:
            ways.append(self._shared_start(without, place + 1))
        return ways[0] if len(ways) == 1 else self._rule(" | ".join(ways))

    def _shared_rest(self, objects: list[_Kind], place: int) -> str:
        if len(objects) == 1:
            return objects[0].follows[place]
        if any(kind.object.rest is not None for kind in objects):
            return self._rule(" | ".join(dict.fromkeys(kind.follows[place] or '""' for kind in objects)))
        going_on = [kind for kind in objects if kind.starts[place]]
        if not going_on:
            return ""
        more = f'"," ws {self._named(self._shared_start(going_on, place))}'
        return more if all(kind.needs_more(place) for kind in objects) else f"({more})?"

    # --- arrays, texts, numbers -------------------------------------------------------------------------------------

    def _array(self, said: Schema) -> str:
        least, most = _counts(said, "minItems", "maxItems")
        unique = said.get("uniqueItems", False)
        if not isinstance(unique, bool) or (unique and (most is None or most > 1)):
            raise SchemaInvalid("uniqueItems is not supported")
        first = _schemas(said, "prefixItems") if "prefixItems" in said else []
        rest = said.get("items", None if first else True)
        if isinstance(rest, list):
            if first:
                raise SchemaInvalid("prefixItems beside a list of items is not supported")
            first, rest = rest, said.get("additionalItems")
        first = first[:most]
        rest = None if rest is False or most == len(first) else rest
        if rest is None and least > len(first):
            raise SchemaInvalid("minItems beyond the items that there may be")
        parts = [self._expression(one) for one in first]
        if rest is None:
            inside = ' "," ws '.join(parts)
            return self._rule(f'"[" ws {inside} ws "]"' if inside else '"[" ws "]"')
        item = self._expression(rest)
        more = self._rule(f'"," ws {item}')
        if parts:
            inside = ' "," ws '.join(parts)
            return self._rule(f'"[" ws {inside} {_times(more, least - len(parts), most, len(parts))} ws "]"')
        inside = f"{item} {_times(more, least - 1, most, 1)} ws".replace("  ", " ")
        return self._rule(f'"[" ws {inside} "]"' if least else f'"[" ws ({inside})? "]"')

    def _string(self, said: Schema) -> str:
        least, most = _counts(said, "minLength", "maxLength")
        form = said.get("format")
        form = None if form in _LOOSE_STRINGS else form
        if form is not None and (not isinstance(form, str) or form not in FORMATS):
            raise SchemaInvalid(f"the format {printable(str(form)[:64])} is not supported")
        pattern = said.get("pattern")
        if pattern is None and form is None:
            if (least, most) == (0, None):
                return "string"
            return self._rule(f'"\\"" {_times("char", least, most, 0)} "\\""'.replace("  ", " "))
        if pattern is not None and form is not None:
            raise SchemaInvalid("pattern beside format is not supported")
        if not isinstance(pattern, str | None):
            raise SchemaInvalid("pattern is no text")
        text = self._text(FORMATS[form] if pattern is None and form else pattern or "")
        if text.least < least or (most is not None and (text.most is None or text.most > most)):
            raise SchemaInvalid("minLength or maxLength inside of what pattern or format allows is not supported")
        return self._rule(f'"\\"" {text.gbnf} "\\""')

    def _text(self, pattern: str) -> Text:
        try:
            return translate(pattern)
        except PatternInvalid as error:
            raise SchemaInvalid(f"pattern: {error}") from None

    def _number(self, kind: str, said: Schema) -> str:
        form = said.get("format")
        if form is not None and form not in _LOOSE_FORMATS["integer"] | _LOOSE_FORMATS["number"]:
            raise SchemaInvalid(f"the format {printable(str(form)[:64])} is not supported")
        bounds = _bounds(said, _INTEGER_FORMATS.get(form) if isinstance(form, str) else None)
        multiple = said.get("multipleOf", 1)
        if (
            isinstance(multiple, bool)
            or not isinstance(multiple, int | float)
            or multiple != int(multiple)
            or multiple < 1
        ):
            raise SchemaInvalid("multipleOf of anything but a whole number above 0 is not supported")
        unbounded = bounds.least is None and bounds.most is None
        if unbounded and "multipleOf" not in said:
            return kind
        try:
            if kind == "integer" or "multipleOf" in said:
                return self._rule(integers(bounds, int(multiple)))
            return self._rule(decimals(bounds))
        except NumberInvalid as error:
            raise SchemaInvalid(str(error)) from None


# --- keywords -------------------------------------------------------------------------------------------------------


def _schemas(said: Schema, keyword: str) -> list[Any]:
    found = said[keyword]
    if not isinstance(found, list) or not found:
        raise SchemaInvalid(f"{keyword} is no list of schemas")
    return found


def _types(said: Schema) -> list[str]:
    """The types that a schema allows: those it names, or the one that all its keywords are about."""
    named = said.get("type")
    if named is not None:
        types = [named] if isinstance(named, str) else named
        if not isinstance(types, list) or not types or not all(isinstance(t, str) and t in _BY_TYPE for t in types):
            raise SchemaInvalid("type is none of the seven")
        return [t for t in dict.fromkeys(types) if not (t == "integer" and "number" in types)]
    about = [kind for kind in ("object", "array", "string", "number") if said.keys() & _BY_TYPE[kind] - {"format"}]
    if not about and "format" in said:
        about = ["string" if said["format"] in FORMATS else "number"]
    return about[:1]


def _only(said: Schema, kind: str) -> Schema:
    """For one type: the keywords about other types restrict nothing then."""
    return {key: value for key, value in said.items() if key in _BY_TYPE[kind]} | {"type": kind}


def _values(said: Schema) -> list[Any]:
    beside = next((key for key in said if key not in {"enum", "const", "type"}), None)
    if beside is not None:
        raise SchemaInvalid(f"the keyword {beside} beside enum or const is not supported")
    values = [said["const"]] if "const" in said else said["enum"]
    if not isinstance(values, list):
        raise SchemaInvalid("enum is no list")
    if "const" in said and "enum" in said:
        raise SchemaInvalid("enum beside const is not supported")
    types = _types(said)
    return [
        value for value in values if not types or _type_of(value) in types or ("number" in types and _is_int(value))
    ]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _key(name: str) -> str:
    return quoted(_json(name) + ":")


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]


def _counts(said: Schema, least: str, most: str) -> tuple[int, int | None]:
    low, high = said.get(least, 0), said.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and (not _is_int(value) or value < 0):
            raise SchemaInvalid(f"{name} is no count")
        if value is not None and value > _MAX_COUNT:
            raise SchemaInvalid(f"{name} over {_MAX_COUNT} is not supported")
    if high is not None and high < low:
        raise SchemaInvalid(f"{most} is below {least}")
    return low, high


def _times(what: str, least: int, most: int | None, already: int) -> str:
    """``what`` so often that with those already there it is enough, and not too much. ``least`` counts without them."""
    least = max(least, 0)
    if most is None:
        return f"{what}*" if least == 0 else f"{what}{{{least},}}"
    return f"{what}{{{least},{most - already}}}" if most > already else ""


def _bounds(said: Schema, of_format: tuple[int, int] | None) -> Bounds:
    least: list[tuple[Decimal, bool]] = []
    most: list[tuple[Decimal, bool]] = []
    for name, bounds in (
        ("minimum", least),
        ("maximum", most),
        ("exclusiveMinimum", least),
        ("exclusiveMaximum", most),
    ):
        value = said.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SchemaInvalid(f"{name} is no number")
        bounds.append((Decimal(repr(value)), name.startswith("exclusive")))
    if of_format:
        least.append((Decimal(of_format[0]), False))
        most.append((Decimal(of_format[1]), False))
    lowest = max(least, default=(None, False))
    highest = min(most, key=lambda bound: (bound[0], not bound[1]), default=(None, False))
    return Bounds(lowest[0], lowest[1], highest[0], highest[1])


# --- combining ------------------------------------------------------------------------------------------------------


def _both(one: Schema, other: Schema) -> Schema:
    """A schema that allows what both allow. Raises ``SchemaInvalid`` where that cannot be written as one."""
    closed = any(schema.get("additionalProperties", True) is not True for schema in (one, other))
    if closed and one.get("properties", {}).keys() != other.get("properties", {}).keys() and _about_objects(one, other):
        raise SchemaInvalid("additionalProperties beside other properties of an allOf or a $ref is not supported")
    both = dict(one)
    for key, value in other.items():
        both[key] = _combined(key, both[key], value) if key in both else value
    return both


def _about_objects(one: Schema, other: Schema) -> bool:
    return all(schema.keys() & {"properties", "required", "additionalProperties"} for schema in (one, other))


def _combined(key: str, one: Any, other: Any) -> Any:
    if one == other and type(one) is type(other):
        return one
    if key == "properties" and isinstance(one, dict) and isinstance(other, dict):
        shared = {name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()}
        return {name: shared.get(name, schema) for name, schema in (one | other).items()}
    if key == "required" and isinstance(one, list) and isinstance(other, list):
        return list(dict.fromkeys([*one, *other]))
    if key == "allOf":
        return [*one, *other]
    if key == "type":
        types = [kind for kind in _types({"type": one}) if kind in _types({"type": other})]
        if types:
            return types
    if key in _LOWER | _UPPER and all(isinstance(value, int | float) for value in (one, other)):
        return max(one, other) if key in _LOWER else min(one, other)
    raise SchemaInvalid(f"two different {key} together are not supported")


def _is_object(schema: Schema) -> bool:
    return not schema.keys() & {"anyOf", "oneOf", "enum", "const"} and _types(schema) == ["object"]


def _check_disjoint(schemas: list[Schema]) -> None:
    """``oneOf`` is ``anyOf`` where no two can hold at once. Raises ``SchemaInvalid`` where that is not plain to see."""
    for place, one in enumerate(schemas):
        for other in schemas[:place]:
            if not _disjoint(one, other):
                raise SchemaInvalid("oneOf whose branches could hold at once is not supported; anyOf is")


def _disjoint(one: Schema, other: Schema) -> bool:
    if any(schema.keys() & {"anyOf", "oneOf", "$ref", "allOf"} for schema in (one, other)):
        return False
    values, other_values = _listed(one), _listed(other)
    if values is not None and other_values is not None:
        return not values & other_values
    types, other_types = _all_types(one), _all_types(other)
    if not types & other_types:
        return True
    return types == other_types == {"object"} and values is None and other_values is None and _differ(one, other)


def _listed(schema: Schema) -> set[str] | None:
    """The texts of what an ``enum`` or ``const`` lists; numbers that are equal have one text."""
    if not schema.keys() & {"enum", "const"}:
        return None
    return {_json(int(v) if isinstance(v, float) and v.is_integer() else v) for v in _values(schema)}


def _all_types(schema: Schema) -> set[str]:
    if schema.keys() & {"enum", "const"}:
        types = {_type_of(value) for value in _values(schema)}
    else:
        types = set(_types(schema)) if "type" in schema else set(_BY_TYPE)
    return types - {"integer"} | {"number"} if "integer" in types else types


def _differ(one: Schema, other: Schema) -> bool:
    """Two kinds of objects of which none can be both: by the value of a property that one of them must have, or because
    each must have one that the other, as it is written here, never has."""
    properties, others = one.get("properties", {}), other.get("properties", {})
    needed, other_needed = set(one.get("required", [])), set(other.get("required", []))
    for name in properties.keys() & others.keys() & (needed | other_needed):
        values, other_values = _own_values(properties[name]), _own_values(others[name])
        if values is not None and other_values is not None and not values & other_values:
            return True
    if any(schema.get("additionalProperties", False) is not False for schema in (one, other)):
        return False
    return bool(needed - others.keys() - other_needed) and bool(other_needed - properties.keys() - needed)


def _own_values(schema: Any) -> set[str] | None:
    return _listed(schema) if isinstance(schema, dict) and schema.keys() <= {"enum", "const", "type"} else None
