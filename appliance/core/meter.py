"""Answer events, as they pass, -> what was spent."""

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.values import AnswerEvent, Delta, End, Started, Usage

_REPLACEMENT = "\ufffd"


def text_bytes(text: str) -> int:
    """At most as many bytes as the tokens of this text hold: each U+FFFD may stand for a single broken byte."""
    return len(text.encode()) - (len(_REPLACEMENT.encode()) - 1) * text.count(_REPLACEMENT)


def least_tokens(n_bytes: int) -> int:
    """The fewest tokens in which so many bytes of text can have come."""
    return -(-n_bytes // MAX_TOKEN_BYTES)


class Meter:
    """Counts one answer. After a broken answer the count is what was seen: at least what the caller received, and never
    less than its text must have cost, whatever the runner says."""

    def __init__(self) -> None:
        self._prompt_tokens = 0
        self._told_tokens = 0
        self._text_bytes = 0
        self.end: End | None = None

    def feed(self, event: AnswerEvent) -> None:
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Delta():
                self._told_tokens += event.tokens
                self._text_bytes += text_bytes(event.text)
            case End():
                self.end = event
                self._prompt_tokens = max(self._prompt_tokens, event.prompt_tokens)
                self._told_tokens = max(self._told_tokens, event.completion_tokens)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=max(self._told_tokens, least_tokens(self._text_bytes)),
        )
