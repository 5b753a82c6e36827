"""What one tenant, or an operator who withdraws trust, does to a runner that others use: the whole appliance."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.core.records import Closed, ModelLoaded, Opened, RunnerEnded
from tests.support.appliance import TestAppliance, appliance
from tests.support.chain_model import chain_model

CONFIG = "[models]\ncontext_tokens = 32768\n[limits]\nbudget_tokens = 100_000_000\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestAppliance]:
    with appliance(tmp_path, {"chain": chain_model()}, CONFIG) as one:
        yield one


def test_prompts_that_are_refused_hold_up_nobody(server: TestAppliance) -> None:
    """Each took 19 seconds of the runner's one thread for everybody, and four of them its life."""
    bob = server.token("bob")
    others = [server.token(f"alice-{number}") for number in range(4)]
    assert server.chat(bob, max_tokens=1).status == 200
    runner = server.pid_of("runner")
    with ThreadPoolExecutor(4) as callers:
        prompts = [callers.submit(server.chat, each, " " * 250_000, max_tokens=1) for each in others]
        waited = []
        while not all(prompt.done() for prompt in prompts) or len(waited) < 3:
            before = time.monotonic()
            assert server.chat(bob, max_tokens=1).status == 200
            waited.append(time.monotonic() - before)
        refused = [prompt.result() for prompt in prompts]
    assert {(each.status, each.json()["error"]["code"]) for each in refused} == {(400, "prompt-too-long")}
    assert max(waited) < 5
    assert server.pid_of("runner") == runner
    assert server.records(RunnerEnded) == []


def test_runner_ends_when_its_signer_is_trusted_no_more(server: TestAppliance) -> None:
    token = server.token()
    assert server.chat(token, max_tokens=1).status == 200
    keys = {path: path.read_bytes() for path in server.config.trust_dir.iterdir()}
    for path in keys:
        path.unlink()
    withdrawn = time.monotonic()
    server.wait_until(lambda: server.records(RunnerEnded) != [], "the runner's end")
    assert time.monotonic() - withdrawn < 5 + 1  # and the time that reading the log takes
    assert "trusted no more" in server.records(RunnerEnded)[0].detail
    assert server.chat(token, max_tokens=1).status in {404, 503}
    for path, data in keys.items():
        path.write_bytes(data)
    server.wait_until(lambda: server.chat(token, max_tokens=1).status == 200, "an answer once it is trusted again")


def test_removed_model_does_not_go_on_answering(server: TestAppliance) -> None:
    token = server.token()
    assert server.chat(token, max_tokens=1).status == 200
    (server.config.models_dir / "models" / "chain.json").unlink()
    server.wait_until(lambda: server.records(RunnerEnded) != [], "the runner's end")
    server.wait_until(lambda: server.chat(token, max_tokens=1).status == 404, "the model is gone")


def test_answers_name_the_model_that_was_loaded_for_them(server: TestAppliance) -> None:
    """One file under two names; the log must say of each answer which of them it was."""
    server.import_model("twin", chain_model())
    token = server.token()
    server.wait_until(lambda: server.chat(token, model="twin", max_tokens=1).status == 200, "the twin")
    assert server.chat(token, model="chain", max_tokens=1).status == 200
    loaded = {record.runner.runner_id: record.model for record in server.records(ModelLoaded)}
    opened = server.records(Opened)
    assert {record.model.name for record in opened} == {"chain", "twin"}
    assert all(loaded[record.runner.runner_id] == record.model for record in opened)
    server.wait_until(lambda: len(server.records(Closed)) == len(opened), "all closed")
