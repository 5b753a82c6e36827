"""The model's chat template, rendered without ever seeing what a caller wrote.

A template comes with the model and is a program; a caller's text is data that may look like the template's control
tokens. So the template is rendered over unguessable placeholders, and the result is cut at them: the parts between are
the template's own text, the placeholders stand for the callers' texts. A caller who writes the end-of-turn token gets
its characters, not its meaning (CVE-2024-34359 is a template with the run of the process; that one is for Jinja's
sandbox here, and for the runner's behind it).

A template that looks into a content (``trim``, ``in``, ``split``) sees the placeholder. One that drops a message, a
tool or a call, or changes its text, is refused for that conversation, rather than answered without, say, its system
message.

Trusts: nothing; the template is the model's, the conversation is the caller's.
Promises: parts in order; the text of every non-empty message is one part or more, unchanged, and every tool and every
call is named. It ends soon after ``limits.RENDER_CPU_SECONDS``, in slices of a few milliseconds, unless one tool or one
piece of the template's output takes longer.
Not here: what the template is told (``chat.turns``), tokens (``chat.prompt``).
"""

import re
import time
from collections.abc import Generator, Iterator
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext

from appliance.core.text import printable
from appliance.ipc.messages import Conversation
from appliance.runner.chat.limits import RENDER_CPU_SECONDS, BoundedEnvironment, GenerationTag, OutOfTime, time_limit
from appliance.runner.chat.placeholders import Part, Placeholders, RenderError, to_json
from appliance.runner.chat.turns import Turns, turns_of

__all__ = ["CHATML", "MAX_OUTPUT_CHARACTERS", "ChatTemplate", "Part", "RenderError"]

MAX_OUTPUT_CHARACTERS: Final = 1_000_000
_MAX_DETAIL: Final = 300
_PIECES_PER_SLICE: Final = 128
_CHARACTERS_PER_SLICE: Final = 8192

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that brings no template."""

_THE_DAY: Final = {
    "%Y": "2026", "%y": "26", "%m": "01", "%d": "01", "%e": " 1", "%j": "001", "%H": "00", "%M": "00", "%S": "00",
    "%B": "January", "%b": "Jan", "%A": "Thursday", "%a": "Thu", "%F": "2026-01-01", "%T": "00:00:00", "%%": "%",
}  # fmt: skip


class ChatTemplate:
    """A compiled template. Raises ``RenderError`` when it does not compile."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        environment = BoundedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[jinja2.ext.LoopControlExtension, GenerationTag],
        )  # no HTML is made here: autoescape would change the prompt
        environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
        environment.globals |= {"dict": dict, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.filters["tojson"] = to_json
        self._constants = {"bos_token": bos_text, "eos_token": eos_text, "add_generation_prompt": True}
        try:
            with time_limit(RENDER_CPU_SECONDS):
                self._template = environment.from_string(source)
        except OutOfTime:
            raise RenderError("the template takes too long to compile") from None
        except Exception as error:  # noqa: BLE001  a hostile template can make the compiler raise anything
            raise RenderError(_describe(error)) from None

    def render(self, conversation: Conversation) -> Generator[None, None, tuple[Part, ...]]:
        """Conversation -> parts of the prompt, in slices of a few milliseconds. Raises ``RenderError``."""
        placeholders = Placeholders()
        turns = yield from turns_of(conversation, placeholders)
        output = yield from self._render(turns)
        return (yield from placeholders.cut(output))

    def _render(self, turns: Turns) -> Generator[None, None, str]:
        pieces = iter(self._template.generate(messages=turns.messages, tools=turns.tools, **self._constants))
        output: list[str] = []
        size, left_seconds = 0, RENDER_CPU_SECONDS
        while True:
            begun = time.thread_time()
            slice_ = _sliced(pieces, left_seconds)
            left_seconds -= time.thread_time() - begun
            output += slice_
            size += sum(map(len, slice_))
            if size > MAX_OUTPUT_CHARACTERS:
                raise RenderError(f"the template makes more than {MAX_OUTPUT_CHARACTERS} characters")
            if not slice_:
                return "".join(output)
            yield


def _sliced(pieces: Iterator[str], cpu_seconds: float) -> list[str]:
    """The next pieces of a template's output, none at its end. Raises ``RenderError``."""
    taken: list[str] = []
    size = 0
    try:
        with time_limit(cpu_seconds):
            for piece in pieces:
                taken.append(piece)
                size += len(piece)
                if len(taken) >= _PIECES_PER_SLICE or size >= _CHARACTERS_PER_SLICE:
                    break
    except OutOfTime:
        raise RenderError("the template takes too long") from None
    except Exception as error:  # noqa: BLE001  a hostile template can raise anything, MemoryError included
        raise RenderError(_describe(error)) from None
    return taken


def _describe(error: Exception) -> str:
    """Kind and text of an error. The text is the template's or Jinja's; no caller's text was near it."""
    return printable(f"{type(error).__name__}: {error}"[:_MAX_DETAIL])


def _raise_exception(message: Any = "") -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: Any = "") -> str:
    """A fixed day: a runner has no calendar, and the same conversation always makes the same prompt."""
    return re.sub("%.", lambda found: _THE_DAY.get(found.group(), ""), str(form))
