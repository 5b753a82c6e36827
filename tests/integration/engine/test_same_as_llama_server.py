"""Asked for the likeliest tokens, alone, the engine says what llama.cpp's own server says, token by token.

Both run the same libraries, so a difference could only come from what is around them: another prompt, a position off
by one, a draw that is not the best, text lost between tokens.
"""

import hashlib
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from appliance.core.values import Sampling
from appliance.ipc.messages import Load, Submit, TextPrompt, TokenPrompt
from tests.support.drawn_model import FIRST_WORD, TINY, write_drawn_model
from tests.support.live_runner import DEMO_MODEL
from tests.support.llama_server import LlamaServer, llama_server, program
from tests.support.runner_client import RunnerClient, bare_runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first time on a machine, llama-server is compiled

_PROMPTS = 50
_NEW_TOKENS = 32
_LONGEST = 300
_LOAD = Load(runner_id="same", context_tokens=512, slots=1, threads=1)
_TEXT = "the model is signed and its answers are recorded; caf\u00e9, na\u00efve, \u6f22\u5b57, 12x15 = 180?\n"


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "tiny.gguf"
    write_drawn_model(path, TINY)
    return path


@pytest.fixture(scope="module", params=["random", "demo"])
def model(request: pytest.FixtureRequest, random_model: Path) -> Path:
    return random_model if request.param == "random" else DEMO_MODEL


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunnerClient, LlamaServer]]:
    with (
        llama_server(model, _LOAD, tmp_path_factory.mktemp("peer")) as peer,
        bare_runner(model, slots=1, context_tokens=_LOAD.context_tokens) as ours,
    ):
        yield ours, peer


def test_both_run_the_same_libraries() -> None:
    package = find_spec("llama_cpp")
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent / "lib"
    for name in ("libllama.so.0", "libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0"):
        peers = (program().parent / name).read_bytes()
        assert hashlib.sha256(peers).digest() == hashlib.sha256((installed / name).read_bytes()).digest(), name


def test_no_token_differs_after_prompts_of_token_ids(both: tuple[RunnerClient, LlamaServer], model: Path) -> None:
    ours, peer = both
    chance = random.Random(1)
    known = range(FIRST_WORD, 1000)
    for number in range(_PROMPTS):
        ids = chance.choices(known, k=_length(number))
        _assert_same(ours, peer, TokenPrompt(ids=tuple(ids)), ids)


def test_no_token_differs_after_prompts_of_text(both: tuple[RunnerClient, LlamaServer]) -> None:
    ours, peer = both
    chance = random.Random(2)
    for number in range(_PROMPTS):
        text = " ".join(chance.choices(_TEXT.split(" "), k=_length(number) // 6 + 1))
        _assert_same(ours, peer, TextPrompt(text=text), text)


def _length(number: int) -> int:
    """From 1 to the longest, in even steps."""
    return 1 + number * (_LONGEST - 1) // (_PROMPTS - 1)


def _assert_same(
    ours: RunnerClient, peer: LlamaServer, prompt: TextPrompt | TokenPrompt, for_peer: str | list[int]
) -> None:
    expected = peer.ask("/completion", prompt=for_peer, n_predict=_NEW_TOKENS, temperature=0.0, cache_prompt=False)
    request_id = f"same-{len(ours.answers)}"
    ours.send(
        Submit(
            request_id=request_id,
            prompt=prompt,
            sampling=Sampling(temperature=0.0),
            max_prompt_tokens=_LOAD.context_tokens,
            max_completion_tokens=_NEW_TOKENS,
            cache_partition="",
        )
    )
    (answer,) = ours.wait_for(request_id)
    assert answer.end is not None, answer.refused
    assert answer.text == expected["content"]
    assert answer.end.prompt_tokens == expected["tokens_evaluated"]
    assert answer.end.reason == {"limit": "length", "eos": "stop"}[expected["stop_type"]]
    tokens = expected["tokens_predicted"] - (expected["stop_type"] == "eos")  # the peer counts the end as a token
    assert answer.end.completion_tokens == tokens
