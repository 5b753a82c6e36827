"""Refusals as HTTP answers: OpenAI error objects under ``/v1/``, OAuth's at the authorization server's endpoints (RFC
6749), problem details (RFC 9457) elsewhere.

Trusts: ``core.refusals``, whose public texts contain nothing of ours.
Promises: no detail, path, address or stack is ever part of an answer.
Not here: the audit record of a refusal (``pipeline``); challenges (``challenges``).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.core.oauth import PATHS, error_body
from appliance.core.refusals import Reason, Refused
from appliance.gateway.asgi import Send, send_response

SECURE_HEADERS: Mapping[bytes, bytes] = {
    b"cache-control": b"no-store",
    b"vary": b"Authorization",
    b"x-content-type-options": b"nosniff",
}

_PARAM_OF_HEADERS = {Reason.METHOD_NOT_ALLOWED, Reason.SCOPE_MISSING}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


async def send_refusal(
    send: Send, refusal: Refused, *, path: str, request_id: str, challenge: bytes | None = None, close: bool = False
) -> None:
    """One complete error answer, with ``challenge`` as its ``WWW-Authenticate``. With ``close`` the connection ends:
    what else a hostile peer sent is not read."""
    body, content_type = _shaped(refusal, path)
    headers = {**SECURE_HEADERS, b"x-request-id": request_id.encode(), **_extra_headers(refusal)}
    if challenge is not None:
        headers[b"www-authenticate"] = challenge
    if close:
        headers[b"connection"] = b"close"
    await send_response(send, refusal.reason.status, body, content_type=content_type, headers=headers)


def _shaped(refusal: Refused, path: str) -> tuple[bytes, bytes]:
    """The body and its media type."""
    if path in PATHS:
        return error_body(refusal.reason), b"application/json"
    if path.startswith("/v1/"):
        return msgspec.json.encode(openai_error(refusal)), b"application/json"
    return msgspec.json.encode(problem(refusal)), b"application/problem+json"


def openai_error(refusal: Refused) -> dict[str, Any]:
    """The error object that OpenAI's clients read; ``code`` is our closed list's word."""
    status = refusal.reason.status
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {
        "error": {
            "message": refusal.reason.text,
            "type": kind,
            "param": None if refusal.reason in _PARAM_OF_HEADERS else refusal.param,
            "code": refusal.reason.code,
            **_ahead(refusal),
        }
    }


def problem(refusal: Refused) -> dict[str, Any]:
    """RFC 9457: ``type`` is a name, not an address to fetch."""
    reason = refusal.reason
    return {"type": f"urn:paddock:{reason.code}", "title": reason.text, "status": reason.status, **_ahead(refusal)}


def _ahead(refusal: Refused) -> dict[str, int]:
    return {} if refusal.ahead is None else {"ahead": refusal.ahead}


def _extra_headers(refusal: Refused) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    if refusal.retry_after_seconds is not None:
        headers[b"retry-after"] = str(max(1, refusal.retry_after_seconds)).encode()
    if refusal.reason is Reason.BUDGET_EXHAUSTED:  # openai clients would retry a 429 by themselves
        headers[b"x-should-retry"] = b"false"
    if refusal.reason is Reason.METHOD_NOT_ALLOWED:
        headers[b"allow"] = (refusal.param or "GET").encode()
    return headers
