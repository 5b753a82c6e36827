"""Mistral, Ministral, Magistral, Devstral.

Two forms of calls: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`` (tokenizers v2 to v7) and, once for each,
``[TOOL_CALLS]name[ARGS]{...}``, perhaps with ``[CALL_ID]`` and an id before ``[ARGS]`` (v11, v13). Thinking in
``[THINK]``, or in ``<think>`` in the first Magistral. Source: mistral-common's description of its tokenizers.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: whether an id is one of ours; the answer's calls get ids of their own.
"""

from typing import Final

from appliance.runner.chat.answer import Answer, NotACallError, Reading
from appliance.runner.chat.families.common import THINK, json_calls, thinking

CALL: Final = "[TOOL_CALLS]"
ARGUMENTS: Final = "[ARGS]"
_ID: Final = "[CALL_ID]"
BRACKETS: Final = ("[THINK]", "[/THINK]")
MARKERS: Final = (CALL, ARGUMENTS, _ID, *BRACKETS, *THINK)


def read(answer: Answer) -> Reading[None]:
    closes = dict((BRACKETS, THINK))
    while marker := (yield from answer.until((CALL, *closes), answer.say)):
        if marker in closes:
            yield from thinking(answer, closes[marker])
        else:
            yield from _calls(answer)


def _calls(answer: Answer) -> Reading[None]:
    answer.hold(CALL)
    try:
        yield from answer.skip_space()
        if (yield from answer.peek()) in ("[", "{"):
            yield from json_calls(answer, CALL)
        else:
            yield from _named(answer)
    except NotACallError:
        answer.let_go()


def _named(answer: Answer) -> Reading[None]:
    name = yield from answer.word()
    if (yield from answer.accept(_ID)):
        yield from answer.word()
    yield from answer.accept(ARGUMENTS)
    yield from answer.skip_space()
    if (yield from answer.peek()) != "{":
        raise NotACallError
    yield from answer.json_value(answer.call(name))
    yield from answer.skip_space()
