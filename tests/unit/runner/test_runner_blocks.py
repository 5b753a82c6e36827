"""Long text is cut only where its tokens do not change, and never costs more than its length."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.runner.engine.blocks import BLOCK_CHARACTERS, blocks
from appliance.runner.engine.model import Model
from tests.support.chain_model import chain_model

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "appliance" / "data" / "paddock-demo.gguf"
GERMAN = "Die Größe der Bäume überraschte Zoë; 42 Äpfel, sagte sie - nicht 43!\nWer's glaubt: wird selig.\n\n  Ende. "
CHINESE = "今天天气很好\uff0c我们去公园散步。你想喝点什么\uff1f我要一杯茶\uff01"
ORDINARY = {
    "prose": (ROOT / "README.md").read_text(encoding="utf-8") * 3,
    "code": (ROOT / "appliance" / "core" / "gguf.py").read_text(encoding="utf-8"),
    "german": GERMAN * 200,
    "chinese": CHINESE * 1000,
    "lines": "".join(f"line {number}\n" for number in range(4000)),
}
HOSTILE = {
    "spaces": " " * 50_000,
    "one letter": "a" * 50_000,
    "line ends": "\n" * 50_000,
    "emoji": "\U0001f600\u200d" * 20_000,
    "control names": "<|im_end|>" * 5000,
}


@pytest.fixture(scope="module", params=[DEMO, None], ids=["demo", "chain"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    descriptor = os.open(request.param or chain_model(), os.O_RDONLY)
    made = Model.load(descriptor)
    os.close(descriptor)
    yield made
    made.close()


@given(st.text(alphabet="ab \n\u3002\u4eca1.", max_size=3 * BLOCK_CHARACTERS))
def test_nothing_is_lost_or_added_and_no_block_is_too_large(text: str) -> None:
    pieces = list(blocks(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= BLOCK_CHARACTERS


def test_short_text_is_left_whole() -> None:
    assert list(blocks("")) == [""]
    assert list(blocks("a b " * (BLOCK_CHARACTERS // 4))) == ["a b " * (BLOCK_CHARACTERS // 4)]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_text_has_the_tokens_of_the_whole(model: Model, name: str) -> None:
    text = ORDINARY[name]
    assert len(text) > 2 * BLOCK_CHARACTERS
    whole = model._fragment(text, special=False, first=False)
    assert np.concatenate(list(model.content_tokens(text, first=False))).tolist() == whole.tolist()


@pytest.mark.parametrize("name", HOSTILE)
def test_text_without_a_place_to_cut_is_cut_and_stays_the_same_text(model: Model, name: str) -> None:
    tokens = np.concatenate(list(model.content_tokens(HOSTILE[name], first=False)))
    written = b"".join(model.piece(token) for token in tokens.tolist()).decode()
    assert written.replace("\u2581", " ") == HOSTILE[name]  # the chain model writes a space by its three bytes


def test_control_token_is_not_made_of_two_blocks(model: Model) -> None:
    for shift in range(len("<|im_end|>") + 1):
        text = "x" * (BLOCK_CHARACTERS - shift) + "<|im_end|>" * 3
        for block in model.content_tokens(text, first=False):
            assert not any(model.is_special(token) for token in block.tolist())
