"""A grammar that an answer must match, in llama.cpp's own matcher, and how far the answer has come in it.

The matcher looks at bytes one character at a time and believes them to be UTF-8; what it is given here is, because a
token that would break a character, or write nothing while it is matched by its name, is not allowed whatever the
grammar says.

Trusts: the text of the grammar to have been checked (``runner.grammar``): a deep or an ambiguous one would take all of
llama.cpp's stack or time, and none names tokens by their ids.
Promises: nothing is accepted that was not found allowed just before, which would end the process in llama.cpp.
Not here: when to ask (``engine.sampling``), and about which tokens (``engine.search``).
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from appliance.runner.engine.model import Model
from appliance.runner.engine.native import llama, recent_log, short_call
from appliance.runner.engine.vocabulary import Ids, Vocabulary, unfinished

_ENTRY: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_apply_one = short_call("llama_sampler_apply")
_accept = short_call("llama_sampler_accept")


class ConstraintInvalid(Exception):
    """llama.cpp does not take the grammar."""


def compile_constraint(model: Model, vocabulary: Vocabulary, gbnf_text: str) -> "CompiledConstraint":
    """A grammar that has passed ``runner.grammar`` -> its matcher, at the beginning. On the main thread: it may take
    milliseconds. Raises ``ConstraintInvalid``."""
    text = gbnf_text.encode("utf-8", "replace")
    if not text.strip() or b"\0" in text:  # llama.cpp takes no text for no constraint, and stops reading at a NUL
        raise ConstraintInvalid("the grammar is empty or holds a NUL")
    pointer = llama.llama_sampler_init_grammar(llama.llama_model_get_vocab(model.pointer), text, b"root")
    if not pointer:
        raise ConstraintInvalid(recent_log())
    return CompiledConstraint(pointer, vocabulary, model.piece)


class CompiledConstraint:
    """One answer's. Its memory is freed by ``close``, or with the object."""

    def __init__(self, pointer: Any, vocabulary: Vocabulary, piece: Callable[[int], bytes]) -> None:
        self.never: Final = vocabulary.unseen
        self._vocabulary = vocabulary
        self._piece = piece
        self._pointer = pointer
        self._ends = frozenset(vocabulary.ends.tolist())
        self._found_allowed = -1
        self._open = b""  # the beginning of a character that the last token left unfinished
        self._one = llama.llama_token_data()
        self._one_array = llama.llama_token_data_array()
        self._one_array.data = ctypes.pointer(self._one)

    def clone(self) -> "CompiledConstraint":
        """A copy at the same place, for another choice."""
        if self._open:
            raise RuntimeError("a constraint is cloned at its beginning only")
        pointer = llama.llama_sampler_clone(self._matcher)
        if not pointer:
            raise MemoryError("llama.cpp could not copy a grammar")
        return CompiledConstraint(pointer, self._vocabulary, self._piece)

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            llama.llama_sampler_free(pointer)

    __del__ = close

    @property
    def _matcher(self) -> Any:
        if self._pointer is None:  # which llama.cpp takes for a grammar that allows everything
            raise RuntimeError("the constraint is closed")
        return self._pointer

    def allows(self, token: int) -> bool:
        """Whether a token, which is inside the vocabulary and not one of ``never``, may come next."""
        self._one.id, self._one.logit = token, 1.0
        array = self._one_array
        array.size, array.selected, array.sorted = 1, -1, False
        _apply_one(self._matcher, ctypes.byref(array))
        allowed = not math.isinf(self._one.logit) and (token in self._ends or self._is_text(token))
        self._found_allowed = token if allowed else -1
        return allowed

    def allowed(self, ids: Ids) -> Ids:
        """Those of some tokens, none of them one of ``never``, that may come next. Without the GIL: it takes 0.1 to 2
        microseconds for each."""
        if not len(ids):
            return ids
        entries = np.zeros(len(ids), _ENTRY)
        entries["id"] = ids
        array = llama.llama_token_data_array()
        array.data = ctypes.cast(entries.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        array.size, array.selected, array.sorted = len(ids), -1, False
        llama.llama_sampler_apply(self._matcher, ctypes.byref(array))
        allowed: Ids = ids[entries["logit"] == 0.0]
        if not self._open:
            return allowed[~self._vocabulary.misfits[allowed]]
        # Few are left: llama.cpp allows only what begins with a byte inside a character, or with an end.
        return np.array([token for token in allowed.tolist() if token in self._ends or self._is_text(token)], np.int64)

    def accept(self, token: int) -> None:
        """Moves on by one token. Raises ``RuntimeError`` if it is not allowed."""
        if token != self._found_allowed and not self.allows(token):
            raise RuntimeError("a token that the grammar forbids was drawn")
        self._found_allowed = -1
        if token not in self._ends:
            self._open = self._after(token)
        _accept(self._matcher, token)

    def _is_text(self, token: int) -> bool:
        try:
            self._after(token)
        except UnicodeDecodeError:
            return False
        return True

    def _after(self, token: int) -> bytes:
        """What is unfinished after one more token. Raises ``UnicodeDecodeError`` when it breaks a character."""
        return unfinished(self._open + self._piece(token))
