"""Budgets under parallel requests, through the whole gate."""

import asyncio
from collections import Counter
from pathlib import Path

from appliance.core.records import Closed, Opened
from tests.support.appliance import TestAppliance, appliance
from tests.support.chain_model import chain_model

LIMIT_TOKENS = 2000
REQUESTS = 100


async def _all_at_once(server: TestAppliance, token: str) -> Counter[int]:
    def one() -> int:
        return server.chat(token, max_tokens=4).status

    return Counter(await asyncio.gather(*(asyncio.to_thread(one) for _ in range(REQUESTS))))


def test_hundred_parallel_requests_cannot_overshoot_the_budget(tmp_path: Path) -> None:
    extra = (
        f"[limits]\nbudget_tokens = {LIMIT_TOKENS}\nprincipal_requests_per_minute = 1000\nconcurrent_requests = 100\n"
    )
    with appliance(tmp_path, {"chain": chain_model()}, extra) as server:
        assert server.chat(server.token("warm-up"), max_tokens=1).status == 200
        statuses = asyncio.run(_all_at_once(server, server.token("spender")))
        assert set(statuses) == {200, 429}
        assert sum(statuses.values()) == REQUESTS
        opened = {record.request_id for record in server.records(Opened) if record.actor.subject == "spender"}
        assert len(opened) == statuses[200]
        server.wait_until(
            lambda: opened <= {record.request_id for record in server.records(Closed)}, "all closed records"
        )
        spent = sum(
            record.prompt_tokens + record.completion_tokens
            for record in server.records(Closed)
            if record.request_id in opened
        )
        assert spent <= LIMIT_TOKENS


def test_rate_of_a_principal_is_limited_with_a_retry_time(tmp_path: Path) -> None:
    extra = "[limits]\nprincipal_requests_per_minute = 3\n"
    with appliance(tmp_path, {"chain": chain_model()}, extra) as server:
        token = server.token("hasty")
        statuses = [server.chat(token, max_tokens=1).status for _ in range(3)]
        answer = server.chat(token, max_tokens=1)
        assert statuses == [200, 200, 200]
        assert (answer.status, answer.json()["error"]["code"]) == (429, "rate-limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert server.chat(server.token("another"), max_tokens=1).status == 200


def test_address_is_limited_before_anybody_is_identified(tmp_path: Path) -> None:
    extra = "[limits]\naddress_requests_per_minute = 40\n"
    with appliance(tmp_path, {"chain": chain_model()}, extra) as server:
        answers = [server.request("GET", "/v1/models", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(45)]
        assert answers[-1].status == 429
        assert answers[-1].json()["error"]["code"] == "address-rate-limited"
