"""A request whose grammar refuses all that its sampling wants: it must cost its own answer time, and nobody else's.

One such request made each token of every other caller wait until a grammar was asked about the whole vocabulary. The
runner here is a real one, its own program but for the sandbox, which counts the tokens that grammars are asked about in
each step, and the steps between two tokens of each answer. No clock is looked at.
"""

import json
from pathlib import Path

import pytest

from appliance.core.values import GbnfGrammar, JsonObject, Sampling
from appliance.ipc.messages import TokenPrompt
from appliance.runner.engine.search import LOOK_TOKENS
from appliance.runner.engine.searches import SEARCH_TOKENS
from tests.support.runner_client import bare_runner
from tests.support.wordy_model import BYTE, FIRST_WORD, wordy_model

VOCABULARY = 24_000
TOKENS = 120
PROMPT = TokenPrompt(ids=(300, 301, 302))
HOT = Sampling(temperature=2.0, top_k=1000, top_p=1.0, min_p=0.0, seed=1)
FORCED = tuple((token, 100.0) for token in range(FIRST_WORD, FIRST_WORD + 512))
RARE = BYTE + 0xF4

HOSTILE = {
    "hot-and-wide": (HOT, GbnfGrammar(text="root ::= [^ae]*")),
    "tokens-forced-that-are-refused": (
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, logit_bias=FORCED, seed=1),
        GbnfGrammar(text="root ::= [^!-~]*"),
    ),
    "a-rare-token": (HOT, GbnfGrammar(text="root ::= [\U00100000-\U0010ffff]*")),
    "rare-ends": (HOT, GbnfGrammar(text='root ::= ([a-z] "q")*')),
    "many-places": (HOT, GbnfGrammar(text="root ::= [^e]{0,40} .{0,40}")),
    "one-of-many-words": (HOT, GbnfGrammar(text="root ::= (" + " | ".join(f'"a{n:04}"' for n in range(120)) + ")*")),
    "json": (HOT, JsonObject()),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy_model(tmp_path_factory.mktemp("wordy"), VOCABULARY)


def test_hostile_grammars_do_not_make_an_innocent_wait(model: Path) -> None:
    with bare_runner(model, "count-grammars", slots=len(HOSTILE) + 1, context_tokens=512) as runner:
        for name, (sampling, constraint) in HOSTILE.items():
            runner.submit(
                name, PROMPT, sampling=sampling, constraint=constraint, principal="mallory", max_completion_tokens=500
            )
        runner.submit("innocent", PROMPT, principal="alice", max_completion_tokens=TOKENS)
        (answer,) = runner.wait_for("innocent")
        assert answer.end is not None
        assert answer.end.completion_tokens == TOKENS
        for name in HOSTILE:
            if not runner.answers[name].done:
                runner.cancel(name)
        assert not any(hostile.refused for hostile in runner.wait_for(*HOSTILE))
        assert runner.ask(PROMPT, max_completion_tokens=2).end is not None
        runner.channel.shutdown(2)
        told = json.loads(runner.last_words().split(", ", 1)[1])
    assert LOOK_TOKENS < told["most_asked"] < SEARCH_TOKENS + LOOK_TOKENS
    assert told["most_steps"]["innocent"] == 1
    assert max(told["most_steps"].values()) > 1
