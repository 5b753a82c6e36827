"""Llama 3.1 to 3.3.

An answer that begins with ``{"name": ..., "parameters": {...}}`` is a call; more may follow after a semicolon.
``<|python_tag|>`` may stand before it. Source: the prompt format page of Llama 3.1.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: the calls of built-in tools in Python's form, which no application offers: they are text.
"""

from typing import Final

from appliance.runner.chat.answer import Answer, NotACallError, Reading
from appliance.runner.chat.families.common import json_call

CALL: Final = "<|python_tag|>"
MARKERS: Final = (CALL,)


def read(answer: Answer) -> Reading[None]:
    yield from _calls(answer)
    while marker := (yield from answer.until((CALL,), answer.say)):
        yield from _calls(answer, marker)


def _calls(answer: Answer, marker: str = "") -> Reading[None]:
    answer.hold(marker)
    if answer.tools or marker:
        try:
            while True:
                yield from answer.skip_space()
                yield from answer.accept(CALL)
                yield from answer.skip_space()
                yield from json_call(answer)
                yield from answer.skip_space()
                answer.hold()
                yield from answer.expect(";")
        except NotACallError:
            pass
    answer.let_go()
