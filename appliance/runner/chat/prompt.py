"""From a conversation to the tokens of its prompt, and to the reading of its answer.

Trusts: nothing; see ``chat.template``.
Promises: control tokens come from the template alone, never from a message, a tool or a call. A prompt costs time in
proportion to the tokens that were paid for: the work is done block by block and ends at the first token too many.
Not here: how many tokens were paid for, and whose turn it is between blocks (``channel``).
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Final

import numpy as np

from appliance.core.values import JsonSchema, Message, Tool
from appliance.ipc.messages import Conversation, TextPrompt, TokenPrompt
from appliance.runner.chat.answer import AnswerParser, sealed
from appliance.runner.chat.families import PLAIN, Family, family_of
from appliance.runner.chat.families.force import constrained_answer, forced_call
from appliance.runner.chat.template import CHATML, ChatTemplate, Part, RenderError
from appliance.runner.chat.turns import offered
from appliance.runner.engine.model import LoadError, Model, TokenIds


class PromptError(Exception):
    """This conversation cannot be put to this model. The text is for the operator."""


class PromptTooLong(PromptError):
    """It has more tokens than were paid for."""


class Reading:
    """What is known of an answer before it comes."""

    def __init__(self, family: Family = PLAIN, tokens: frozenset[str] = frozenset()) -> None:
        self._family = family
        self._tokens = tokens
        self.tools: tuple[Tool, ...] = ()
        self.opening = ""
        self.begun = ""
        self.constraint: JsonSchema | None = None

    def parser(self, call_id: str) -> AnswerParser | None:
        return self._family.parser(
            self.tools, call_id=call_id, opening=self.opening, begun=self.begun, tokens=self._tokens
        )


class Prompt:
    """One conversation on its way to tokens. ``tokens`` are those known so far."""

    def __init__(self, blocks: Iterator[TokenIds], at_most_tokens: int, reading: Reading) -> None:
        self._blocks = blocks
        self._at_most_tokens = at_most_tokens
        self._reading = reading
        self._known: list[TokenIds] = []
        self.size = 0

    def advance(self) -> bool:
        """Renders one more slice, or tokenises one more block. True when that was all. Raises ``PromptError``."""
        try:
            block = next(self._blocks, None)
        except (RenderError, ValueError) as error:
            raise PromptError(str(error)) from None
        if block is not None:
            self._known.append(block)
            self.size += len(block)
        if self.size > self._at_most_tokens:
            raise PromptTooLong(f"the prompt has more than {self._at_most_tokens} tokens")
        if block is None and not self.size:
            raise PromptError("the prompt is empty")
        return block is None

    @property
    def tokens(self) -> TokenIds:
        return np.concatenate(self._known) if self._known else np.zeros(0, np.int32)

    @property
    def constraint(self) -> JsonSchema | None:
        """What the answer must be so that it is the call that was asked for. Known once ``advance`` is done."""
        return self._reading.constraint

    def parser(self, call_id: str) -> AnswerParser | None:
        """For one answer, whose tokens must come as ``PromptMaker.seals`` has them; None when it is nothing but text.

        ``call_id`` makes the ids of calls unique among requests. Once ``advance`` is done.
        """
        return self._reading.parser(call_id)


class PromptMaker:
    """A model's template and vocabulary. Raises ``LoadError("template-invalid")`` if it does not compile."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._source = model.chat_template() or CHATML
        try:
            self._template = ChatTemplate(self._source, bos_text=model.bos_text, eos_text=model.eos_text)
        except RenderError as error:
            raise LoadError("template-invalid", str(error)) from None
        self._family = family_of(self._source)
        marks = {self._only_token(marker): marker for marker in self._family.markers}
        self.seals: Final = {token: sealed(marker).encode() for token, marker in marks.items() if token is not None}
        """Tokens that are markers, and the bytes by which a parser knows them; in place of ``Model.piece``."""
        self._tokens = frozenset(marker for token, marker in marks.items() if token is not None)

    def try_out(self) -> None:
        """One short conversation. Raises ``LoadError("template-invalid")``."""
        hello = Conversation(messages=(Message(role="user", content="Hello"),))
        prompt = self.prompt(hello, self._model.training_context_tokens)
        try:
            while not prompt.advance():
                pass
        except PromptError as error:
            raise LoadError("template-invalid", str(error)) from None

    def prompt(
        self, asked: Conversation | TextPrompt | TokenPrompt, at_most_tokens: int, *, constrained: bool = False
    ) -> Prompt:
        """A prompt of which nothing is done yet. ``constrained`` says that the caller has a constraint of its own: then
        the answer is begun past any reasoning, and a call that must be made is refused."""
        reading = Reading(self._family, self._tokens) if isinstance(asked, Conversation) else Reading()
        return Prompt(self._blocks(asked, reading, constrained), at_most_tokens, reading)

    def _blocks(
        self, asked: Conversation | TextPrompt | TokenPrompt, reading: Reading, constrained: bool
    ) -> Iterator[TokenIds]:
        """Raises ``RenderError``, ``ValueError``, both from the first block on."""
        match asked:
            case Conversation():
                parts = yield from _no_tokens_yet(self._template.render(asked))
                yield from self._tokenised(self._completed(parts, asked, reading, constrained))
            case TextPrompt():
                yield from self._tokenised((Part(asked.text, content=True),))
            case TokenPrompt():
                yield self._checked(asked.ids)

    def _completed(
        self, parts: tuple[Part, ...], asked: Conversation, reading: Reading, constrained: bool
    ) -> tuple[Part, ...]:
        """The parts of the prompt, with what the answer must begin with. Raises ``RenderError``."""
        reading.tools = offered(asked)
        reading.opening = "" if not parts or parts[-1].content else parts[-1].text
        close = dict(self._family.thinks).get(self._family.open_mark(reading.opening), "")
        begun: tuple[Part, ...] = ()
        if asked.forced_tool or asked.tool_choice == "required":
            if constrained:
                raise RenderError("an answer cannot be a call and under another constraint")
            begun, schema = forced_call(self._family.name, self._source, reading.tools, open_mark_close=close)
            reading.constraint = JsonSchema(schema=schema)
        elif constrained:
            begun = constrained_answer(self._family.name, open_mark_close=close)
        reading.begun = "".join(part.text for part in begun)
        return parts + begun

    def _only_token(self, marker: str) -> int | None:
        """The token that is this marker, if one is."""
        try:
            tokens = [token for block in self._model.template_tokens(marker, first=False) for token in block.tolist()]
        except ValueError:
            return None  # a vocabulary that cannot write it has no token for it
        return tokens[0] if len(tokens) == 1 else None

    def _tokenised(self, parts: Iterable[Part]) -> Iterator[TokenIds]:
        """The prompt's tokens, the vocabulary's first token before them. Raises ``ValueError``."""
        begun = False
        for part in parts:
            make = self._model.content_tokens if part.content else self._model.template_tokens
            for block in make(part.text, first=not begun):
                if len(block):
                    yield block if begun else self._model.with_bos(block)
                    begun = True
        if not begun:
            yield self._model.with_bos(np.zeros(0, np.int32))

    def _checked(self, ids: tuple[int, ...]) -> TokenIds:
        """Token ids as a caller gave them. Raises ``ValueError``: llama.cpp aborts for one outside the vocabulary."""
        if max(ids) >= self._model.vocabulary_tokens:
            raise ValueError("a token id is outside the vocabulary")
        return np.array(ids, np.int32)


def _no_tokens_yet(rendering: Generator[None, None, tuple[Part, ...]]) -> Generator[TokenIds, None, tuple[Part, ...]]:
    """An empty block for each slice of a rendering."""
    while True:
        try:
            next(rendering)
        except StopIteration as done:
            parts: tuple[Part, ...] = done.value
            return parts
        yield np.zeros(0, np.int32)
