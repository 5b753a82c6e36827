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

from typing import Any, Final, NamedTuple

from appliance.core.strict_json import JsonInvalid
from appliance.core.strict_json import check as check_json
from appliance.core.text import printable
from appliance.runner.grammar.combining import both, check_disjoint, is_object
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.keywords import (
    HONOURED,
    INTEGER_FORMATS,
    LOOSE_FORMATS,
    LOOSE_STRINGS,
    SAYS_NOTHING,
    Schema,
    SchemaInvalid,
    bounds_of,
    check_values,
    common_start,
    counts,
    json_text,
    key_literal,
    listed_values,
    only,
    schemas,
    times,
    types_of,
)
from appliance.runner.grammar.numbers import NumberInvalid, decimals, integers
from appliance.runner.grammar.pattern import FORMATS, PatternInvalid, Text, translate, without
from appliance.runner.grammar.writing import PLAIN_RANGES, class_of, quoted, with_shared

MAX_BYTES: Final = 65_536
MAX_DEPTH: Final = 40
MAX_NODES: Final = 3000
"""Schemas in the schema, those counted again that are used in two places."""
MAX_GRAMMAR_CHARACTERS: Final = 120_000
MAX_WRITTEN_CHARACTERS: Final = 400_000
"""With what turns out to be in the grammar already: it took time too."""
_MAX_CHAIN: Final = 32
_MAX_ALTERNATIVES: Final = 24
_MAX_KEY: Final = 100
_LONG: Final = 200


__all__ = ["SchemaInvalid", "json_object_gbnf", "to_gbnf"]


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
    except RecursionError:  # kinds of objects that begin alike are walked together, property by property
        raise SchemaInvalid("its parts go on too long before they differ") from None
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
        self._written = 0
        self._texts: dict[str, Text] = {}  # by pattern
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
        self._written += len(body)
        if self._written > MAX_WRITTEN_CHARACTERS:
            raise SchemaInvalid("its grammar becomes too large")
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
        said = {key: schema[key] for key in schema if key not in SAYS_NOTHING and not key.startswith("x-")}
        unknown = next((key for key in said if key not in HONOURED), None)
        if unknown is not None:
            raise SchemaInvalid(f"the keyword {printable(unknown[:64])} is not supported")
        check_values({key: value for key, value in said.items() if key != "nullable"})
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
            return self._enumeration(listed_values(said))
        types = types_of(said)
        if len(types) > 1:
            return self._union({"anyOf": [only(said, one) for one in types]})
        if not types:
            return "value"
        return self._typed(types[0], said)

    def _typed(self, kind: str, said: Schema) -> str:
        match kind:
            case "object":
                return self._objects([self._object(said)]) if only(said, kind).keys() != {"type"} else "object"
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
                added += schemas(said, "allOf")
            if not added:
                return said
            said = {key: value for key, value in said.items() if key not in {"$ref", "allOf"}}
            for one in added:
                said = both(said, self._restrictions(one))
            self._kept.append(said)
        raise SchemaInvalid("a $ref or an allOf that leads to itself")

    def _union(self, said: Schema) -> str:
        if "anyOf" in said and "oneOf" in said:
            raise SchemaInvalid("anyOf beside oneOf is not supported")
        keyword = "anyOf" if "anyOf" in said else "oneOf"
        common = {key: value for key, value in said.items() if key != keyword}
        written = schemas(said, keyword)
        whole = [self._resolved(both(common, self._restrictions(one)) if common else one) for one in written]
        if keyword == "oneOf":
            check_disjoint(whole)
        objects = [one for one in whole if is_object(one)]
        ways = []
        for one, schema in zip(whole, written, strict=True):
            if len(objects) > 1 and is_object(one):
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
        texts = list(dict.fromkeys(json_text(value) for value in values if not isinstance(value, list | dict)))
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
                parts = [f"{key_literal(name)} ws {self._constant(part)}" for name, part in value.items()]
            case list():
                parts = [self._constant(part) for part in value]
            case _:
                return quoted(json_text(value))
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
            start = common_start(group)
            rest = [text[len(start) :] for text in group]
            ways.append(quoted(start) if len(group) == 1 else f"{quoted(start)} {self._one_of(rest)}")
        return self._rule(" | ".join(ways))

    # --- objects ----------------------------------------------------------------------------------------------------

    def _object(self, said: Schema) -> _Object:
        properties = said.get("properties", {})
        required = said.get("required", [])
        rest = said.get("additionalProperties", not (properties or required))
        rest = None if rest is False else rest
        unnamed = [name for name in dict.fromkeys(required) if name not in properties]
        if unnamed and said.get("additionalProperties") is False:
            raise SchemaInvalid("required names a property that additionalProperties forbids")
        others = True if rest is None else rest
        found = [_Property(name, schema, name in required) for name, schema in properties.items()]
        found += [_Property(name, others, True) for name in unnamed]
        least, most = counts(said, "minProperties", "maxProperties")
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
            own = f"{key_literal(place.name)} {after}"
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
        if any(len(name) > _MAX_KEY or json_text(name) != f'"{name}"' for name in names):
            raise SchemaInvalid("a long property name, or one with escapes, beside additionalProperties")
        value = self._expression(one.rest)
        more = self._times_of_member(names, value, one.most_rest)
        fewer = self._times_of_member(names, value, None if one.most_rest is None else one.most_rest - 1)
        after_key = f'":" ws {value} {fewer}'.rstrip()
        return _Further(f"{self._other_key(names)} {after_key}", more, after_key)

    def _times_of_member(self, names: list[str], value: str, most: int | None) -> str:
        more = self._rule(f'"," ws {self._other_key(names)} ":" ws {value}')
        return times(more, 0, most, 0)

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
        ways = [f"{key_literal(heads[0].name)} ws {values[0] if len(values) == 1 else self._rule(' | '.join(values))}"]
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
        least, most = counts(said, "minItems", "maxItems")
        unique = said.get("uniqueItems", False)
        if unique and (most is None or most > 1):
            raise SchemaInvalid("uniqueItems is not supported")
        first = schemas(said, "prefixItems") if "prefixItems" in said else []
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
            return self._rule(f'"[" ws {inside} {times(more, least - len(parts), most, len(parts))} ws "]"')
        inside = f"{item} {times(more, least - 1, most, 1)} ws".replace("  ", " ")
        return self._rule(f'"[" ws {inside} "]"' if least else f'"[" ws ({inside})? "]"')

    def _string(self, said: Schema) -> str:
        least, most = counts(said, "minLength", "maxLength")
        form = said.get("format")
        form = None if form in LOOSE_STRINGS else form
        if form is not None and form not in FORMATS:
            raise SchemaInvalid(f"the format {printable(form[:64])} is not supported")
        pattern = said.get("pattern")
        if pattern is None and form is None:
            if (least, most) == (0, None):
                return "string"
            return self._rule(f'"\\"" {times("char", least, most, 0)} "\\""'.replace("  ", " "))
        if pattern is not None and form is not None:
            raise SchemaInvalid("pattern beside format is not supported")
        text = self._text(FORMATS[form] if pattern is None and form else pattern or "")
        if text.least < least or (most is not None and (text.most is None or text.most > most)):
            raise SchemaInvalid("minLength or maxLength inside of what pattern or format allows is not supported")
        return self._rule(f'"\\"" {text.gbnf} "\\""')

    def _text(self, pattern: str) -> Text:
        if pattern not in self._texts:
            try:
                self._texts[pattern] = translate(pattern)
            except PatternInvalid as error:
                raise SchemaInvalid(f"pattern: {error}") from None
        return self._texts[pattern]

    def _number(self, kind: str, said: Schema) -> str:
        form = said.get("format")
        if form is not None and form not in LOOSE_FORMATS["integer"] | LOOSE_FORMATS["number"]:
            raise SchemaInvalid(f"the format {printable(form[:64])} is not supported")
        bounds = bounds_of(said, INTEGER_FORMATS.get(form or ""))
        multiple = said.get("multipleOf", 1)
        if multiple != int(multiple) or multiple < 1:
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
