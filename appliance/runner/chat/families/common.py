"""What several families have in common: thinking between two marks, and calls written as JSON.

A call is an object with ``name`` and ``arguments`` (or ``parameters``), in any order; ``id``, ``type`` and ``index``
may stand beside them. Arguments go out as they come once the name is known, and need not be JSON in the end.

Trusts: nothing; see ``chat.answer``.
Promises: what turns out to be no call of an offered tool comes out as the text that it was.
Not here: the marks (the families).
"""

from typing import Final

from appliance.runner.chat.answer import Answer, NotACallError, Reading, Sink

THINK: Final = ("<think>", "</think>")

_ARGUMENTS: Final = frozenset({"arguments", "parameters"})
_BESIDE: Final = frozenset({"id", "type", "index"})


def thinking(answer: Answer, close: str) -> Reading[None]:
    """After the opening mark."""
    yield from answer.skip_space()
    yield from answer.until((close,), answer.think)
    yield from answer.skip_space()


def json_calls(answer: Answer, marker: str = "", close: str = "") -> Reading[None]:
    """After ``marker``: one call or an array of calls, and then perhaps ``close``."""
    answer.hold(marker)
    try:
        yield from answer.skip_space()
        if (yield from answer.accept("[")):
            yield from _array(answer)
        else:
            yield from json_call(answer)
    except NotACallError:
        return answer.let_go()
    yield from answer.skip_space()
    if close and (yield from answer.accept(close)):
        yield from answer.skip_space()
    return None


def _array(answer: Answer) -> Reading[None]:
    while True:
        yield from answer.skip_space()
        yield from json_call(answer)
        yield from answer.skip_space()
        if not (yield from answer.accept(",")):
            break
        answer.hold(",")
    yield from answer.accept("]")


def json_call(answer: Answer) -> Reading[None]:
    """One object. Raises ``NotACallError`` unless it is a call, which it is from its name on."""
    yield from answer.expect("{")
    call = _Call(answer)
    try:
        yield from call.members()
    except NotACallError:
        if not call.begun:
            raise
    yield from answer.accept("}")
    call.end()


class _Call:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._sink: Sink | None = None
        self._early: list[str] = []
        self._given = False

    @property
    def begun(self) -> bool:
        return self._sink is not None

    def members(self) -> Reading[None]:
        """As far as they are JSON."""
        answer = self._answer
        while True:
            yield from answer.skip_space()
            if (yield from answer.peek()) != '"':
                return
            key = yield from answer.json_text()
            yield from answer.skip_space()
            yield from answer.expect(":")
            yield from answer.skip_space()
            yield from self._member(key)
            yield from answer.skip_space()
            if not (yield from answer.accept(",")):
                return

    def _member(self, key: str) -> Reading[None]:
        if key == "name" and self._sink is None:
            self._sink = self._answer.call((yield from self._answer.json_text()))
            if self._given:
                self._sink("".join(self._early))
        elif key in _ARGUMENTS and not self._given:
            self._given = True
            yield from self._answer.json_value(self._sink or self._early.append)
        elif self._sink is None and key not in _BESIDE:
            raise NotACallError
        else:
            yield from self._answer.json_value(_nowhere)

    def end(self) -> None:
        """Raises ``NotACallError`` when there was no name."""
        if self._sink is None:
            raise NotACallError
        if not self._given:
            self._sink("{}")


def _nowhere(_text: str) -> None:
    """What stands beside a call is for nobody."""
