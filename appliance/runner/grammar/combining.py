"""Several JSON Schemas at once: ``allOf`` and references with siblings as one, and ``oneOf`` as ``anyOf``.

Trusts: nothing; the schemas are a caller's.
Promises: exactly what both allow, and branches that no value has in common, or a refusal.
Not here: references (``schema``).
"""

from itertools import combinations
from typing import Any, Final, NamedTuple

from appliance.runner.grammar.keywords import (
    BY_TYPE,
    LOWER,
    UPPER,
    Schema,
    SchemaInvalid,
    json_text,
    listed_values,
    type_of,
    types_of,
)

_MAX_BRANCHES: Final = 40
"""Of ``oneOf``: each is compared with all others."""


def both(one: Schema, other: Schema) -> Schema:
    """A schema that allows what both allow. Raises ``SchemaInvalid`` where that cannot be written as one."""
    closed = any(schema.get("additionalProperties", True) is not True for schema in (one, other))
    if closed and one.get("properties", {}).keys() != other.get("properties", {}).keys() and _about_objects(one, other):
        raise SchemaInvalid("additionalProperties beside other properties of an allOf or a $ref is not supported")
    allowed = dict(one)
    for key, value in other.items():
        allowed[key] = _combined(key, allowed[key], value) if key in allowed else value
    return allowed


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
        types = [kind for kind in types_of({"type": one}) if kind in types_of({"type": other})]
        if types:
            return types
    if key in LOWER | UPPER and all(isinstance(value, int | float) for value in (one, other)):
        return max(one, other) if key in LOWER else min(one, other)
    raise SchemaInvalid(f"two different {key} together are not supported")


def is_object(schema: Schema) -> bool:
    return not schema.keys() & {"anyOf", "oneOf", "enum", "const"} and types_of(schema) == ["object"]


def check_disjoint(schemas: list[Schema]) -> None:
    """``oneOf`` is ``anyOf`` where no two can hold at once. Raises ``SchemaInvalid`` where that is not plain to see."""
    if len(schemas) > _MAX_BRANCHES:
        raise SchemaInvalid(f"oneOf of more than {_MAX_BRANCHES} branches is not supported; anyOf is")
    combined = any(schema.keys() & {"anyOf", "oneOf", "$ref", "allOf"} for schema in schemas)
    branches = [] if combined else [_Branch(schema, _listed(schema), _all_types(schema)) for schema in schemas]
    if combined or not all(_disjoint(one, other) for one, other in combinations(branches, 2)):
        raise SchemaInvalid("oneOf whose branches could hold at once is not supported; anyOf is")


class _Branch(NamedTuple):
    schema: Schema
    values: set[str] | None
    types: set[str]


def _disjoint(one: _Branch, other: _Branch) -> bool:
    if one.values is not None and other.values is not None:
        return not one.values & other.values
    if not one.types & other.types:
        return True
    listed = one.values is not None or other.values is not None
    return one.types == other.types == {"object"} and not listed and _differ(one.schema, other.schema)


def _listed(schema: Schema) -> set[str] | None:
    """The texts of what an ``enum`` or ``const`` lists; numbers that are equal have one text."""
    if not schema.keys() & {"enum", "const"}:
        return None
    return {json_text(int(v) if isinstance(v, float) and v.is_integer() else v) for v in listed_values(schema)}


def _all_types(schema: Schema) -> set[str]:
    if schema.keys() & {"enum", "const"}:
        types = {type_of(value) for value in listed_values(schema)}
    else:
        types = set(types_of(schema)) if "type" in schema else set(BY_TYPE)
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
