"""Models of no family that we know, which think in ``<think>`` before they answer.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: calls, which are text.
"""

from typing import Final

from appliance.runner.chat.answer import Answer, Reading
from appliance.runner.chat.families.common import THINK, thinking

MARKERS: Final = THINK


def read(answer: Answer) -> Reading[None]:
    while (yield from answer.until((THINK[0],), answer.say)):
        yield from thinking(answer, THINK[1])
