"""The real runner behind all of its layers: whatever it does while serving, the filter of stage 2 must not kill it.

A call that the filter forbids ends the process, so each test shows that a path of the engine needs none.
"""

from pathlib import Path

from appliance.core.values import GbnfGrammar, JsonObject, JsonSchema, Message, Sampling
from appliance.ipc.messages import Load, LoadFailed, TextPrompt
from tests.support.chain_model import STORY, chain_model, long_script, model_with_nan
from tests.support.runner_client import TIMEOUT_SECONDS, Answer, sandboxed_runner

DEMO = Path(__file__).parents[3] / "appliance" / "data" / "paddock-demo.gguf"
PICKY = (
    "{% if messages|length > 2 %}{{ messages[0].content.nothing.nothing }}{% endif %}"
    "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
)


def reason(answer: Answer) -> str:
    assert answer.end is not None
    return answer.end.reason


def test_serving_needs_no_forbidden_call() -> None:
    samplings = [
        Sampling(),
        Sampling(temperature=0.0),
        Sampling(temperature=0.0, presence_penalty=1.0),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3),
        Sampling(frequency_penalty=-2.0, stop=("a", "the")),
        Sampling(top_k=1000, presence_penalty=2.0, frequency_penalty=2.0),
        Sampling(mirostat=1),
        Sampling(mirostat=2, ignore_eos=True),
        Sampling(typical_p=0.9, repeat_penalty=1.1, logit_bias=((7, 1.0), (8, -100.0)), logprobs=20),
    ]
    with sandboxed_runner(DEMO, context_tokens=1024) as runner:
        for turn in range(3):
            names = [f"{turn}-{number}" for number in range(12)]
            for number, name in enumerate(names):
                runner.submit(name, "why? " * (1 + 14 * number), sampling=samplings[number % len(samplings)])
            runner.cancel(names[4])
            answers = runner.wait_for(*names)
            assert {reason(answer) for answer in answers} <= {"stop", "length", "cancelled"}
        refused = runner.ask("x" * 300_000).refused
        assert refused is not None and refused.reason == "prompt-too-long"
        few = {"max_completion_tokens": 40, "choices": 2, "sampling": Sampling(logprobs=2)}
        for constraint in (JsonObject(), JsonSchema(schema='{"type":"integer"}'), GbnfGrammar(text="root ::= [a-z]+")):
            assert reason(runner.ask("hello", constraint=constraint, **few)) in {"stop", "length"}
        assert runner.ask("hello", constraint=GbnfGrammar(text="root ::= root")).refused is not None
        assert reason(runner.ask(TextPrompt(text="hello"), echo=True, **few)) in {"stop", "length"}
        runner.reset()
        assert reason(runner.ask("hello")) == "stop"
        runner.channel.close()
        assert runner.process.wait(TIMEOUT_SECONDS) == 0


def test_large_answers_and_slow_reading_need_no_forbidden_call() -> None:
    script = long_script(900)
    with sandboxed_runner(chain_model(script), context_tokens=1024) as runner:
        names = [f"r-{number}" for number in range(8)]
        for name in names:
            runner.submit(name)
        assert all(answer.text == script for answer in runner.wait_for(*names))


def test_template_errors_need_no_forbidden_call() -> None:
    """Jinja rewrites tracebacks, and Python would open source files for one."""
    with sandboxed_runner(chain_model(template=PICKY)) as runner:
        for length in (2, 3):
            refused = runner.ask([Message(role="user", content="x")] * length).refused
            assert refused is not None and refused.reason == "field-invalid"
        assert runner.ask("x").text == STORY


def test_giving_up_needs_no_forbidden_call() -> None:
    with sandboxed_runner(chain_model()) as runner:
        runner.ask("x")
        runner.send(Load(runner_id="r", context_tokens=64, slots=1, threads=1))
        assert runner.process.wait(TIMEOUT_SECONDS) == 73
        assert runner.process.stderr is not None
        assert b"RuntimeError" in runner.process.stderr.read()


def test_damaged_model_is_refused_with_llamas_own_words(tmp_path: Path) -> None:
    """The log callback is machine code that ctypes makes; it must work where no new executable memory is allowed."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(chain_model().read_bytes()[:100_000])
    with sandboxed_runner(damaged, expect=LoadFailed) as runner:
        assert runner.first.reason == "model-invalid"
        assert "tensor" in runner.first.detail
        assert runner.process.wait(TIMEOUT_SECONDS) == 72


def test_model_with_nan_is_refused() -> None:
    with sandboxed_runner(model_with_nan(), expect=LoadFailed) as runner:
        assert runner.first.reason == "logits-not-finite"
