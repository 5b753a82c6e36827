# ruff: noqa: RUF001  the marks are written with a full-width bar
"""DeepSeek V3, R1 and V3.1, and the models distilled from R1.

Calls stand together between the marks ``ALL``, each between the marks ``ONE``. Inside is the name, ``SEPARATOR`` and an
object (V3.1), or the word ``function``, ``SEPARATOR``, the name and the arguments as a fenced block of JSON (V3, R1).
Thinking in ``<think>``. Source: the model cards of DeepSeek-V3.1 and R1.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: the form of V3.2 and later, whose calls are text.
"""

from typing import Final

from appliance.runner.chat.answer import Answer, NotACallError, Reading
from appliance.runner.chat.families.common import THINK, thinking

ALL: Final = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
ONE: Final = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
SEPARATOR: Final = "<｜tool▁sep｜>"
_FENCE: Final = "```"
MARKERS: Final = (*ALL, *ONE, SEPARATOR, *THINK)


def read(answer: Answer) -> Reading[None]:
    while marker := (yield from answer.until((ALL[0], ONE[0], THINK[0]), answer.say)):
        if marker == THINK[0]:
            yield from thinking(answer, THINK[1])
            continue
        answer.hold(marker)
        try:
            yield from _calls(answer, begun=marker == ONE[0])
        except NotACallError:
            answer.let_go()


def _calls(answer: Answer, *, begun: bool) -> Reading[None]:
    if not begun:
        yield from answer.skip_space()
        yield from answer.expect(ONE[0])
    while True:
        yield from _call(answer)
        yield from answer.skip_space()
        yield from answer.accept(ONE[1])
        yield from answer.skip_space()
        if not (yield from answer.accept(ONE[0])):
            break
        answer.hold(ONE[0])
    if (yield from answer.accept(ALL[1])):
        yield from answer.skip_space()


def _call(answer: Answer) -> Reading[None]:
    name = yield from answer.word()
    yield from answer.expect(SEPARATOR)
    yield from answer.skip_space()
    fenced = (yield from answer.peek()) != "{"
    if fenced:
        name = yield from answer.word()
        yield from answer.skip_space()
        yield from answer.expect(_FENCE)
        yield from answer.accept("json")
        yield from answer.skip_space()
    yield from answer.json_value(answer.call(name))
    if fenced:
        yield from answer.skip_space()
        yield from answer.accept(_FENCE)
