"""The model's chat template, rendered without ever seeing what a caller wrote.

A template comes with the model and is a program; a caller's text is data that may look like the template's control
tokens. So the template is rendered over unguessable placeholders, and the result is cut at them: the parts between are
the template's own text, the placeholders stand for the callers' texts. A caller who writes the end-of-turn token gets
its characters, not its meaning (CVE-2024-34359 is a template with the run of the process; that one is for Jinja's
sandbox here, and for the runner's behind it).

A template that looks into a content (``trim``, ``in``, ``split``) sees the placeholder. One that drops a message or
changes its text is refused for that conversation, rather than answered without, say, its system message.

Trusts: nothing; the template is the model's, the messages are the caller's.
Promises: parts in order; the text of every non-empty message is one part or more, unchanged.
Not here: tokens (``chat.prompt``).
"""

import json
import os
import re
from typing import Any, Final, NamedTuple, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.core.text import printable
from appliance.core.values import Message

MAX_OUTPUT_CHARACTERS: Final = 1_000_000
_MAX_DETAIL: Final = 300

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that brings no template."""

_THE_DAY: Final = {
    "%Y": "2026", "%y": "26", "%m": "01", "%d": "01", "%e": " 1", "%j": "001", "%H": "00", "%M": "00", "%S": "00",
    "%B": "January", "%b": "Jan", "%A": "Thursday", "%a": "Thu", "%F": "2026-01-01", "%T": "00:00:00", "%%": "%",
}  # fmt: skip


class RenderError(Exception):
    """The template does not accept this conversation, or failed on it. The text is for the operator."""


class Part(NamedTuple):
    """A piece of the prompt. ``content`` is True for a caller's text, False for the template's own."""

    text: str
    content: bool


class ChatTemplate:
    """A compiled template. Raises ``RenderError`` when it does not compile."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[jinja2.ext.LoopControlExtension]
        )  # no HTML is made here: autoescape would change the prompt
        environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
        environment.globals |= {"dict": dict, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.filters["tojson"] = _to_json
        self._constants = {"bos_token": bos_text, "eos_token": eos_text, "add_generation_prompt": True, "tools": None}
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # noqa: BLE001  a hostile template can make the compiler raise anything
            raise RenderError(_describe(error)) from None

    def render(self, messages: tuple[Message, ...]) -> tuple[Part, ...]:
        """Conversation -> parts of the prompt. Raises ``RenderError``."""
        mark = os.urandom(16).hex()
        names = [f"x{mark}x{number}x" if message.content else "" for number, message in enumerate(messages)]
        turns = [{"role": m.role, "content": name} for m, name in zip(messages, names, strict=True)]
        pieces = re.split(f"(x{mark}x[0-9]+x)", self._render(turns))
        contents = {name: message.content for name, message in zip(names, messages, strict=True) if name}
        if any(mark in piece.lower() and piece not in contents for piece in pieces):
            raise RenderError("the template changes the text of a message")
        missing = contents.keys() - set(pieces)
        if missing:
            raise RenderError(f"the template leaves out {len(missing)} of {len(messages)} messages")
        return tuple(Part(contents.get(piece, piece), piece in contents) for piece in pieces if piece)

    def _render(self, turns: list[dict[str, str]]) -> str:
        output: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(messages=turns, **self._constants):
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    break
                output.append(piece)
        except Exception as error:  # noqa: BLE001  a hostile template can raise anything, MemoryError included
            raise RenderError(_describe(error)) from None
        if size > MAX_OUTPUT_CHARACTERS:
            raise RenderError(f"the template makes more than {MAX_OUTPUT_CHARACTERS} characters")
        return "".join(output)


def _describe(error: Exception) -> str:
    """Kind and text of an error. The text is the template's or Jinja's; no caller's text was near it."""
    return printable(f"{type(error).__name__}: {error}"[:_MAX_DETAIL])


def _raise_exception(message: Any = "") -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: Any = "") -> str:
    """A fixed day: a runner has no calendar, and the same conversation always makes the same prompt."""
    return re.sub("%.", lambda found: _THE_DAY.get(found.group(), ""), str(form))


def _to_json(value: Any, **options: Any) -> str:
    """Plain JSON, as templates written for Hugging Face expect; Jinja's own escapes for HTML."""
    allowed = {name: options[name] for name in ("indent", "separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=False, **allowed)
