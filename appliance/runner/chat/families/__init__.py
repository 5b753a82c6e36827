"""How models write calls and reasoning: one module for each family, and which family a template belongs to.

A family is known by the marks that its template writes, since nothing else in a model's file says what it was trained
to write. A template without any is plain: its answers are text and cost nothing here.

Trusts: nothing; a template that names the marks of another family gets that family's reading of its own model's text.
Promises: ``family_of`` is a pure function of the template.
Not here: the reading (``chat.answer`` and the families), the template's output (``chat.template``).
"""

from collections.abc import Callable
from typing import Any, Final

from appliance.core.values import Tool, Value
from appliance.runner.chat.answer import Answer, AnswerParser, Reading
from appliance.runner.chat.families import coder, deepseek, granite, harmony, hermes, llama, mistral, thinker
from appliance.runner.chat.families.common import THINK


class Family(Value, frozen=True, kw_only=True):
    """``markers`` may be tokens of the vocabulary; those that are must reach the parser sealed (``answer.sealed``).

    ``thinks`` are the pairs of marks around reasoning that the template knows.
    """

    name: str
    markers: tuple[str, ...] = ()
    read: Callable[[Answer], Reading[None]] | None = None
    thinks: tuple[tuple[str, str], ...] = ()

    def parser(
        self,
        tools: tuple[Tool, ...],
        *,
        call_id: str,
        opening: str = "",
        begun: str = "",
        tokens: frozenset[str] = frozenset(),
    ) -> AnswerParser | None:
        """For one answer; None when it can be nothing but text.

        ``opening`` is the end of the template's prompt, ``begun`` what was written of the answer behind it, ``tokens``
        are the markers that come sealed, ``call_id`` makes the ids of calls unique among requests.
        """
        if self.read is None or not (tools or self.thinks or self.read is harmony.read):
            return None
        answer = Answer(
            self.markers,
            only_first=[mark for mark, _ in self.thinks],
            tokens=tokens,
            tools={tool.name: tool for tool in tools},
            call_id=call_id,
        )
        return AnswerParser(answer, self.read(answer), begun=answer.spell(self.open_mark(opening) + begun))

    def open_mark(self, opening: str) -> str:
        """The mark that the end of a prompt is, if the answer begins inside its reasoning; "" if not."""
        opening = opening.rstrip()
        return next((mark for mark, _ in self.thinks if opening.endswith(mark)), "")


PLAIN: Final = Family(name="plain")
_PAIRS: Final = (THINK, mistral.BRACKETS)


def family_of(template: str) -> Family:
    """A template's source -> its family."""
    module = _module_of(template)
    if module is None:
        return PLAIN
    thinks = tuple(pair for pair in _PAIRS if pair[1] in template and pair[1] in module.MARKERS)
    unknown = {mark for pair in _PAIRS if pair not in thinks for mark in pair}
    markers = tuple(marker for marker in module.MARKERS if marker not in unknown)
    return Family(name=module.__name__.rpartition(".")[2], markers=markers, read=module.read, thinks=thinks)


def _module_of(template: str) -> Any:
    """The first whose marks are there: some families' templates name marks of others besides their own."""
    if harmony.CHANNEL in template and harmony.MESSAGE in template:
        return harmony
    if mistral.CALL in template or mistral.BRACKETS[0] in template:
        return mistral
    if deepseek.ONE[0] in template:
        return deepseek
    if "<|start_of_role|>" in template and ("tool_call" in template or THINK[0] in template):
        return granite
    if "<function=" in template and "<parameter=" in template:
        return coder
    if hermes.CALL in template and "<arg_key>" not in template:
        return hermes
    if "<|start_header_id|>" in template and '"parameters"' in template:
        return llama
    return thinker if THINK[1] in template else None
