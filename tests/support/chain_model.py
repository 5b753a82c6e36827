"""A model whose every token is known: it recites a script whatever it is asked (``tools/chain_gguf.py``).

The numbers of a test can be computed: ``prompt_tokens`` for what a prompt costs, one token per word of the script.
"""

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from appliance.core.values import Message

_TOOL = Path(__file__).parents[2] / "tools" / "chain_gguf.py"
_CONTROL, _USER_DEFINED = 3, 4
_END_OF_TURN = 4

STORY = (
    "Once upon a time \U0001f600 one friend told this story: the blue sky means sunlight scattering by Rayleigh in "
    "Earth's atmosphere; water droplets refract light into rainbow colours, soil is brown from organic minerals, air "
    "holds nitrogen and oxygen, independence was declared July fourth, 12x15 = 180 done."
)
"""The script of the model that is made without ``text``."""


@functools.cache
def _directory() -> Path:
    path = tempfile.mkdtemp(prefix="paddock-chain-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def chain_model(
    text: str = STORY, *, template: str | None = None, context_tokens: int = 32768, dim: int | None = None
) -> Path:
    """The path of a model that recites ``text``, whose words must differ. Made once per test session."""
    path = _directory() / f"chain-{len(list(_directory().iterdir()))}.gguf"
    extra = [] if template is None else ["--template", template]
    extra += [] if dim is None else ["--dim", str(dim)]
    command = [sys.executable, str(_TOOL), str(path), "--text", text, "--ctx", str(context_tokens), *extra]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


@functools.cache
def long_script(words: int) -> str:
    return " ".join(f"w{number}" for number in range(words))


@functools.cache
def model_with_nan() -> Path:
    """A model that loads and whose logits are not numbers."""
    path = _copy("nan")
    reader = gguf.GGUFReader(path, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight").data[:] = np.nan
    reader.data.flush()
    return path


@functools.cache
def model_with_loose_end_of_turn() -> Path:
    """A model whose file says that its end-of-turn token is of type USER_DEFINED: llama.cpp then finds it in any
    text."""
    path = _copy("loose")
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["tokenizer.ggml.token_type"]
    place = field.parts[field.data[_END_OF_TURN]]
    assert place[0] == _CONTROL
    place[0] = _USER_DEFINED
    reader.data.flush()
    return path


def _copy(name: str) -> Path:
    path = _directory() / f"{name}.gguf"
    shutil.copy(chain_model(), path)
    return path


def text_tokens(text: str) -> int:
    """What a text costs: a byte is a token, except that this vocabulary writes a space as three bytes. Not for texts
    with a word of one character that the script has too: a space and that character are one token."""
    return len(text.encode()) + 2 * text.count(" ")


def prompt_tokens(messages: Sequence[Message]) -> int:
    """What a conversation costs in the chain model's ChatML: the first token, each turn between its two control
    tokens, and the opening of the answer."""
    turns = sum(1 + len(m.role) + 1 + text_tokens(m.content) + 1 + 1 for m in messages)
    return 1 + turns + 1 + len("assistant\n")
