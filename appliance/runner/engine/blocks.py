"""Long text in blocks, for a tokeniser whose cost grows with the square of what it is given.

A block ends where no tokeniser in use joins what is left and right of it: before a single space between a word and a
word, after a line's end before a word, before a full stop of a script that has no spaces. There the tokens are those of
the whole. Text without such a place, which nobody writes, is cut anyway; its tokens stand for the same text.

Trusts: nothing; the text is the caller's or the template's.
Promises: the blocks joined are the text; each has at most ``BLOCK_CHARACTERS``.
Not here: the tokens (``engine.model``).
"""

import re
from collections.abc import Iterator
from typing import Final

BLOCK_CHARACTERS: Final = 4096
_LOOK_BACK: Final = 1024

_LETTER = r"[^\W\d_]"
_SAFE: Final = re.compile(
    rf"(?<=[^\W_])(?= {_LETTER})"  # word| word
    rf"|(?<=\S\n)(?={_LETTER})"  # line's end, then a word
    rf"|(?<={_LETTER})(?=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]{_LETTER})"  # CJK punctuation
)


def blocks(text: str) -> Iterator[str]:
    """The text in pieces, at least one."""
    start = 0
    while len(text) - start > BLOCK_CHARACTERS:
        end = _cut(text, start + BLOCK_CHARACTERS)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, limit: int) -> int:
    """The last safe place shortly before ``limit``, or ``limit``. ``limit`` is inside the text."""
    places = [found.start() for found in _SAFE.finditer(text, limit - _LOOK_BACK, limit)]
    return places[-1] if places else limit
