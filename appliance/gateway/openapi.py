"""What the API is, as OpenAPI 3.1 has it: request bodies from the very types that decode them, errors from the reasons.

Trusts: the routes that ``app`` names.
Promises: no field of a request and no reason of a refusal is missing or invented; nothing of this appliance is told,
    neither its models nor its settings.
Not here: who may read it (``pipeline``). What a type cannot say (which fields exclude each other, what the bytes of a
    body may be) is refused all the same, and said in ``docs/api.md``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from appliance.core import oauth
from appliance.core.refusals import Reason
from appliance.gateway.challenges import METADATA_PATH

BODYLESS: Final[Mapping[str, str]] = {
    "/healthz": "Whether the process answers",
    METADATA_PATH: "Where to get a token, where the operator says so (RFC 9728)",
    oauth.METADATA_PATH: "How to get one here, where the operator says so (RFC 8414)",
    "/v1/models": "The models that the token and policy let its holder see",
    "/v1/models/{model_id}": "One of them",
    "/metrics": "Numbers of the whole appliance, for Prometheus",
    "/openapi.json": "This description",
}
"""Routes of ``GET``, with what they answer."""
_OPEN: Final = frozenset({"/healthz", METADATA_PATH, oauth.METADATA_PATH})
"""For which no token is needed."""

_POSTED: Final[Mapping[str, tuple[str, str]]] = {
    "/v1/chat/completions": ("A conversation goes on", "ChatCompletion"),
    "/v1/completions": ("A text or token ids go on", "TextCompletion"),
    "/v1/embeddings": ("Vectors of texts", "VectorList"),
    "/v1/rerank": ("How well documents answer a query", "Ranking"),
    "/rerank": ("How well documents answer a query", "Ranking"),
    "/tokenize": ("The tokens of a text", "TokenList"),
    "/detokenize": ("The text of tokens", "TokenText"),
}
_FORMS: Final[Mapping[str, tuple[str, str, str]]] = {
    "/oauth/token": ("A token for a client, where they are issued here (RFC 6749, RFC 8693)", "grant_type", "Token"),
    "/oauth/revoke": ("A token ends before its time (RFC 7009)", "token", "Nothing"),
    "/oauth/introspect": ("Whether a token is good, and what it says (RFC 7662)", "token", "Introspection"),
}
"""Endpoints of the authorization server, with the one parameter that is always there, and what they answer."""
_STREAMS: Final = frozenset({"ChatCompletion", "TextCompletion"})
_REF: Final = "#/components/schemas/"


def document(version: str, bodies: Mapping[str, type[msgspec.Struct]]) -> bytes:
    """JSON. ``bodies``: route of a ``POST`` -> the type of its body. Raises ``KeyError`` for one that is not known
    here."""
    (references, bodies_by_name) = _schemas(tuple(bodies.values()))
    posts = {path: {"post": _post(path, reference)} for path, reference in zip(bodies, references, strict=True)}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Paddock", "version": version, "license": {"name": "Apache-2.0"}},
            "security": [{"bearer": []}],
            "paths": {
                **{path: {"get": _get(path, text)} for path, text in BODYLESS.items()},
                **{path: {"post": _form(path)} for path in oauth.PATHS},
                **posts,
            },
            "components": {
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                    "client": {"type": "http", "scheme": "basic"},
                },
                "responses": {
                    "oauth": _refusal("OAuthError", "application/json"),
                    "openai": _refusal("OpenAIError", "application/json"),
                    "problem": _refusal("Problem", "application/problem+json"),
                },
                "schemas": {**bodies_by_name, **_ANSWERS},
            },
        }
    )


# --- requests -------------------------------------------------------------------------------------------------------


def _schemas(types: Sequence[type[msgspec.Struct]]) -> tuple[list[Any], dict[str, Any]]:
    """References in the order of the types, and every schema that they lead to, by name."""
    references, components = msgspec.json.schema_components(types, ref_template=_REF + "{name}")
    named = {_public(name): schema for name, schema in components.items()}
    return [_portable(reference) for reference in references], {name: _portable(one) for name, one in named.items()}


def _portable(schema: Any) -> Any:
    """With public names, and patterns whose anchors every dialect of regular expressions knows."""
    match schema:
        case {"$ref": str(reference)}:
            return {"$ref": _REF + _public(reference.removeprefix(_REF))}
        case dict():
            return {key: _spoken(key, value) for key, value in schema.items()}
        case list():
            return [_portable(item) for item in schema]
    return schema


def _spoken(key: str, value: Any) -> Any:
    if key == "pattern" and isinstance(value, str):
        return re.sub(r"\\Z$", "$", re.sub(r"^\\A", "^", value))
    if key == "title" and isinstance(value, str):
        return _public(value)
    if key == "mapping":
        return {tag: _REF + _public(reference.removeprefix(_REF)) for tag, reference in value.items()}
    return _portable(value)


def _public(name: str) -> str:
    return name.lstrip("_")


# --- operations -----------------------------------------------------------------------------------------------------


def _get(path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": _operation_id("get", path), "summary": summary}
    answer = {
        "/healthz": _json("Liveness"),
        METADATA_PATH: _json("ProtectedResource"),
        oauth.METADATA_PATH: _json("AuthorizationServer"),
        "/v1/models": _json("ModelList"),
        "/v1/models/{model_id}": _json("Model"),
        "/metrics": {"text/plain": {"schema": {"type": "string"}}},
        "/openapi.json": _json("Description"),
    }[path]
    if path in _OPEN:
        operation["security"] = []
    if "{model_id}" in path:
        name = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._~:@-]+$"}
        operation["parameters"] = [{"name": "model_id", "in": "path", "required": True, "schema": name}]
    return {**operation, "responses": _responses(path, answer)}


def _post(path: str, reference: dict[str, Any]) -> dict[str, Any]:
    summary, answer = _POSTED[path]
    streamed = {"text/event-stream": {"schema": {"type": "string"}}} if answer in _STREAMS else {}
    return {
        "operationId": _operation_id("post", path),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}},
        "responses": _responses(path, {**_json(answer), **streamed}),
    }


def _form(path: str) -> dict[str, Any]:
    """Which other parameters there are goes by ``grant_type``; those that are not known are passed over (RFC 6749
    section 3.2). A client that does not authenticate itself by Basic does so in the form, or by its certificate."""
    summary, parameter, answer = _FORMS[path]
    content = _object(**{parameter: {"type": "string", "minLength": 1}})
    return {
        "operationId": _operation_id("post", path),
        "summary": summary,
        "security": [{"client": []}, {}],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": content}}},
        "responses": _responses(path, {} if answer == "Nothing" else _json(answer)),
    }


def _operation_id(method: str, path: str) -> str:
    return "_".join([method, *re.findall("[a-z0-9_]+", path)])


def _responses(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Any route may be refused for any reason: what is judged first does not depend on the route."""
    kind = "oauth" if path in oauth.PATHS else "openai" if path.startswith("/v1/") else "problem"
    refusals = {str(status): {"$ref": f"#/components/responses/{kind}"} for status in _statuses()}
    answer = {"description": "The answer", **({"content": content} if content else {})}
    return {"200": answer, **refusals}


def _statuses() -> list[int]:
    return sorted({reason.status for reason in Reason})


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + name}}}


def _refusal(name: str, media_type: str) -> dict[str, Any]:
    told = "; ".join(f"{reason.code} ({reason.status})" for reason in Reason)
    return {"description": told, "content": {media_type: {"schema": {"$ref": _REF + name}}}}


# --- answers --------------------------------------------------------------------------------------------------------


def _object(**properties: Any) -> dict[str, Any]:
    """All of them are there. A client has to let others pass: answers may come to say more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_NUMBER: Final = {"type": "number"}
_USAGE: Final = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)
_COMPLETED: Final = {
    "id": _TEXT,
    "created": _COUNT,
    "model": _TEXT,
    "system_fingerprint": _TEXT,
    "usage": _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
}
_REASON: Final = {"enum": ["stop", "length", "tool_calls"]}
_CODES: Final = {"enum": [reason.code for reason in Reason]}

_ANSWERS: Final[dict[str, Any]] = {
    "Liveness": _object(status={"const": "ok"}),
    "ProtectedResource": _object(resource=_TEXT, bearer_methods_supported=_list(_TEXT)),
    "AuthorizationServer": _object(issuer=_TEXT, token_endpoint=_TEXT, grant_types_supported=_list(_TEXT)),
    "Token": _object(access_token=_TEXT, token_type={"const": "Bearer"}, expires_in=_COUNT),
    "Introspection": _object(active={"type": "boolean"}),
    "Model": _object(
        id=_TEXT,
        object={"const": "model"},
        created=_COUNT,
        owned_by=_TEXT,
        paddock=_object(digest=_TEXT, signer=_TEXT, context_length=_COUNT),
    ),
    "ModelList": _object(object={"const": "list"}, data=_list({"$ref": _REF + "Model"})),
    "Description": _object(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"}),
    "ChatCompletion": _object(
        object={"const": "chat.completion"},
        choices=_list(_object(index=_COUNT, message={"type": "object"}, finish_reason=_REASON)),
        **_COMPLETED,
    ),
    "TextCompletion": _object(
        object={"const": "text_completion"},
        choices=_list(_object(index=_COUNT, text=_TEXT, finish_reason=_REASON)),
        **_COMPLETED,
    ),
    "VectorList": _object(
        object={"const": "list"},
        data=_list(_object(object={"const": "embedding"}, index=_COUNT, embedding={"anyOf": [_list(_NUMBER), _TEXT]})),
        model=_TEXT,
        usage=_USAGE,
    ),
    "Ranking": _object(
        object={"const": "list"},
        model=_TEXT,
        results=_list(_object(index=_COUNT, relevance_score=_NUMBER)),
        usage=_USAGE,
    ),
    "TokenList": _object(tokens=_list(_COUNT), count=_COUNT),
    "TokenText": _object(content=_TEXT, prompt=_TEXT),
    "OpenAIError": _object(error=_object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code=_CODES)),
    "OAuthError": _object(error=_TEXT, error_description=_TEXT),
    "Problem": _object(type={"type": "string", "pattern": "^urn:paddock:"}, title=_TEXT, status=_COUNT),
}
