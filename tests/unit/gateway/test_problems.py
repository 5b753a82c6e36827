"""No answer to a refusal says anything but the reason's public text."""

import json
from typing import Any

import pytest

from appliance.core.refusals import Reason, Refused
from appliance.gateway.problems import openai_error, problem, send_refusal
from tests.support.scenario import run

SECRET = "/var/lib/paddock/keys alice 192.0.2.7 Traceback"


def answer(refused: Refused, path: str = "/v1/models", *, close: bool = False) -> tuple[int, dict[bytes, bytes], Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def scenario() -> None:
        await send_refusal(send, refused, path=path, request_id="abc", close=close)

    run(scenario)
    start, body = sent
    assert not body.get("more_body")
    headers = dict(start["headers"])
    assert len(headers) == len(start["headers"])
    assert int(headers[b"content-length"]) == len(body["body"])
    return start["status"], headers, json.loads(body["body"])


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
@pytest.mark.parametrize("path", ["/v1/models", "/other", "/", "/oauth/token"])
def test_detail_never_reaches_the_caller(reason: Reason, path: str) -> None:
    status, headers, body = answer(Refused(reason, SECRET, retry_after_seconds=7), path)
    text = json.dumps(body) + repr(headers)
    assert status == reason.status
    assert not any(word in text for word in SECRET.split())
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"vary"] == b"Authorization"
    assert headers[b"x-request-id"] == b"abc"
    assert headers[b"retry-after"] == b"7"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.FIELD_INVALID, "invalid_request_error"),
        (Reason.PROMPT_TOO_LONG, "invalid_request_error"),
        (Reason.BODY_TOO_LARGE, "invalid_request_error"),
        (Reason.TOKEN_INVALID, "authentication_error"),
        (Reason.POLICY_DENIED, "permission_error"),
        (Reason.MODEL_NOT_FOUND, "not_found_error"),
        (Reason.BUDGET_EXHAUSTED, "rate_limit_error"),
        (Reason.AUDIT_UNAVAILABLE, "api_error"),
        (Reason.RUNNER_LOST, "api_error"),
    ],
)
def test_error_object_is_openais(reason: Reason, kind: str) -> None:
    assert openai_error(Refused(reason, SECRET, param="messages")) == {
        "error": {"message": reason.text, "type": kind, "param": "messages", "code": reason.code}
    }


def test_problem_is_named_and_not_fetched() -> None:
    status, headers, body = answer(Refused(Reason.NOT_FOUND, SECRET), "/other")
    assert headers[b"content-type"] == b"application/problem+json"
    assert (
        body
        == problem(Refused(Reason.NOT_FOUND))
        == {
            "type": "urn:paddock:not-found",
            "title": Reason.NOT_FOUND.text,
            "status": status,
        }
    )


@pytest.mark.parametrize("path", ["/v1", "/v1x/models", "/V1/models", "/other/v1/", "/oauth", "/oauth/token/x"])
def test_only_paths_below_v1_get_openais_shape(path: str) -> None:
    assert answer(Refused(Reason.NOT_FOUND), path)[1][b"content-type"] == b"application/problem+json"


def test_405_names_the_right_methods_in_the_header_only() -> None:
    _status, headers, body = answer(Refused(Reason.METHOD_NOT_ALLOWED, param="GET, HEAD"))
    assert headers[b"allow"] == b"GET, HEAD"
    assert body["error"]["param"] is None


@pytest.mark.parametrize("seconds", [0, -5])
def test_retry_time_is_never_below_one_second(seconds: int) -> None:
    headers = answer(Refused(Reason.RATE_LIMITED, retry_after_seconds=seconds))[1]
    assert headers[b"retry-after"] == b"1"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_how_many_are_ahead_is_told_where_somebody_is(path: str) -> None:
    body = answer(Refused(Reason.OVERLOADED, retry_after_seconds=9, ahead=0), path)[2]
    assert body.get("error", body)["ahead"] == 0
    body = answer(Refused(Reason.OVERLOADED, retry_after_seconds=9), path)[2]
    assert "ahead" not in body.get("error", body)


def test_spent_budget_is_not_to_be_retried_by_itself() -> None:
    assert answer(Refused(Reason.BUDGET_EXHAUSTED))[1][b"x-should-retry"] == b"false"
    assert b"x-should-retry" not in answer(Refused(Reason.RATE_LIMITED))[1]


def test_hostile_connection_is_closed() -> None:
    assert answer(Refused(Reason.PATH_INVALID), close=True)[1][b"connection"] == b"close"
    assert b"connection" not in answer(Refused(Reason.PATH_INVALID))[1]
