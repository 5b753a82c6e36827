"""``GET /metrics`` of a running appliance: numbers of a real runner, for those whom policy names, and nobody else."""

import os
import re
import signal
from collections.abc import Iterator

import pytest

from appliance.core.records import Opened, RefusedRequest
from tests.support.appliance import GROUP, TestAppliance, appliance
from tests.support.chain_model import chain_model

WATCH = "watch"
SECRET = "a-word-of-nobody-else"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("metrics"), {"chain": chain_model()}) as one:
        one.write_policy_data({"groups": {GROUP: {"models": ["*"], "max_tokens": 100}}, "metrics": {"groups": [WATCH]}})
        one.wait_until(lambda: read(one) is not None, "the policy that lets somebody read")
        yield one


def read(server: TestAppliance, subject: str = "prometheus") -> str | None:
    answer = server.request("GET", "/metrics", token=server.token(subject, (WATCH,)))
    if answer.status != 200:
        return None
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.body.decode()


def number(page: str, series: str) -> float:
    """Of the one series whose name and labels begin so; 0 where there is none."""
    found = re.findall(rf"^{re.escape(series)}(?:\{{[^}}\n]*\}})? (\S+)$", page, re.MULTILINE)
    assert len(found) <= 1
    return float(found[0]) if found else 0.0


def page_for(server: TestAppliance, subject: str = "prometheus") -> str:
    page = read(server, subject)
    assert page is not None
    return page


def test_tokens_and_time_to_first_token_of_a_chat_are_told_and_nothing_of_its_text_or_caller(
    server: TestAppliance,
) -> None:
    before = page_for(server)
    answer = server.chat(server.token("alice"), SECRET, max_tokens=5)
    assert answer.status == 200
    usage = answer.json()["usage"]
    page = page_for(server)

    def grown(name: str) -> float:
        return number(page, f"paddock_runner_{name}") - number(before, f"paddock_runner_{name}")

    assert grown("answer_tokens_total") == usage["completion_tokens"] == 5
    assert grown("prompt_tokens_total") + grown("cached_tokens_total") == usage["prompt_tokens"]
    assert grown("first_token_seconds_count") == grown("queue_seconds_count") == 1
    assert 0 < grown("first_token_seconds_sum") < 60
    assert grown("step_seconds_count") >= 5
    assert 0 < number(page, "paddock_runner_kv_used_cells") <= number(page, "paddock_runner_kv_cells")
    assert number(page, "paddock_runner_busy_slots") == 0
    assert number(page, 'paddock_runners{state="answered"}') == 1
    opened = server.records(Opened)[-1]
    assert f'{{model="chain",digest="{opened.model.digest.hex[:12]}"}}' in page
    for secret in (SECRET, "alice", GROUP, WATCH, "prometheus", opened.actor.key, opened.request_id):
        assert secret not in page


@pytest.mark.parametrize(
    ("groups", "models"), [((GROUP,), ("*",)), ((), ("*",)), ((WATCH,), ("chain",))], ids=["staff", "none", "confined"]
)
def test_caller_without_the_right_gets_403_and_a_record(
    server: TestAppliance, groups: tuple[str, ...], models: tuple[str, ...]
) -> None:
    before = len(server.records(RefusedRequest))
    denied = 'paddock_refusals_total{reason="policy-denied"}'
    count = number(page_for(server), denied)
    answer = server.request("GET", "/metrics", token=server.token("mallory", groups, models))
    assert answer.status == 403
    assert b"paddock_" not in answer.body
    (record,) = server.records(RefusedRequest)[before:]
    assert (record.actor.subject, record.route, record.reason) == ("mallory", "/metrics", "policy-denied")
    assert record.decision is not None and not record.decision.allow
    assert number(page_for(server), denied) == count + 1


def test_right_to_read_is_no_right_to_ask(server: TestAppliance) -> None:
    token = server.token("prometheus", (WATCH,))
    assert server.chat(token).status == 404
    assert server.request("GET", "/v1/models", token=token).json()["data"] == []
    assert server.request("POST", "/metrics", token=token, body={}).status == 405


def test_runner_that_hangs_is_left_out(server: TestAppliance) -> None:
    assert server.chat(server.token("bob"), max_tokens=1).status == 200
    pid = server.pid_of("runner")
    os.kill(pid, signal.SIGSTOP)
    try:
        page = page_for(server)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert number(page, 'paddock_runners{state="silent"}') == 1
    assert "paddock_runner_slots{" not in page
    server.wait_until(lambda: "paddock_runner_slots{" in (read(server) or ""), "the runner's late answer")
