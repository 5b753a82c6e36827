"""gpt-oss: the harmony format.

An answer is a row of messages: a header, ``<|message|>``, a text, ``<|end|>`` (or ``<|call|>``, ``<|return|>``, which
end the answer), and ``<|start|>assistant`` before the next. The header names the channel after ``<|channel|>`` and, in
a call, the recipient as ``to=functions.name``. ``analysis`` is reasoning; ``final``, and ``commentary`` to nobody, is
text; the text of a call is its arguments. Source: OpenAI's page on the harmony response format.

Trusts: nothing; the text is the model's.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: the built-in tools (``python``, ``browser``), what is written to which is reasoning.
"""

import re
from typing import Final

from appliance.runner.chat.answer import Answer, NotACallError, Reading, Sink

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
CONSTRAIN: Final = "<|constrain|>"
MESSAGE: Final = "<|message|>"
_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>", START)
MARKERS: Final = (CHANNEL, CONSTRAIN, MESSAGE, *_ENDS)
RECIPIENT: Final = "functions."

_MAX_HEADER: Final = 256
_TO: Final = re.compile(r"to=([^\s<]+)")


def read(answer: Answer) -> Reading[None]:
    marker = START
    while marker:
        if marker == START:
            marker = yield from _message(answer)
        else:
            yield from answer.skip_space()
            marker = yield from answer.until((START, CHANNEL), answer.say)
            if marker == CHANNEL:
                marker = yield from _message(answer, CHANNEL)


def _message(answer: Answer, marker: str = "") -> Reading[str]:
    """Returns the marker that ended it, "" at the end of the answer."""
    answer.hold(marker)
    try:
        header = yield from _header(answer, marker)
        sink = _sink(answer, header)
    except NotACallError:
        answer.let_go()
        sink = answer.say
    else:
        answer.drop()
    return (yield from answer.until(_ENDS, sink))


def _header(answer: Answer, marker: str) -> Reading[str]:
    """Raises ``NotACallError`` for one that does not end, or is longer than any."""
    header = [marker]

    def add(text: str) -> None:
        header.append(text)
        if sum(map(len, header)) > _MAX_HEADER:
            raise NotACallError

    while marker != MESSAGE:
        marker = yield from answer.until(MARKERS, add)
        if not marker or marker in _ENDS:
            raise NotACallError
        header.append(marker)
    return "".join(header)


def _sink(answer: Answer, header: str) -> Sink:
    """Raises ``NotACallError`` for a call of a function that was not offered."""
    to = _TO.search(header)
    if to is not None and to.group(1).startswith(RECIPIENT):
        return answer.call(to.group(1).removeprefix(RECIPIENT))
    if f"{CHANNEL}analysis" in header or to is not None:
        return answer.think
    return answer.say
