"""Qwen3-Coder, Qwen 3.5, Nemotron 3: calls in a form like XML.

``<tool_call>`` ``<function=name>``, then ``<parameter=key>`` newline value newline ``</parameter>`` for each argument,
``</function>`` ``</tool_call>``. Qwen3-Coder at times leaves the outer mark out. Source: the model card and template of
Qwen3-Coder.

The arguments become a JSON object here. A value is a string where the tool's schema says so, and otherwise JSON if it
reads as JSON.

Trusts: nothing, and in a tool's schema only which parameters are strings.
Promises: as ``chat.answer``: the same pieces wherever the text is cut, calls of offered tools only.
Not here: whether values fit the schema.
"""

from typing import Any, Final

import msgspec

from appliance.core.values import Tool
from appliance.runner.chat.answer import MAX_HELD_CHARACTERS, Answer, NotACallError, Reading, Sink
from appliance.runner.chat.families.common import THINK, thinking

_CALL: Final = ("<tool_call>", "</tool_call>")
_FUNCTION: Final = ("<function=", "</function>")
_PARAMETER: Final = ("<parameter=", "</parameter>")
MARKERS: Final = (*_CALL, *_FUNCTION, *_PARAMETER, *THINK)


def read(answer: Answer) -> Reading[None]:
    while marker := (yield from answer.until((_CALL[0], _FUNCTION[0], THINK[0]), answer.say)):
        if marker == THINK[0]:
            yield from thinking(answer, THINK[1])
            continue
        answer.hold(marker)
        try:
            yield from _call(answer, begun=marker == _FUNCTION[0])
        except NotACallError:
            answer.let_go()


def _call(answer: Answer, *, begun: bool) -> Reading[None]:
    if not begun:
        yield from answer.skip_space()
        yield from answer.expect(_FUNCTION[0])
    name = yield from answer.word()
    yield from answer.expect(">")
    arguments = answer.call(name)
    yield from _arguments(answer, arguments, answer.tools[name])
    for end in (_FUNCTION[1], _CALL[1]):
        yield from answer.skip_space()
        yield from answer.accept(end)
    yield from answer.skip_space()


def _arguments(answer: Answer, sink: Sink, tool: Tool) -> Reading[None]:
    strings = _string_parameters(tool)
    separator = "{"
    while True:
        yield from answer.skip_space()
        if not (yield from answer.accept(_PARAMETER[0])):
            break
        key = yield from _key(answer)
        sink(f"{separator}{_json(key)}: ")
        separator = ", "
        value = _Value(sink, is_string=key in strings)
        yield from answer.until((_PARAMETER[1],), value.add)
        value.end()
    sink("{}" if separator == "{" else "}")


def _key(answer: Answer) -> Reading[str]:
    """Up to ``>``, which no key has."""
    taken: list[str] = []
    while (character := (yield from answer.peek())) not in (">", ""):
        yield from answer.expect(character)
        taken.append(character)
    yield from answer.accept(">")
    return "".join(taken)


class _Value:
    """One argument on its way to JSON. The line ends that set it off from its marks are not of it."""

    def __init__(self, sink: Sink, *, is_string: bool) -> None:
        self._sink = sink
        self._is_string = is_string
        self._begun = False
        self._kept = ""

    def add(self, text: str) -> None:
        self._kept += text
        if self._is_string or len(self._kept) > MAX_HELD_CHARACTERS:
            self._is_string = True
            if len(self._kept) > 1:  # the first and the last character may be line ends of the form
                self._write(self._kept[:-1])
                self._kept = self._kept[-1:]

    def end(self) -> None:
        value = self._kept.strip()
        if not self._is_string and _is_json(value):
            self._sink(value)
            return
        self._write(self._kept.removesuffix("\n"))
        self._sink('"')

    def _write(self, text: str) -> None:
        if not self._begun:
            self._begun = True
            self._sink('"')
            text = text.removeprefix("\n")
        if text:
            self._sink(_json(text)[1:-1])


def _string_parameters(tool: Tool) -> frozenset[str]:
    """Those that the schema calls strings."""
    try:
        schema: Any = msgspec.json.decode(tool.parameters)
        parameters = dict(schema["properties"]).items()
        return frozenset(key for key, each in parameters if isinstance(each, dict) and _may_be_string(each))
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, RecursionError):
        return frozenset()


def _may_be_string(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()
