"""Granite 3 and 4.

``<|tool_call|>`` or ``<tool_call>``, then one call or an array of calls as JSON, then perhaps ``</tool_call>``.
Thinking in ``<think>``, and the answer in ``<response>``, whose marks are no part of it. Source: the model cards of
Granite 3.1 to 4.0.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: citations and the other parts of an answer that Granite can be asked for.
"""

from typing import Final

from appliance.runner.chat.answer import Answer, Reading
from appliance.runner.chat.families.common import THINK, json_calls, thinking

BAR: Final = "<|tool_call|>"
TAG: Final = "<tool_call>"
_END: Final = "</tool_call>"
_RESPONSE: Final = ("<response>", "</response>")
MARKERS: Final = (BAR, TAG, _END, *_RESPONSE, *THINK)


def read(answer: Answer) -> Reading[None]:
    while marker := (yield from answer.until((BAR, TAG, THINK[0], *_RESPONSE), answer.say)):
        if marker in (BAR, TAG):
            yield from json_calls(answer, marker, _END)
        elif marker == THINK[0]:
            yield from thinking(answer, THINK[1])
        else:
            yield from answer.skip_space()
