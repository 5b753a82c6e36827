"""Guesses from the text itself: what followed the last words where they stood before (prompt lookup decoding).

Where an answer repeats the prompt or itself, as in edits of code, quotations and summaries, that is often right, and it
costs microseconds. A. Saxena, "Prompt Lookup Decoding" (2023); llama.cpp has it as ``lookup``.

The last three tokens are looked for, then the last two, in tables from the hash of such a run to where it last ended.
A table forgets what another run of the same hash replaces, so its size is fixed; what it finds is compared.

Trusts: nothing in the text.
Promises: for each new token a fixed amount of work, and a prompt is read ``_READ_AT_ONCE`` tokens at a time; a sequence
takes at most ``2 * 4 * MOST_PLACES`` bytes, and 4 for each token. Nothing is looked up in another sequence's text.
Not here: how much to propose (``speculation``).
"""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np

from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.speculation import Text

RUNS: Final = (3, 2)
MOST_PLACES: Final = 2**14
_LEAST_PLACES: Final = 2**8
_READ_AT_ONCE: Final = 8192
_FEW: Final = 16
"""So many tokens are quicker one by one."""
_FACTORS: Final = (0x2545F491, 0x1B873593, 0x19D699A5)
"""Odd, and small enough that with tokens below 2**21 no sum leaves 63 bits."""
_SHIFT: Final = 15


class TextIndex:
    """One sequence: all its tokens, and where each run of two or three last ended."""

    def __init__(self, prompt: TokenIds, max_tokens: int) -> None:
        self._tokens = array("i", np.ascontiguousarray(prompt, np.int32).tobytes())
        self._answered = 0
        self._read = 0
        places = _LEAST_PLACES
        while places < min(2 * (len(prompt) + max_tokens), MOST_PLACES):
            places *= 2
        self._mask = places - 1
        self._ends = {run: array("i", bytes(4 * places)) for run in RUNS}

    def follow(self, answer: list[int]) -> bool:
        """Takes in what the answer has more. False while there is more to read of the prompt."""
        self._tokens.extend(answer[self._answered :])
        self._answered = len(answer)
        start, end = self._read, min(len(self._tokens), self._read + _READ_AT_ONCE)
        if end - start <= _FEW:
            self._note(start, end)
        else:
            self._note_many(start, end)
        self._read = end
        return end == len(self._tokens)

    def propose(self, length: int) -> list[int]:
        """What followed the last tokens where they stood before; where that is not so long ago, over and over."""
        tokens, last = self._tokens, len(self._tokens)
        for run in RUNS:
            if last <= run:
                continue
            end = self._ends[run][self._place(last, run)]
            if end and tokens[end - run : end] == tokens[last - run :]:
                found = tokens[end : end + length].tolist()
                return (found * length)[:length]
        return []

    def _place(self, end: int, run: int) -> int:
        tokens = self._tokens
        mixed = 0
        for back in range(run):
            mixed += tokens[end - 1 - back] * _FACTORS[back]
        return (mixed ^ mixed >> _SHIFT) & self._mask

    def _note(self, start: int, end: int) -> None:
        """Of every run that some tokens follow, where it ends. So the text's last run is never found in itself."""
        for run in RUNS:
            for place in range(max(start, run), end):
                self._ends[run][self._place(place, run)] = place

    def _note_many(self, start: int, end: int) -> None:
        tokens = np.frombuffer(self._tokens, np.int32).astype(np.int64)
        for run in RUNS:
            ends = np.arange(max(start, run), end)
            mixed = np.zeros(len(ends), np.int64)
            for back in range(run):
                mixed += tokens[ends - 1 - back] * _FACTORS[back]
            np.frombuffer(self._ends[run], np.int32)[(mixed ^ mixed >> _SHIFT) & self._mask] = ends


class Lookup:
    """A ``Drafter``."""

    def __init__(self) -> None:
        self._indices: dict[int, TextIndex] = {}

    def begin(self, text: Text) -> None:
        self._indices[text.slot] = TextIndex(text.prompt, text.max_tokens)

    def end(self, slot: int) -> None:
        del self._indices[slot]

    def propose(self, texts: Sequence[Text], length: int) -> list[list[int]]:
        return [self._of(self._indices[text.slot], text.answer, length) for text in texts]

    def _of(self, index: TextIndex, answer: list[int], length: int) -> list[int]:
        return index.propose(length) if index.follow(answer) else []

    def try_out(self) -> None:
        text = Text(0, np.zeros(2 * _FEW, np.int32), [0], 8)
        self.begin(text)
        self.propose([text], 4)
        text.answer.append(0)
        self.propose([text], 4)
        self.end(0)

    def close(self) -> None:
        self._indices.clear()
