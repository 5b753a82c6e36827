"""Speculation in the real runner: under both filters, over its channel."""

from pathlib import Path

import pytest

from appliance.core.values import EngineFigures, GbnfGrammar, Sampling
from appliance.ipc.messages import AskFigures, Figures, LoadFailed, TokenPrompt
from tests.support.chain_model import chain_model, long_script
from tests.support.runner_client import GREEDY, Answer, RunnerClient, sandboxed_runner

WORDS = 150
FIRST_WORD = 5 + 256
RECITED = TokenPrompt(ids=(*range(FIRST_WORD, FIRST_WORD + WORDS), 100))
"""The script, which is also the answer."""


@pytest.fixture(scope="module")
def model() -> Path:
    return chain_model(long_script(WORDS))


def figures(runner: RunnerClient) -> EngineFigures:
    runner.send(AskFigures(call=1))
    while not isinstance(said := runner.receive(), Figures):
        pass
    return said.figures


def asked(runner: RunnerClient) -> list[Answer]:
    """All at once; one is cancelled in the middle and one has two choices."""
    runner.submit("whole", RECITED)
    runner.submit("stopped", RECITED, sampling=Sampling(temperature=0.0, stop=("w40", "w9 w1x")))
    runner.submit("cut", RECITED, max_completion_tokens=23)
    runner.submit("two", RECITED, choices=2, sampling=Sampling(seed=3, logprobs=1), cache_partition="p")
    runner.submit("formed", RECITED, constraint=GbnfGrammar(text='root ::= ("w" [0-9]+ " "?){1,30}'))
    runner.submit("gone", RECITED)
    runner.wait_for_first_delta("gone")
    runner.cancel("gone")
    answers = runner.wait_for("whole", "stopped", "cut", "two", "formed", "gone")
    runner.submit("again", RECITED, cache_partition="p")
    return [*answers[:-1], *runner.wait_for("again")]


def test_sandboxed_runner_that_looks_up_says_what_one_without_says(model: Path) -> None:
    with sandboxed_runner(model) as runner:
        plain = asked(runner)
        assert figures(runner).proposed_tokens == 0
    with sandboxed_runner(model, speculation="lookup") as runner:
        ours = asked(runner)
        alone = figures(runner)
        runner.ask(RECITED, sampling=GREEDY)
        found = figures(runner)
    for mine, peer in zip(ours, plain, strict=True):
        assert mine.end == peer.end
        assert [mine.choice(number) for number in (0, 1)] == [peer.choice(number) for number in (0, 1)]
    assert ours[0].text.split() == long_script(WORDS).split()
    assert ours[1].text.endswith("w39 ")
    assert found.accepted_tokens - alone.accepted_tokens > WORDS / 2
    assert found.steps - alone.steps < WORDS / 2


def test_draft_that_nobody_gave_is_a_refusal(model: Path) -> None:
    with sandboxed_runner(model, speculation="draft", expect=LoadFailed) as runner:
        assert runner.first.reason == "draft-unfit"
        assert runner.first.detail == "a draft model was asked for and not given"
