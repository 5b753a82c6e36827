"""GGUF headers as large as those of the largest models in use: their counts and text lengths, made-up texts.

A header is all that the validator reads: the tensors are those of the smallest model.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from struct import pack

from tests.support.gguf_files import ARRAY, F32, I32, STRING, U32, small_model

MEAN_TOKEN_BYTES = 7


@dataclass(frozen=True)
class Vocabulary:
    """What makes a header large."""

    n_tokens: int
    n_merges: int = 0
    has_scores: bool = False


LARGE_HEADERS = {
    "151,936 tokens, 151,387 merges (as Qwen 2.5 and 3)": Vocabulary(151_936, 151_387),
    "262,144 tokens with scores (as Gemma 3)": Vocabulary(262_144, has_scores=True),
    "201,088 tokens, 446,189 merges (as gpt-oss)": Vocabulary(201_088, 446_189),
    "262,144 tokens, 514,906 merges (the most known)": Vocabulary(262_144, 514_906),
}


def write_header(path: Path, vocabulary: Vocabulary) -> None:
    """Writes a sound file whose header has this vocabulary."""
    gguf = small_model()
    tokens = list(islice(_texts(), vocabulary.n_tokens))
    gguf.put("tokenizer.ggml.tokens", ARRAY, _strings(tokens))
    gguf.put("tokenizer.ggml.token_type", ARRAY, pack("<IQ", I32, len(tokens)) + pack("<i", 1) * len(tokens))
    gguf.drop("tokenizer.ggml.scores")
    if vocabulary.has_scores:
        scores = pack(f"<{len(tokens)}f", *(-float(number) for number in range(len(tokens))))
        gguf.put("tokenizer.ggml.scores", ARRAY, pack("<IQ", F32, len(tokens)) + scores)
    if vocabulary.n_merges:
        gguf.put("tokenizer.ggml.merges", ARRAY, _strings(list(islice(_merges(tokens), vocabulary.n_merges))))
    gguf.set("llama.vocab_size", U32, len(tokens))
    path.write_bytes(gguf.build())


def _strings(texts: list[bytes]) -> bytes:
    return pack("<IQ", STRING, len(texts)) + b"".join(pack("<Q", len(text)) + text for text in texts)


def _texts() -> Iterator[bytes]:
    """Texts that all differ. Lengths as in byte-pair vocabularies: most are short, a few have 256 bytes."""
    chance = random.Random("texts")
    for number in count():
        ending = b"%x" % number
        filling = max(0, int(chance.gauss(MEAN_TOKEN_BYTES, 3)) - len(ending))
        if number % 200 == 0:
            filling = chance.randrange(32, 128)
        if number % 2000 == 0:
            filling = 256 - len(ending)
        yield chance.choice((b"g", b"o", b"s", b"t")) * filling + ending


def _merges(tokens: list[bytes]) -> Iterator[bytes]:
    chance = random.Random("merges")
    while True:
        token = chance.choice(tokens)
        at = chance.randrange(len(token))
        yield token[:at] + b" " + token[at:]
