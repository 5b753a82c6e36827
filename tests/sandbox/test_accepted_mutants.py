"""What the validator lets through is loaded in the real sandbox: it works, is refused, or dies there and nowhere else.

``pytest tests/sandbox/test_accepted_mutants.py --mutants 1000 --mutant-seed 7`` loads more, and others.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from appliance.core.values import Message, Sampling
from appliance.ipc.messages import (
    Conversation,
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
from tests.support.appliance import Answer, TestAppliance, appliance
from tests.support.chain_model import chain_model
from tests.support.gguf_fuzzer import accepted_mutants
from tests.support.live_runner import launched, load, receive, send, within_limit

LOADS = 60
THROUGH_AN_APPLIANCE = 16
DEADLINE_SECONDS = 20.0
MODELS_AT_ONCE = 24
CONFIG = f"""\
[models]
max_loaded = {MODELS_AT_ONCE + 1}
load_timeout_seconds = 30
[limits]
address_requests_per_minute = 1_000_000
principal_requests_per_minute = 1_000_000
budget_tokens = 1_000_000_000
"""

QUESTION = Submit(
    request_id="q",
    prompt=Conversation(messages=(Message(role="user", content="hello"),)),
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


def chosen(request: pytest.FixtureRequest, usual: int) -> tuple[int, int]:
    """How many mutants, and their seed. The options exist only when the path of these tests is given."""
    return request.config.getoption("--mutants", 0) or usual, request.config.getoption("--mutant-seed", 1)


@pytest.mark.slow
@pytest.mark.timeout(0)  # each load has its own
def test_accepted_mutant_loads_is_refused_or_dies_in_its_sandbox(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seen: Counter[str] = Counter()
    details: Counter[str] = Counter()
    loads, seed = chosen(request, LOADS)
    for number, data in islice(accepted_mutants(seed), loads):
        path = tmp_path / f"{seed}-{number}.gguf"
        path.write_bytes(data)
        what, detail = within_limit(lambda path=path: outcome(path), 2 * DEADLINE_SECONDS)  # type: ignore[misc]
        seen[what] += 1
        details[f"{what}: {detail}"] += 1
        path.unlink()
    print(f"{loads} accepted mutants loaded in the sandbox: {dict(seen)}; {dict(details)}")
    assert sum(seen.values()) == loads
    assert seen[OK] and seen[REFUSED], "mutants that all end alike test little"


# --- through a whole appliance ----------------------------------------------------------------------------------------

NOT_OK = {
    "prompt-too-long": "refused by its context",
    "runner-unavailable": "not loaded, or died while loading",
    "runner-lost": "died while answering",
    "runner-error": "failed while answering",
    "request-timeout": "killed at the deadline",
}
"""What a caller may be told of a mutant. Anything else (unverified, internal, busy) would be a gateway's fault."""


def told(answer: Answer) -> str:
    """``ok``, or the code of the refusal, before the answer began or in the midst of its stream."""
    if answer.status != 200:
        return answer.json()["error"]["code"]
    if "text/event-stream" not in answer.headers.get("Content-Type", ""):
        assert answer.json()["choices"]
        return "ok"
    events = [event.removeprefix(b"data: ") for event in answer.body.split(b"\n\n") if event.startswith(b"data: ")]
    assert events, answer.body
    last = json.loads(events[-1]) if events[-1] != b"[DONE]" else {}
    return last["error"]["code"] if "error" in last else "ok"


def control_seconds(one: TestAppliance, token: str) -> tuple[float, float]:
    """The gateway lists its models, and the sound one answers. Returns how long each took."""
    start = time.monotonic()
    assert one.request("GET", "/v1/models", token=token).status == 200
    listed = time.monotonic()
    assert one.chat(token, max_tokens=2).status == 200
    return listed - start, time.monotonic() - listed


def ask_beside_controls(one: TestAppliance, models: dict[str, Path]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Each mutant is asked by one caller while another does not stop asking for what works."""
    token = one.token()
    assert one.chat(token, max_tokens=2).status == 200
    with ThreadPoolExecutor(1) as caller:
        for number, name in enumerate(models):
            asked = caller.submit(one.chat, token, model=name, max_tokens=8, stream=number % 2 == 1)
            controls = [control_seconds(one, token)]
            while not asked.done():
                controls.append(control_seconds(one, token))
            yield told(asked.result()), controls


@pytest.mark.slow
@pytest.mark.timeout(0)  # each request has its own
def test_gateway_answers_throughout_while_accepted_mutants_are_loaded(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Signed, imported and asked like any model: answered, refused, or dead in the sandbox; never more than itself."""
    seen: Counter[str] = Counter()
    controls: list[tuple[float, float]] = []
    n_models, seed = chosen(request, THROUGH_AN_APPLIANCE)
    mutants = islice(accepted_mutants(seed + 1), n_models)
    while batch := list(islice(mutants, MODELS_AT_ONCE)):
        place = tmp_path / f"from-{batch[0][0]}"
        place.mkdir()
        models = {check_name(f"mutant-{number}"): place / f"m{number}.gguf" for number, _data in batch}
        for path, (_number, data) in zip(models.values(), batch, strict=True):
            path.write_bytes(data)
        with appliance(place, {"chain": chain_model(), **models}, CONFIG) as one:  # at its end the log is verified
            gateway_pid = one.pid_of("gateway")
            for code, beside in ask_beside_controls(one, models):
                seen[code] += 1
                controls += beside
            assert one.pid_of("gateway") == gateway_pid
    lists, answers = (sorted(seconds) for seconds in zip(*controls, strict=True))
    print(
        f"{n_models} accepted mutants asked through the gateway: {dict(seen)}; {len(controls)} control requests beside "
        f"them, all answered: list {lists[-1]:.2f} s at most, {answers[len(answers) // 2]:.3f} s in the median for an "
        f"answer, {answers[-1]:.2f} s at most, {sum(seconds > 1 for seconds in answers)} over 1 s"
    )
    assert sum(seen.values()) == n_models
    assert set(seen) <= {"ok", *NOT_OK}, seen
    assert seen["ok"] and len(seen) > 1, "mutants that all end alike test little"
