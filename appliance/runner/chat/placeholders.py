"""Names that stand for callers' texts while a template runs, and the cutting of its output at them.

A placeholder says how often its text has been written as JSON on the way (``tojson`` in the template): ``x<mark>x1x7x``
is the seventh text, escaped once. So a caller's text that ends inside a JSON document of the template's stays inside
its string, whatever it says, and the template never sees it.

Trusts: nothing; the texts are the callers', the output is the template's.
Promises: every text of a caller that is in the output is in a part of its own kind, as the caller wrote it, escaped as
often as the template escaped it; the JSON around it may be part of it. A text that the template cut, changed or left
out is found.
Not here: which texts there are (``chat.turns``), the template (``chat.template``).
"""

import json
import os
import re
import sys
from collections.abc import Generator
from itertools import groupby
from types import GeneratorType
from typing import Any, Final, NamedTuple

from appliance.runner.chat.limits import looked_at_by

MAX_TEXTS: Final = 20_000
"""More cannot be in an output of ``template.MAX_OUTPUT_CHARACTERS``, and each costs time before the template runs."""
_TEXTS_PER_SLICE: Final = 128
_MAX_ESCAPES: Final = 3
_MAX_LEAD: Final = 256

_GLUE: Final = r'(?:[\[\]{}:,\s]|"[A-Za-z$]++"|"|-?[0-9][0-9.eE+-]*+|true|false|null)'
_JSON_BEFORE: Final = re.compile(rf'[\[{{"]{_GLUE}*+\Z')
_JSON_AFTER: Final = re.compile(rf'{_GLUE}*[\]}}"]')
"""What JSON has between its strings, and words as keys of a schema. A tokeniser should see a document whole, as in
training; read as content, it says the same, since no name of a control token is made of this."""

_ANY: Final = re.compile("x([0-9a-f]{32})x([0-9]+)x([0-9]+)x")


class RenderError(Exception):
    """The template does not accept this conversation, or failed on it. The text is for the operator."""


class Part(NamedTuple):
    """A piece of the prompt. ``content`` is True for a caller's text, False for the template's own."""

    text: str
    content: bool


class Placeholders:
    """Those of one rendering."""

    def __init__(self) -> None:
        self._mark = os.urandom(16).hex()
        self._texts: list[str] = []
        self._wanted: dict[int, str] = {}

    def stand_for(self, text: str, wanted: str = "") -> str:
        """The placeholder of a text; empty for an empty one. ``wanted`` is what the prompt lacks without it.

        Raises ``RenderError`` when there are more than ``MAX_TEXTS``.
        """
        if not text:
            return ""
        number = len(self._texts)
        if number >= MAX_TEXTS:
            raise RenderError(f"the conversation and its tools have more than {MAX_TEXTS} texts")
        self._texts.append(text)
        if wanted:
            self._wanted[number] = wanted
        return f"x{self._mark}x0x{number}x"

    def cut(self, output: str) -> Generator[None, None, tuple[Part, ...]]:
        """A template's output -> the parts of the prompt, in slices. Raises ``RenderError``."""
        parts: list[Part] = []
        seen: set[int] = set()
        escaped: dict[tuple[int, int], str] = {}
        place = 0
        for found in _ANY.finditer(output):
            mark, escapes, number = found.group(1), int(found.group(2)), int(found.group(3))
            if mark != self._mark or number >= len(self._texts) or escapes > _MAX_ESCAPES:
                raise RenderError("the template changes the text of a message or a tool")
            before, lead = _split_before(self._own(output[place : found.start()]), in_json=escapes > 0)
            if (number, escapes) not in escaped:
                escaped[number, escapes] = _escaped(self._texts[number], escapes)
            after = _JSON_AFTER.match(output, found.end()) if escapes else None
            place = after.end() if after else found.end()
            text = lead + escaped[number, escapes] + (after.group() if after else "")
            parts += (Part(before, content=False), Part(text, content=True))
            seen.add(number)
            if len(parts) % (2 * _TEXTS_PER_SLICE) == 0:
                yield
        parts.append(Part(self._own(output[place:]), content=False))
        self._check_all_are_in(seen)
        return _joined(parts)

    def _own(self, text: str) -> str:
        rest = text.lower()
        if self._mark[:12] in rest or self._mark[-12:] in rest:
            raise RenderError("the template changes the text of a message or a tool")
        return text

    def _check_all_are_in(self, seen: set[int]) -> None:
        for what in dict.fromkeys(self._wanted.values()):
            numbers = [number for number, wanted in self._wanted.items() if wanted == what]
            missing = len(set(numbers) - seen)
            if missing:
                raise RenderError(f"the template leaves out {missing} of {len(numbers)} {what}")


def _split_before(text: str, *, in_json: bool) -> tuple[str, str]:
    """The template's text before a placeholder, and the JSON at its end that belongs to the placeholder."""
    found = _JSON_BEFORE.search(text, max(0, len(text) - _MAX_LEAD)) if in_json else None
    return (text[: found.start()], found.group()) if found else (text, "")


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Contents side by side as one, and no empty ones."""
    groups = groupby((part for part in parts if part.text), key=lambda part: part.content)
    return tuple(Part("".join(part.text for part in group), content) for content, group in groups)


def to_json(value: Any, **options: Any) -> str:
    """Plain JSON, as templates written for Hugging Face expect; Jinja's own escapes for HTML. Placeholders in it count
    one escape more."""
    allowed = {name: options[name] for name in ("indent", "separators", "sort_keys") if name in options}
    look = sys.gettrace()

    def listed(value: Any) -> list[Any]:
        """What Jinja's filters leave of a list (``map``, ``select``): they run now, and as long as they like."""
        if not isinstance(value, GeneratorType):
            raise TypeError(f"{type(value).__name__} is not JSON serializable")
        with looked_at_by(look):
            return list(value)

    with looked_at_by(None):
        text = json.dumps(value, ensure_ascii=False, default=listed, **allowed)
    return _ANY.sub(lambda found: f"x{found.group(1)}x{int(found.group(2)) + 1}x{found.group(3)}x", text)


def _escaped(text: str, times: int) -> str:
    for _ in range(times):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text
