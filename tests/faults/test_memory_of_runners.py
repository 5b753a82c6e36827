"""Three models and memory for two, with the whole appliance: nobody overcommits it, and what dies gives it back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.core.records import ModelLoaded, RunnerEnded, RunnerNotStarted
from appliance.settings import child_environment
from tests.support.appliance import TestAppliance, appliance
from tests.support.chain_model import chain_model

MIB = 2**20
NAMES = ("a", "b", "c")
SCRIPTS = {name: f"This is what {name} says." for name in NAMES}
CONFIG = f"""
[models]
max_loaded = 8
threads = 1
memory_bytes = {340 * MIB}
[model.large]
context_tokens = 32768
slots = 64
[model.b]
kv_type = "q8_0"
[model.c]
keep_alive_seconds = 0
[model.unheard-of]
slots = 1
[limits]
principal_requests_per_minute = 1000
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestAppliance]:
    models = {name: chain_model(text) for name, text in SCRIPTS.items()}
    with appliance(tmp_path, models | {"large": chain_model()}, CONFIG) as one:
        yield one


def status(server: TestAppliance) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-m", "appliance", "status", "--config", str(server.config_file), "--json"],
        check=True,
        capture_output=True,
        timeout=60,
        env=child_environment(),
    )
    return json.loads(done.stdout)


def test_memory_is_never_promised_twice_and_comes_back(server: TestAppliance) -> None:
    tokens = {name: [server.token(f"{name}-{number}") for number in range(4)] for name in NAMES}

    def ask(number: int) -> tuple[str, Any]:
        name = NAMES[number % 3]
        return name, server.chat(tokens[name][number % 4], model=name)

    with ThreadPoolExecutor(32) as callers:
        answers = list(callers.map(ask, range(100)))
    assert {answer.status for _, answer in answers} <= {200, 429, 503}
    for name, answer in answers:
        if answer.status == 200:
            assert answer.json()["choices"][0]["message"]["content"] == SCRIPTS[name]
        elif answer.status == 503:
            assert int(answer.headers["Retry-After"]) > 0
    told = status(server)
    loaded = {one["model"]["name"]: one for one in told["loaded"]}
    assert 1 <= len(loaded) <= 2
    assert told["memory"]["planned_bytes"] <= told["memory"]["budget_bytes"] == 340 * MIB
    for name, one in loaded.items():
        plan = one["plan"]
        private = sum(plan.values()) - plan["weights"]
        assert 0 < one["taken"]["private_bytes"] <= private
        assert one["options"]["kv_type"] == ("q8_0" if name == "b" else "f16")

    for name in set(NAMES) - loaded.keys():  # no place, and soon there is one
        assert server.chat(tokens[name][0], model=name).status in {200, 503}
    os.kill(server.pid_of("runner"), signal.SIGKILL)
    server.wait_until(lambda: len(server.records(RunnerEnded)) > 0, "the end of the runner that was killed")

    assert server.chat(tokens["a"][0], model="large").status == 503
    told = status(server)
    [large] = [one for one in told["planned"] if one["name"] == "large"]
    assert "it needs" in large["unfit"]
    assert [failed["name"] for failed in told["failed"]] == ["large"]
    assert [record.model.name for record in server.records(RunnerNotStarted)] == ["large"]
    assert "large" not in {record.model.name for record in server.records(ModelLoaded)}
    assert "not in the store: unheard-of" in server.log

    # The one that is not kept gives its place to others; it is loaded at some time after the others have gone.
    server.wait_until(lambda: server.chat(server.token("patient"), model="c").status == 200, "a place for c")
    server.wait_until(
        lambda: any("idle" in record.detail for record in server.records(RunnerEnded)), "the end of an idle runner"
    )
