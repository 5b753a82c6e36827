"""What sampling has to know about a vocabulary as a whole: which tokens end an answer, and what kind of bytes they are.

Trusts: nothing in the file; the pieces are whatever it says.
Promises: every id is below ``size``.
Not here: text to ids, ids to text (``engine.model``).
"""

import codecs
import ctypes
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.runner.engine.model import Model
from appliance.runner.engine.native import llama, short_call

Ids = NDArray[np.int64]

NO_IDS: Final[Ids] = np.zeros(0, np.int64)
_MAX_PIECE_BYTES: Final = 1024

_is_eog = short_call("llama_vocab_is_eog")
_to_piece = short_call("llama_token_to_piece")


class Vocabulary(NamedTuple):
    """Ids rise within each array.

    ``ends``: of end-of-generation tokens. ``suppressed``: of those that the model's file says are never to be drawn.
    ``silent``: of tokens that write nothing, or more than 1,024 bytes, and do not end an answer either. ``ragged`` says
    of every token whether its bytes are anything but whole UTF-8 characters.
    """

    size: int
    ends: Ids = NO_IDS
    suppressed: Ids = NO_IDS
    silent: Ids = NO_IDS
    ragged: NDArray[np.bool_] = np.zeros(0, np.bool_)

    @classmethod
    def of(cls, model: Model) -> "Vocabulary":
        """About a microsecond per token."""
        pointer = llama.llama_model_get_vocab(model.pointer)
        ends, silent = [], []
        ragged = np.zeros(model.vocabulary_tokens, np.bool_)
        buffer = ctypes.create_string_buffer(_MAX_PIECE_BYTES)
        for token in range(model.vocabulary_tokens):
            length = _to_piece(pointer, token, buffer, _MAX_PIECE_BYTES, 0, False)
            if _is_eog(pointer, token):
                ends.append(token)
            elif length <= 0:
                silent.append(token)
            else:
                ragged[token] = not _is_whole(ctypes.string_at(buffer, length))
        return cls(
            size=model.vocabulary_tokens,
            ends=np.array(ends, np.int64),
            suppressed=_suppressed(pointer, model.vocabulary_tokens),
            silent=np.array(silent, np.int64),
            ragged=ragged,
        )


def _is_whole(piece: bytes) -> bool:
    try:
        codecs.utf_8_decode(piece, "strict", True)
    except UnicodeDecodeError:
        return False
    return True


def _suppressed(pointer: Any, size: int) -> Ids:
    count = ctypes.c_int32(0)
    first = llama.llama_vocab_get_suppress_tokens(pointer, ctypes.byref(count))
    listed = np.array([first[place] for place in range(max(count.value, 0))], np.int64)
    return np.unique(listed[(listed >= 0) & (listed < size)])
