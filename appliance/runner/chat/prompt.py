"""From a conversation to the tokens of its prompt.

Trusts: nothing; see ``chat.template``.
Promises: control tokens come from the template alone, never from a message. A prompt costs time in proportion to the
tokens that were paid for: the work is done block by block and ends at the first token too many.
Not here: how many tokens were paid for, and whose turn it is between blocks (``channel``).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from appliance.core.values import Message
from appliance.ipc.messages import Conversation, TextPrompt, TokenPrompt
from appliance.runner.chat.template import CHATML, ChatTemplate, Part, RenderError
from appliance.runner.engine.model import LoadError, Model, TokenIds


class PromptError(Exception):
    """This conversation cannot be put to this model. The text is for the operator."""


class PromptTooLong(PromptError):
    """It has more tokens than were paid for."""


class Prompt:
    """One conversation on its way to tokens. ``tokens`` are those known so far."""

    def __init__(self, blocks: Iterator[TokenIds], at_most_tokens: int) -> None:
        self._blocks = blocks
        self._at_most_tokens = at_most_tokens
        self._known: list[TokenIds] = []
        self.size = 0

    def advance(self) -> bool:
        """Renders, or tokenises one more block. True when that was all. Raises ``PromptError``."""
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


class PromptMaker:
    """A model's template and vocabulary. Raises ``LoadError("template-invalid")`` if it does not compile."""

    def __init__(self, model: Model) -> None:
        self._model = model
        source = model.chat_template()
        try:
            self._template = ChatTemplate(source or CHATML, bos_text=model.bos_text, eos_text=model.eos_text)
        except RenderError as error:
            raise LoadError("template-invalid", str(error)) from None

    def try_out(self) -> None:
        """One short conversation. Raises ``LoadError("template-invalid")``."""
        hello = Conversation(messages=(Message(role="user", content="Hello"),))
        prompt = self.prompt(hello, self._model.training_context_tokens)
        try:
            while not prompt.advance():
                pass
        except PromptError as error:
            raise LoadError("template-invalid", str(error)) from None

    def prompt(self, asked: Conversation | TextPrompt | TokenPrompt, at_most_tokens: int) -> Prompt:
        """A prompt of which nothing is done yet."""
        return Prompt(self._blocks(asked), at_most_tokens)

    def _blocks(self, asked: Conversation | TextPrompt | TokenPrompt) -> Iterator[TokenIds]:
        """Raises ``RenderError``, ``ValueError``, both from the first block on."""
        match asked:
            case Conversation():
                yield from self._tokenised(self._template.render(asked))
            case TextPrompt():
                yield from self._tokenised((Part(asked.text, content=True),))
            case TokenPrompt():
                yield self._checked(asked.ids)

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
