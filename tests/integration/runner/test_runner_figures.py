"""What a runner tells of itself: true counts, at any time, whatever it is doing and whoever asks before."""

from appliance.core.values import EngineFigures
from appliance.ipc.messages import AskFigures, Figures
from tests.support.bert_model import bert_model
from tests.support.chain_model import STORY, chain_model, long_script
from tests.support.runner_client import RunnerClient, bare_runner, sandboxed_runner
from tests.support.vector_client import VectorClient

WORDS = len(STORY.split(" "))


def asked(runner: RunnerClient, call: int = 1) -> EngineFigures:
    """What comes between is kept by the client for the requests that it belongs to."""
    runner.send(AskFigures(call=call))
    while not isinstance(message := runner.receive(), Figures):
        pass
    assert message.call == call
    return message.figures


def test_answers_are_counted_as_they_were_told() -> None:
    with bare_runner(chain_model(), slots=4) as runner:
        fresh = asked(runner)
        assert (fresh.slots, fresh.admitted, fresh.steps, fresh.answer_tokens) == (4, 0, 0, 0)
        assert fresh.cells >= 4 * 2048
        first, second = (runner.ask(cache_partition="p").end for _ in range(2))
        assert first is not None and second is not None
        told = asked(runner, 2**31 - 1)
    assert told.admitted == told.answered == 2
    assert told.answer_tokens == first.completion_tokens + second.completion_tokens == 2 * WORDS
    assert told.prompt_tokens + told.cached_tokens == first.prompt_tokens + second.prompt_tokens
    assert told.cached_tokens == second.cached_tokens > 0
    assert told.cache_hits == 1
    assert 0 < told.used_cells <= told.cells
    assert (told.waiting, told.busy_slots, told.refused, told.cancelled, told.failed) == (0, 0, 0, 0, 0)
    assert 0 < told.first_token_seconds <= told.step_seconds
    assert told.batch_tokens >= told.prompt_tokens


def test_busy_runner_answers_at_once_and_tells_who_waits() -> None:
    with bare_runner(chain_model(long_script(1500)), slots=1) as runner:
        for number in range(3):
            runner.submit(f"r-{number}")
        runner.wait_for_first_delta("r-0")
        while (told := asked(runner)).waiting < 2:
            assert not runner.answers["r-0"].done
        assert (told.busy_slots, told.waiting, told.admitted) == (1, 2, 1)
        runner.cancel("r-1")
        runner.cancel("r-0")
        runner.cancel("r-2")
        runner.wait_for("r-0", "r-1", "r-2")
        assert asked(runner).cancelled == 3


def test_embedder_counts_its_inputs() -> None:
    with bare_runner(bert_model(), slots=2) as runner:
        fresh = asked(runner)
        answer = VectorClient(runner).embed("hello world", "a", "the quick brown fox")
        told = asked(runner)
    assert (fresh.steps, fresh.slots, fresh.cells) == (0, 2, 0)
    assert (told.admitted, told.waiting, told.busy_slots, told.failed) == (1, 0, 0, 0)
    assert answer.end is not None
    assert told.prompt_tokens == told.batch_tokens == answer.end.prompt_tokens
    assert told.steps == 2
    assert told.step_seconds > 0
    assert (told.answer_tokens, told.answered, told.first_token_seconds) == (0, 0, 0.0)


def test_no_layer_of_the_sandbox_keeps_a_runner_from_telling() -> None:
    with sandboxed_runner(chain_model()) as runner:
        runner.ask()
        assert asked(runner).answer_tokens == WORDS
