"""Hermes 2 and 3, Qwen 2.5 and 3, QwQ, and the many that were trained on their form.

``<tool_call>`` newline ``{"name": ..., "arguments": {...}}`` newline ``</tool_call>``, once for each call; thinking in
``<think>``. Sources: the function calling page of Qwen, the model card of Hermes 2 Pro.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: Qwen3-Coder's calls (``families.coder``).
"""

from typing import Final

from appliance.runner.chat.answer import Answer, Reading
from appliance.runner.chat.families.common import THINK, json_calls, thinking

CALL: Final = "<tool_call>"
_END: Final = "</tool_call>"
MARKERS: Final = (CALL, _END, *THINK)


def read(answer: Answer) -> Reading[None]:
    while marker := (yield from answer.until((CALL, THINK[0]), answer.say)):
        if marker == CALL:
            yield from json_calls(answer, CALL, _END)
        else:
            yield from thinking(answer, THINK[1])
