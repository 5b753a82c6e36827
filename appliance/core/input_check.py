"""The events of an answer that generates nothing, as a runner that is not trusted sends them -> what is wrong.

Vectors, scores, token ids and the text of ids: everything that a runner can say is bounded by what was asked and paid
for, in number and in size, and every number is finite. Whether it is true of the model, nobody but the runner knows.
"""

from math import isfinite
from struct import unpack
from typing import Final

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.meter import text_bytes
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Detokenisation,
    End,
    Ids,
    Rows,
    Started,
    Tokenisation,
    Vectors,
    Written,
)

_NUMBER_BYTES: Final = 4


class InputCheck:
    """Follows one answer. After the first fault its state means nothing."""

    def __init__(self, paid: Admission, request: Vectors | Tokenisation | Detokenisation) -> None:
        self._paid = paid
        self._request = request
        self._least_tokens = max(1, len(request.inputs)) if isinstance(request, Vectors) else 1
        self._prompt_tokens = 0
        self._width = 0
        self._told = 0  # rows, ids or bytes
        self._pieces = 0  # of text: each may be a letter
        self.started = False

    def feed(self, event: AnswerEvent) -> str:
        """Empty, or what is wrong with it. ``Started`` comes first and once; a runner that failed at once may leave it
        out."""
        match event:
            case Started():
                if self.started:
                    return "events out of order"
                self.started = True
                self._prompt_tokens = event.prompt_tokens
                return self._cost()
            case End():
                return self._end(event)
            case _ if not self.started:
                return "events out of order"
        match event, self._request:
            case Rows(), Vectors():
                return self._rows(event, self._request)
            case Ids(), Tokenisation():
                return self._ids(event)
            case Written(), Detokenisation():
                return self._written(event, self._request)
            case _:
                return "an answer of another kind"

    def _rows(self, event: Rows, request: Vectors) -> str:
        facts = self._paid.model.facts
        if event.width > (facts.vector_length or facts.embedding_length):
            return "vectors of more numbers than the model has"
        if self._width and event.width != self._width:
            return "vectors of another size than before"
        if (request.dimensions and event.width != request.dimensions) or (
            request.kind == "rerank" and event.width != 1
        ):
            return "vectors of another size than was asked for"
        rows, rest = divmod(len(event.data), _NUMBER_BYTES * event.width)
        self._width = event.width
        self._told += rows
        if rest or not rows or self._told > len(request.inputs):
            return "another number of vectors than of inputs"
        # As doubles the sum cannot overflow, and it is not finite if one of them is not.
        if not isfinite(sum(unpack(f"<{rows * event.width}f", event.data))):
            return "a vector that is none"
        return ""

    def _ids(self, event: Ids) -> str:
        count, rest = divmod(len(event.data), _NUMBER_BYTES)
        self._told += count
        if rest or not count or self._told > self._prompt_tokens:
            return "another number of tokens than it counted"
        if max(unpack(f"<{count}I", event.data)) >= self._paid.model.facts.vocabulary_tokens:
            return "a token outside the vocabulary"
        return ""

    def _written(self, event: Written, request: Detokenisation) -> str:
        self._told += text_bytes(event.text)
        self._pieces += 1
        if not event.text or self._told > len(request.ids) * MAX_TOKEN_BYTES:
            return "more text than its tokens can stand for"
        return "more pieces than tokens" if self._pieces > len(request.ids) else ""

    def _end(self, event: End) -> str:
        if self.started and event.prompt_tokens != self._prompt_tokens:
            return "another prompt than it started with"
        self._prompt_tokens = event.prompt_tokens
        if event.completion_tokens or event.cached_tokens or event.choice_reasons:
            return "tokens where nothing was to be generated"
        match event.reason:
            case "cancelled" | "error":
                return self._cost()
            case "stop" if self.started and self._is_whole():
                return self._cost()
            case _:
                return "it ended before it was whole"

    def _is_whole(self) -> bool:
        match self._request:
            case Vectors():
                return self._told == len(self._request.inputs) and self._prompt_tokens >= self._least_tokens
            case Tokenisation():
                return self._told == self._prompt_tokens or (self._told, self._prompt_tokens) == (0, 1)
            case Detokenisation():
                return self._prompt_tokens == max(1, len(self._request.ids))

    def _cost(self) -> str:
        if self._prompt_tokens < 1:
            return "a prompt for nothing"
        return "more than was paid for" if self._prompt_tokens > self._paid.max_prompt_tokens else ""
