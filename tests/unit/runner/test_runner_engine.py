"""The engine's thread, without a channel."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.ipc.messages import Load
from appliance.runner.engine.engine import Engine, Event, Job
from tests.support.chain_model import chain_model

TIMEOUT_SECONDS = 30


@pytest.fixture
def engine() -> Iterator[Engine]:
    descriptor = os.open(chain_model(), os.O_RDONLY)
    made = Engine.load(descriptor, Load(runner_id="r", context_tokens=256, slots=1, threads=1))
    os.close(descriptor)
    made.warm_up()
    yield made
    made.close()


def until_ended(engine: Engine, *jobs: Job) -> list[Event]:
    """Submits jobs and waits for the end of the last."""
    events: list[Event] = []
    happened = threading.Event()
    engine.on_events = happened.set
    for job in jobs:
        engine.submit(job)
    while sum(event.ended is not None for event in events) < len(jobs):
        assert happened.wait(TIMEOUT_SECONDS)
        happened.clear()
        events += engine.take_events()
    return events


def job(request_id: str, **named: object) -> Job:
    return Job(request_id, np.full(50, 100, np.int32), Sampling(temperature=0.0), 5, **named)  # type: ignore[arg-type]


def test_figures_tell_what_was_done_and_nothing_of_whom(engine: Engine) -> None:
    first, second = job("a", partition="one", principal="p"), job("b", partition="one", principal="p")
    until_ended(engine, first, second)
    assert (first.cached_tokens, second.cached_tokens) == (0, 49)
    figures = engine.figures()
    assert (figures.prompt_tokens, figures.cached_tokens, figures.answer_tokens) == (51, 49, 10)
    assert 0 < figures.first_token_seconds <= 2 * figures.step_seconds + figures.queue_seconds + TIMEOUT_SECONDS
    assert figures.step_seconds > 0
    assert all(isinstance(getattr(figures, name), int | float) for name in figures.__struct_fields__)


def test_wait_without_an_end_in_sight_is_refused(engine: Engine) -> None:
    """A millisecond in the queue behind one that takes a hundred steps."""
    running = Job("a", np.full(50, 100, np.int32), Sampling(temperature=0.0, seed=1), 200, principal="p")
    events = until_ended(engine, running, job("b", queue_ms=1, principal="p"))
    [refused] = [event for event in events if event.refused]
    assert (refused.job.request_id, refused.refused) == ("b", "queue-timeout")
