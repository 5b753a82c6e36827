"""Models whose vocabulary is like a real one's: words up to 16 characters, most of which begin with others, runs of
blanks, digits, brackets, letters of several bytes. Their weights are drawn, and say nothing.
"""

import random
from pathlib import Path
from typing import Final

from tests.support.drawn_model import FIRST_WORD, Shape, write_drawn_model

BYTE: Final = 3
"""The token of byte 0; the other bytes follow."""

_ASCII: Final = [chr(code) for code in range(33, 127)]
_FOREIGN: Final = ["\u00e9", "\u00df", "\u4e00", "\u4e8c", "\u6f22", "\u5b57", "\U0001f600", "\U0001f601"]
_LONGEST: Final = 14


def wordy_model(folder: Path, vocabulary: int, seed: int = 0) -> Path:
    """The file. Other seeds make other words."""
    path = folder / f"wordy-{vocabulary}-{seed}.gguf"
    shape = Shape(layers=1, dim=32, heads=1, kv_heads=1, feed_forward=64, vocabulary=vocabulary)
    write_drawn_model(path, shape, lambda count: _words(count, random.Random(seed)))
    return path


def _words(count: int, chance: random.Random) -> list[str]:
    words = dict.fromkeys(["\u2581", *_ASCII, *_FOREIGN])
    words |= dict.fromkeys(character * length for character in "\u2581a=-" for length in range(2, 17))
    made = list(words)
    endings = [*"etaoinshrdlucmfwypvbgkjqxz", *"etaoinshr", *'012"{}[]:,', *_FOREIGN]
    while len(made) < count:
        word = chance.choice(made) + chance.choice(endings)
        if len(word) <= _LONGEST and word not in words:
            words[word] = None
            made.append(word)
    return made[:count]


__all__ = ["BYTE", "FIRST_WORD", "wordy_model"]
