"""From the bytes of tokens to text that may be sent: whole characters, and nothing of a stop string.

Trusts: nothing; the bytes are whatever the model produced.
Promises: no character is split, and no stop string is ever part of what ``feed`` and ``finish`` return, wherever the
token boundaries fall.
Not here: how many tokens a piece stands for (``channel``).
"""

import codecs

_new_decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """One answer. Bytes that are not UTF-8 come out as U+FFFD."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = _new_decoder("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The bytes of one token -> the text that can now be sent. Sets ``stopped`` when a stop string is complete;
        everything from its first character on is dropped."""
        text = self._decoder.decode(piece)
        return self._release(text) if self._stops else text

    def finish(self) -> str:
        """What was held back, when the answer has ended without a stop string. An unfinished character is U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        if not self._stops:
            return text
        ready = self._release(text)
        return ready if self.stopped else ready + self._held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
