"""Prefixes, turns and waits over the channel, in the real runner behind all of its layers.

Copying a stream, cutting one and refusing late are paths of their own: stage 2 of the filter must not end the runner
on any of them.
"""

from appliance.core.values import Sampling
from appliance.ipc.messages import RunnerDelta, RunnerEnd
from tests.support.chain_model import chain_model, long_script, text_tokens
from tests.support.runner_client import Answer, RunnerClient, sandboxed_runner

QUESTION = "a question that several people have in common, word by word, and that is not short"
PROMPT_TOKENS = text_tokens(QUESTION)


def end(answer: Answer) -> RunnerEnd:
    assert answer.end is not None
    return answer.end


def cached(runner: RunnerClient, partition: str, content: str = QUESTION) -> int:
    return end(runner.ask(content, cache_partition=partition, max_completion_tokens=5)).cached_tokens


def test_other_tenant_is_not_told_that_the_first_was_there() -> None:
    with sandboxed_runner(chain_model()) as runner:
        assert cached(runner, "one") == 0
        assert cached(runner, "two") == 0
        assert cached(runner, "") == 0
        assert cached(runner, "one") > PROMPT_TOKENS
        assert cached(runner, "one", QUESTION + ", but then goes on") >= PROMPT_TOKENS
        assert cached(runner, "two", QUESTION + ", but then goes on") >= PROMPT_TOKENS, "its own"
        assert cached(runner, "three", QUESTION) == 0


def test_choices_do_not_mix_and_cost_one_prompt() -> None:
    with sandboxed_runner(chain_model(), slots=2) as runner:
        runner.submit("a", QUESTION, choices=5, max_completion_tokens=15, sampling=Sampling(temperature=0.0))
        [answer] = runner.wait_for("a")
        texts = ["", "", "", "", ""]
        for delta in answer.deltas:
            assert isinstance(delta, RunnerDelta)
            texts[delta.choice] += delta.text
        assert texts == ["Once upon a"] * 5
        assert end(answer).completion_tokens == 15
        assert end(answer).choice_reasons == ("length",) * 5


def test_wait_beyond_its_bound_is_refused_with_a_time_to_come_back() -> None:
    with sandboxed_runner(chain_model(long_script(900)), slots=1) as runner:
        runner.submit("long", principal="heavy")
        runner.submit("late", principal="heavy", queue_ms=1)
        [late] = runner.wait_for("late")
        assert late.refused is not None
        assert late.refused.reason == "overloaded"
        assert late.refused.retry_after_seconds >= 1
        assert not late.started
        runner.cancel("long")
        assert end(runner.wait_for("long")[0]).reason == "cancelled"


def test_light_principal_does_not_wait_for_all_of_a_heavy_one() -> None:
    with sandboxed_runner(chain_model(long_script(300)), slots=1) as runner:
        heavy = [f"heavy-{number}" for number in range(12)]
        for name in heavy:
            runner.submit(name, principal="heavy", cache_partition="h")
        runner.wait_for_first_delta(heavy[0])
        runner.submit("light", principal="light", cache_partition="l", max_completion_tokens=3)
        runner.wait_for("light")
        done = [name for name in heavy if name in runner.answers and runner.answers[name].done]
        assert len(done) <= 1 + 1, "the one that was running, and one that may have been begun before"
        runner.reset()
