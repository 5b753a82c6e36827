"""What sampling has to know about a vocabulary as a whole: which tokens end an answer, and what kind of bytes they are.

Trusts: nothing in the file; the pieces are whatever it says.
Promises: every id is below ``size``.
Not here: text to ids, ids to text (``engine.model``).
"""

import codecs
import ctypes
import re
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.runner.engine.model import Model
from appliance.runner.engine.native import llama, short_call
from appliance.runner.grammar.ambiguity import MAX_PIECE_CHARACTERS

Ids = NDArray[np.int64]

NO_IDS: Final[Ids] = np.zeros(0, np.int64)
_MAX_PIECE_BYTES: Final = 1024
_HALF_A_SURROGATE: Final = re.compile(rb"\xed[\xa0-\xbf]")

_is_eog = short_call("llama_vocab_is_eog")
_to_piece = short_call("llama_token_to_piece")


class Level(NamedTuple):
    """Tokens that begin with equally many others, and the parent of each; -1 for the first level's."""

    ids: Ids
    parents: Ids


class Vocabulary(NamedTuple):
    """Ids rise within each array.

    ``ends``: of end-of-generation tokens. ``suppressed``: of those that the model's file says are never to be drawn.
    ``unseen``: of tokens that do not end an answer and may not stand in one that a grammar holds: they write something
    else than the grammar sees of them (nothing, a NUL), or more characters than its bounds are reckoned for
    (``grammar.ambiguity``). ``misfits`` says of every token whether no text goes on with it where a character begins.

    ``levels``: all tokens that are neither ``ends`` nor ``unseen``, by how many other tokens of whole characters they
    begin with; beside them their parents, the longest of these. ``roots`` has of every token the one on the first level
    that it begins with, which may be itself.
    """

    size: int
    ends: Ids = NO_IDS
    suppressed: Ids = NO_IDS
    unseen: Ids = NO_IDS
    misfits: NDArray[np.bool_] = np.zeros(0, np.bool_)
    levels: tuple[Level, ...] = ()
    roots: Ids = NO_IDS

    @classmethod
    def of(cls, model: Model) -> "Vocabulary":
        """A few microseconds per token."""
        pointer = llama.llama_model_get_vocab(model.pointer)
        ends, unseen = [], []
        pieces: dict[int, bytes] = {}
        buffer = ctypes.create_string_buffer(_MAX_PIECE_BYTES)
        for token in range(model.vocabulary_tokens):
            length = _to_piece(pointer, token, buffer, _MAX_PIECE_BYTES, 0, False)
            piece = ctypes.string_at(buffer, max(length, 0))
            if _is_eog(pointer, token):
                ends.append(token)
            elif not piece or 0 in piece or _is_long(piece):
                unseen.append(token)
            else:
                pieces[token] = piece
        ragged, misfits = np.zeros((2, model.vocabulary_tokens), np.bool_)
        for token, piece in pieces.items():
            if not piece.isascii():
                ragged[token], misfits[token] = _judged(piece)
        levels = _levels(pieces, ragged)
        return cls(
            size=model.vocabulary_tokens,
            ends=np.array(ends, np.int64),
            suppressed=_suppressed(pointer, model.vocabulary_tokens),
            unseen=np.array(unseen, np.int64),
            misfits=misfits,
            levels=levels,
            roots=_roots(model.vocabulary_tokens, levels),
        )


def _levels(pieces: dict[int, bytes], ragged: NDArray[np.bool_]) -> tuple[Level, ...]:
    parents, depths = np.zeros(len(ragged), np.int64), np.full(len(ragged), -1, np.int64)
    line: list[tuple[int, bytes]] = []  # the ancestors of the piece at hand: in this order they come just before it
    for token, piece in sorted(pieces.items(), key=itemgetter(1)):
        while line and not (piece.startswith(line[-1][1]) and len(line[-1][1]) < len(piece)):
            line.pop()
        parents[token], depths[token] = line[-1][0] if line else -1, len(line)
        if not ragged[token]:
            line.append((token, piece))
    levels = [np.flatnonzero(depths == depth) for depth in range(int(depths.max(initial=-1)) + 1)]
    return tuple(Level(ids, parents[ids]) for ids in levels)


def _roots(size: int, levels: tuple[Level, ...]) -> Ids:
    roots = np.arange(size)
    for level in levels[1:]:
        roots[level.ids] = roots[level.parents]
    return roots


def _is_long(piece: bytes) -> bool:
    if len(piece) <= MAX_PIECE_CHARACTERS:
        return False
    return len(piece.decode("utf-8", "replace")) > MAX_PIECE_CHARACTERS


def unfinished(data: bytes) -> bytes:
    """The beginning of a character with which some bytes end. Raises ``UnicodeDecodeError`` when they are no text."""
    _, whole = codecs.utf_8_decode(data, "strict", False)
    if _HALF_A_SURROGATE.fullmatch(data, whole):  # which Python finds out one byte later
        raise UnicodeDecodeError("utf-8", data, whole, len(data), "surrogate")
    return data[whole:]


def _judged(piece: bytes) -> tuple[bool, bool]:
    """Whether it is anything but whole characters, and whether it is not the beginning of a text either."""
    try:
        return bool(unfinished(piece)), False
    except UnicodeDecodeError:
        return True, True


def _suppressed(pointer: Any, size: int) -> Ids:
    count = ctypes.c_int32(0)
    first = llama.llama_vocab_get_suppress_tokens(pointer, ctypes.byref(count))
    listed = np.array([first[place] for place in range(max(count.value, 0))], np.int64)
    return np.unique(listed[(listed >= 0) & (listed < size)])
