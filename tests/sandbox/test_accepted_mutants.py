"""What the validator lets through is loaded in the real sandbox: it works, is refused, or dies there and nowhere else.

``FUZZ_LOADS=1000`` loads so many; the seed moves with ``FUZZ_SEED``.
"""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from appliance.core.values import Message, Sampling
from appliance.ipc.messages import (
    LoadFailed,
    Ready,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Submit,
)
from appliance.models.store import check_name
from appliance.runner import main as runner_main
from appliance.warden.launch_spawn import LaunchedRunner
from tests.support.appliance import TestAppliance
from tests.support.chain_model import chain_model
from tests.support.gguf_fuzzer import accepted_mutants
from tests.support.live_runner import launched, load, receive, send, within_limit

LOADS = int(os.environ.get("FUZZ_LOADS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
DEADLINE_SECONDS = 20.0
THROUGH_AN_APPLIANCE = 16

QUESTION = Submit(
    request_id="q",
    messages=(Message(role="user", content="hello"),),
    sampling=Sampling(temperature=0.0),
    max_prompt_tokens=200,
    max_completion_tokens=16,
    cache_partition="",
)
OK, REFUSED, DIED, DEADLINE = "ok", "refused", "died", "killed at the deadline"


async def outcome(model: Path) -> tuple[str, str]:
    """One of the four, and a detail. Anything else, a frame that is not one for instance, raises."""
    async with launched() as runner:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                first = await load(runner, model)
                if isinstance(first, LoadFailed):
                    if first.reason == "layer-missing":
                        pytest.skip(first.detail)
                    assert await runner.wait() == runner_main.EXIT_LOAD_FAILED
                    return REFUSED, first.reason
                if first is None:
                    return await _death(runner)
                assert isinstance(first, Ready), first
                return await _answer(runner)
        except TimeoutError:
            runner.kill()
            return DEADLINE, f"after {DEADLINE_SECONDS} s"


async def _answer(runner: LaunchedRunner) -> tuple[str, str]:
    send(runner, Reset(nonce="n"))
    assert await receive(runner) == ResetDone(nonce="n")
    with suppress(BrokenPipeError, ConnectionResetError):
        send(runner, QUESTION)
    while True:
        message = await receive(runner)
        if message is None:
            return await _death(runner)
        if isinstance(message, RunnerEnd | RunnerRefused):
            return OK, message.reason
        assert isinstance(message, RunnerStarted | RunnerDelta), message


async def _death(runner: LaunchedRunner) -> tuple[str, str]:
    """By a signal, or by its own hand with the status that says so."""
    status = await runner.wait()
    assert status < 0 or status > 128 or status == runner_main.EXIT_INTERNAL, status
    return DIED, str(status)


@pytest.mark.slow
@pytest.mark.timeout(60 + LOADS * 25)
def test_accepted_mutant_loads_is_refused_or_dies_in_its_sandbox(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    details: Counter[str] = Counter()
    for number, data in islice(accepted_mutants(SEED), LOADS):
        path = tmp_path / f"{SEED}-{number}.gguf"
        path.write_bytes(data)
        what, detail = within_limit(lambda path=path: outcome(path), 2 * DEADLINE_SECONDS)  # type: ignore[misc]
        seen[what] += 1
        details[f"{what}: {detail}"] += 1
        path.unlink()
    print(f"{LOADS} accepted mutants loaded in the sandbox: {dict(seen)}; {dict(details)}")
    assert sum(seen.values()) == LOADS
    assert seen[OK] and seen[REFUSED], "mutants that all end alike test little"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gateway_answers_throughout_while_accepted_mutants_are_loaded(tmp_path: Path) -> None:
    """Signed, imported and asked like any model; after each the sound model still answers."""
    models = {}
    for number, data in islice(accepted_mutants(SEED + 1), THROUGH_AN_APPLIANCE):
        path = tmp_path / f"m{number}.gguf"
        path.write_bytes(data)
        models[check_name(f"mutant-{number}")] = path
    (tmp_path / "a").mkdir()
    one = TestAppliance(tmp_path / "a", {"chain": chain_model(), **models}, "[models]\nmax_loaded = 32\n")
    one.start()
    try:
        token = one.token()
        for name in models:
            answer = one.chat(token, model=name, max_tokens=8)
            assert answer.status in {200, 400, 403, 422, 502, 503, 504}, (name, answer.status, answer.body)
            assert one.chat(token, max_tokens=4).status == 200, name
    finally:
        status = one.stop()
    assert status == 0, one.log
    assert one.verify().verdict == "intact"
