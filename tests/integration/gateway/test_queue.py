"""Who waits for a slot is told where, in a running appliance; and learns of the others how many, and nothing else."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.appliance import GROUP, Answer, TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model, long_script

WATCH = "watch"
CONFIG = """
queue_timeout_seconds = 6
[model.chain]
slots = 1
context_tokens = 32768
"""
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("queue"), {"chain": chain_model(long_script(500))}, CONFIG) as one:
        groups = {GROUP: {"models": ["*"], "max_tokens": 100_000}}
        one.write_policy_data({"groups": groups, "metrics": {"groups": [WATCH]}})
        one.wait_until(lambda: one.chat(one.token("first"), max_tokens=1).status == 200, "a loaded model")
        one.wait_until(lambda: _metrics(one) is not None, "the policy that lets somebody read")
        yield one


def _metrics(server: TestAppliance) -> str | None:
    answer = server.request("GET", "/metrics", token=server.token("prometheus", (WATCH,)))
    return answer.body.decode() if answer.status == 200 else None


def wait_for_waiting(server: TestAppliance, number: int) -> None:
    def waits() -> bool:
        page = _metrics(server) or ""
        return any(
            line.startswith("paddock_runner_waiting{") and line.endswith(f" {number}") for line in page.split("\n")
        )

    server.wait_until(waits, f"{number} answers that wait")


@contextmanager
def held_slot(server: TestAppliance) -> Iterator[tuple[str | None, str | None]]:
    """The one slot is taken; gives its holder's own headers."""
    body = chat_body(stream=True, ignore_eos=True, max_tokens=30_000)
    with server.open_request("POST", CHAT, token=server.token("holder"), body=body) as response:
        assert response.status == 200
        yield response.getheader("X-Paddock-Queue-Position"), response.getheader("X-Paddock-Queue-Ms")


class Caller(threading.Thread):
    """One request, on a connection of its own."""

    def __init__(self, server: TestAppliance, subject: str, *, stream: bool) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: server.chat(server.token(subject), max_tokens=2, stream=stream)
        self._answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self._answer = self._ask()

    def answer(self) -> Answer:
        self.join(60)
        assert self._answer is not None
        return self._answer


def test_answers_that_waited_say_where_and_how_long(server: TestAppliance) -> None:
    callers = []
    with held_slot(server) as (position, queued_ms):
        assert (position, int(queued_ms or -1) >= 0) == ("0", True)
        for subject, stream in (("bob", True), ("bob", False), ("carol", False)):
            callers.append(Caller(server, subject, stream=stream))
            wait_for_waiting(server, len(callers))
    answers = [caller.answer() for caller in callers]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.headers["X-Paddock-Queue-Position"] for answer in answers] == ["1", "2", "2"]
    assert all(int(answer.headers["X-Paddock-Queue-Ms"]) > 0 for answer in answers)


def test_refusal_says_how_many_are_before_and_when_to_come_back(server: TestAppliance) -> None:
    with held_slot(server):
        answer = Caller(server, "dave", stream=True).answer()
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    error = json.loads(answer.body)["error"]
    assert (error["code"], error["ahead"]) == ("overloaded", 0)
    assert not any(word in answer.body.decode() + str(answer.headers) for word in ("holder", "slots", "requests wait"))
