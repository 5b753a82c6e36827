"""The batch that llama.cpp decodes: numpy arrays of our own with the C struct pointing at them.

Refilling through ctypes attributes costs twenty times as much per step.

Trusts: its caller (``engine.filling``) for slots and token ids in range.
Promises: never more tokens than ``capacity``, which would abort the process in llama.cpp.
Not here: what belongs into a step.
"""

import ctypes
from typing import Any, Final

import numpy as np

from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.native import llama


class Batch:
    """At most ``capacity`` tokens of at most ``slots`` sequences."""

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity: Final = capacity
        self.size = 0
        self._token = np.zeros(capacity, np.int32)
        self._position = np.zeros(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        self._sequence_count = np.ones(capacity, np.int32)
        self._slot_ids = np.arange(slots, dtype=np.int32)
        self._sequence = np.zeros(capacity, np.uintp)  # one pointer into _slot_ids per token
        self._pointers = [self._slot_ids.ctypes.data + 4 * slot for slot in range(slots)]
        self._struct = llama.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._position, ctypes.c_int32),
            n_seq_id=_pointer(self._sequence_count, ctypes.c_int32),
            seq_id=_pointer(self._sequence, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._output, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.size = 0

    def add(self, slot: int, tokens: TokenIds, position: int, *, output: bool) -> None:
        """Appends tokens of one sequence from ``position`` on; with ``output`` the logits after the last are wanted.

        Raises ``ValueError`` when they do not fit.
        """
        start, end = self.size, self.size + len(tokens)
        if end > self.capacity or not len(tokens):
            raise ValueError("the tokens do not fit the batch")
        self._token[start:end] = tokens
        self._position[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequence[start:end] = self._pointers[slot]
        self._output[start:end] = 0
        self._output[end - 1] = output
        self.size = end

    def add_last(self, slot: int, token: int, position: int) -> None:
        """Appends the last token of a sequence, whose logits are wanted. Raises ``ValueError`` when it does not fit."""
        place = self.size
        if place == self.capacity:
            raise ValueError("the batch is full")
        self._token[place] = token
        self._position[place] = position
        self._sequence[place] = self._pointers[slot]
        self._output[place] = 1
        self.size = place + 1

    def add_ahead(self, slot: int, tokens: list[int], position: int) -> None:
        """Appends tokens of one sequence from ``position`` on, with the logits after each. Raises ``ValueError`` when
        they do not fit."""
        start = self.size
        self.add(slot, np.array(tokens, np.int32), position, output=True)
        self._output[start : self.size] = 1

    @property
    def struct(self) -> Any:
        self._struct.n_tokens = self.size
        return self._struct


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
