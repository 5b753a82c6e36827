"""kill -9 of each process in the middle of a stream, and a caller who leaves: how each must end."""

import json
import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from appliance.core.records import Closed, Opened, RunnerEnded
from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model, long_script

WORDS = 3000
CONFIG = "[models]\ncontext_tokens = 8192\ndefault_max_tokens = 4000\nthreads = 1\n[limits]\nbudget_tokens = 100000\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestAppliance]:
    with appliance(tmp_path, {"chain": chain_model(long_script(WORDS))}, CONFIG) as one:
        yield one


def stream_and(server: TestAppliance, act: Callable[[], None]) -> tuple[str, list[bytes], bool]:
    """Streams an answer and acts after its first words. Returns the request id, the events, whether it broke off."""
    events: list[bytes] = []
    acted = broken = False
    body = chat_body(stream=True)
    with server.open_request("POST", "/v1/chat/completions", token=server.token(), body=body) as answer:
        assert answer.status == 200
        request_id = answer.headers["x-request-id"]
        try:
            for line in answer:
                if line.startswith(b"data: "):
                    events.append(line.removeprefix(b"data: ").strip())
                if not acted and b'"content":"w' in line:
                    acted = True
                    act()
        except (OSError, HTTPException):
            broken = True
    assert acted
    return request_id, events, broken


def closed_record(server: TestAppliance, request_id: str) -> Closed:
    def found() -> bool:
        with suppress(Exception):
            return any(record.request_id == request_id for record in server.records(Closed))
        return False

    server.wait_until(found, "the closed record")
    (record,) = [record for record in server.records(Closed) if record.request_id == request_id]
    return record


def assert_serves(server: TestAppliance) -> None:
    """The next request is answered, once what was killed is back."""

    def answered() -> bool:
        with suppress(OSError, HTTPException, AssertionError):
            return server.chat(server.token(), max_tokens=5).status == 200
        return False

    server.wait_until(answered, "an answer after the crash")


def assert_log_is_sound(server: TestAppliance) -> None:
    def sound() -> bool:
        return server.verify().verdict == "intact"

    server.wait_until(sound, f"a sound log: {server.verify()}")


def test_killed_runner_ends_the_stream_with_an_error_and_is_replaced(server: TestAppliance) -> None:
    request_id, events, broken = stream_and(server, lambda: server.kill("runner"))
    assert not broken
    assert json.loads(events[-1])["error"]["code"] == "runner-lost"
    assert b"[DONE]" not in events
    closed = closed_record(server, request_id)
    assert closed.outcome == "runner-lost"
    assert 0 < closed.completion_tokens < WORDS
    assert server.chat(server.token(), max_tokens=5).status == 200  # at once, by a new runner
    first, second = (record.runner.runner_id for record in server.records(Opened))
    assert first != second
    server.wait_until(lambda: server.records(RunnerEnded) != [], "the runner's end on record")
    assert_log_is_sound(server)


def test_killed_notary_costs_no_record(server: TestAppliance) -> None:
    request_id, events, broken = stream_and(server, lambda: server.kill("notary"))
    assert not broken
    assert events[-1] == b"[DONE]"  # its opened record was durable, so the answer goes on
    closed = closed_record(server, request_id)
    assert (closed.outcome, closed.completion_tokens) == ("completed", WORDS)
    assert_serves(server)
    assert_log_is_sound(server)


def test_killed_gateway_leaves_a_closed_record(server: TestAppliance) -> None:
    assert server.chat(server.token(), max_tokens=1).status == 200
    runner = server.pid_of("runner")
    request_id, events, broken = stream_and(server, lambda: server.kill("gateway"))
    assert broken or b"[DONE]" not in events
    closed = closed_record(server, request_id)
    assert closed.outcome == "gateway-lost"
    assert_serves(server)
    assert server.pid_of("runner") == runner  # a gateway that restarts costs no reload
    assert_log_is_sound(server)


@pytest.mark.parametrize("victim", ["warden", "starter"])
def test_killed_warden_or_starter_takes_the_runners_along_and_comes_back(server: TestAppliance, victim: str) -> None:
    family: list[int] = []

    def kill() -> None:
        family.extend(os.pidfd_open(server.pid_of(role)) for role in ("warden", "starter", "runner"))
        server.kill(victim)

    request_id, events, _broken = stream_and(server, kill)
    assert json.loads(events[-1])["error"]["code"] == "runner-lost"
    assert closed_record(server, request_id).outcome == "runner-lost"
    for pidfd in family:
        assert select.select([pidfd], [], [], LIMIT_SECONDS)[0], "one of the three lives on"
        os.close(pidfd)
    assert_serves(server)
    assert_log_is_sound(server)


def test_caller_who_leaves_stops_the_generation_and_gets_the_rest_back(server: TestAppliance) -> None:
    body = chat_body(stream=True)
    with server.open_request("POST", "/v1/chat/completions", token=server.token(), body=body) as answer:
        request_id = answer.headers["x-request-id"]
        answer.read(400)
    closed = closed_record(server, request_id)
    assert closed.outcome == "cancelled"
    assert closed.completion_tokens < WORDS
    (opened,) = server.records(Opened)
    assert closed.returned_tokens == opened.reserved_tokens - closed.prompt_tokens - closed.completion_tokens
