"""Answer events, as they pass, -> what was spent."""

from appliance.core.values import AnswerEvent, Delta, End, Started, Usage


class Meter:
    """Counts one answer. After a broken answer the count is what was seen: at least what the caller received."""

    def __init__(self) -> None:
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self.end: End | None = None

    def feed(self, event: AnswerEvent) -> None:
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Delta():
                self._completion_tokens += event.tokens
            case End():
                self.end = event
                self._prompt_tokens = max(self._prompt_tokens, event.prompt_tokens)
                self._completion_tokens = max(self._completion_tokens, event.completion_tokens)

    def usage(self) -> Usage:
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)
