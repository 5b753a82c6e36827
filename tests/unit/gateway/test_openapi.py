"""The published description leaves out no route, field or refusal, invents none, and says what the decoders do."""

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core import oauth
from appliance.core.refusals import Reason, Refused
from appliance.gateway import openapi
from appliance.gateway.app import BODIES, COMPUTING, GENERATING, build_app
from appliance.gateway.challenges import METADATA_PATH
from tests.fuzz.corpus import SEEDS

DOCUMENT: Any = json.loads(openapi.document("1.2.3", BODIES))
SURFACES = {**GENERATING, **COMPUTING}


def resolved(schema: dict[str, Any]) -> Any:
    if "$ref" not in schema:
        return schema
    place: Any = DOCUMENT
    for name in schema["$ref"].removeprefix("#/").split("/"):
        place = place[name]
    return place


def references(node: Any) -> list[str]:
    match node:
        case {"$ref": str(reference)}:
            return [reference]
        case dict():
            return [reference for value in node.values() for reference in references(value)]
        case list():
            return [reference for value in node for reference in references(value)]
    return []


def validator(path: str) -> jsonschema.Draft202012Validator:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator({**body, "components": DOCUMENT["components"]})


def test_every_route_is_described_and_none_is_invented() -> None:
    app = build_app(pipeline=None, limits=None, metrics=None)  # type: ignore[arg-type]  # no route is called here
    routes = {route.path_format for route in app.routes}
    assert DOCUMENT["paths"].keys() == routes
    for path, operations in DOCUMENT["paths"].items():
        assert operations.keys() == ({"post"} if path in {*BODIES, *oauth.PATHS} else {"get"})


def test_only_the_public_routes_are_described_as_open() -> None:
    open_paths = [
        path
        for path, operations in DOCUMENT["paths"].items()
        for operation in operations.values()
        if operation.get("security", DOCUMENT["security"]) != [{"bearer": []}]
    ]
    assert open_paths == ["/healthz", METADATA_PATH, oauth.METADATA_PATH, *oauth.PATHS]


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_a_body_is_described_and_no_other_is_allowed(path: str) -> None:
    schema = resolved(validator(path).schema)
    fields = msgspec.structs.fields(BODIES[path])
    assert schema["properties"].keys() == {field.encode_name for field in fields}
    assert set(schema["required"]) == {field.encode_name for field in fields if field.required}
    assert schema["additionalProperties"] is False
    assert BODIES[path] is SURFACES[path].wire


def test_every_refusal_is_described_wherever_it_may_come() -> None:
    statuses = {str(reason.status) for reason in Reason}
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            assert operation["responses"].keys() == {"200", *statuses}
            told = resolved(operation["responses"]["404"])
            in_json = path.startswith("/v1/") or path in oauth.PATHS
            expected = "application/json" if in_json else "application/problem+json"
            assert list(told["content"]) == [expected]
            assert all(reason.code in told["description"] for reason in Reason)


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(DOCUMENT):
        assert resolved({"$ref": reference}) is not None
    assert "_" not in {name[0] for name in DOCUMENT["components"]["schemas"]}
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


def test_no_pattern_speaks_a_dialect_of_its_own() -> None:
    text = json.dumps(DOCUMENT)
    assert r"\\A" not in text
    assert r"\\Z" not in text


def accepted(path: str, body: bytes) -> bool:
    try:
        SURFACES[path].decode(body)
    except Refused:
        return False
    return True


@pytest.mark.parametrize("path", BODIES)
def test_what_a_decoder_takes_is_valid_by_the_description(path: str) -> None:
    judge, taken = validator(path), 0
    for seed in SEEDS["bodies"]:
        if accepted(path, seed):
            taken += 1
            judge.validate(json.loads(seed))
    assert taken > 0


_VALUES = (
    st.none() | st.booleans() | st.integers(-2, 3000) | st.sampled_from([0.5, 1e9, "", "a", "auto", [], {}, [1], ["a"]])
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_value_of_a_field_is_taken_against_the_description(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(BODIES)))
    base = json.loads(data.draw(st.sampled_from([seed for seed in SEEDS["bodies"] if accepted(path, seed)])))
    name = data.draw(st.sampled_from([field.encode_name for field in msgspec.structs.fields(BODIES[path])]))
    changed = {**base, name: data.draw(_VALUES)}
    if accepted(path, json.dumps(changed).encode()):
        validator(path).validate(changed)


def test_description_tells_nothing_of_this_appliance() -> None:
    assert openapi.document("1", BODIES) == openapi.document("1", BODIES)
    assert b"/tmp" not in openapi.document("1", BODIES)
    assert b"localhost" not in openapi.document("1", BODIES)
