"""From a conversation to the tokens of its prompt.

Trusts: nothing; see ``chat.template``.
Promises: control tokens come from the template alone, never from a message.
Not here: limits on the number of tokens (``channel``).
"""

import numpy as np

from appliance.core.values import Message
from appliance.runner.chat.template import CHATML, ChatTemplate, Part, RenderError
from appliance.runner.engine.model import LoadError, Model, TokenIds


class PromptError(Exception):
    """This conversation cannot be put to this model. The text is for the operator."""


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
        try:
            self.tokens((Message(role="user", content="Hello"),))
        except PromptError as error:
            raise LoadError("template-invalid", str(error)) from None

    def tokens(self, messages: tuple[Message, ...]) -> TokenIds:
        """Token ids of the whole prompt, at least one. Raises ``PromptError``."""
        try:
            parts = self._template.render(messages)
            pieces = [self._part_tokens(part, first=not number) for number, part in enumerate(parts)]
        except (RenderError, ValueError) as error:
            raise PromptError(str(error)) from None
        tokens = self._model.with_bos(np.concatenate(pieces) if pieces else np.zeros(0, np.int32))
        if not len(tokens):
            raise PromptError("the prompt is empty")
        return tokens

    def _part_tokens(self, part: Part, *, first: bool) -> TokenIds:
        if part.content:
            return self._model.content_tokens(part.text, first=first)
        return self._model.template_tokens(part.text, first=first)
