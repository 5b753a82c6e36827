"""What a template may spend. It is a program of the model's, and it runs in the thread that serves everybody.

Time is looked at every few lines of Python that run for the template, its own compiled lines and Jinja's filters alike
(``sys.settrace``; no signal, no second thread). Between two looks lie a few operations of the interpreter on values
that memory bounds; those that could be slow on small values, powers and products, are kept small here. Writing JSON is
one of them, but for what a filter has yet to make of a list (``placeholders.to_json``).

Trusts: nothing.
Promises: what runs under ``time_limit`` ends soon after its time is over.
Not here: the size of the output (``chat.template``), memory (the runner's limits).
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_CPU_SECONDS: Final = 1.0
_LINES_PER_LOOK: Final = 16  # the clock is a call of the kernel, and ten times the price of counting
_MAX_PRODUCT: Final = 1_000_000

Look = Callable[[FrameType, Any, Any], Any]
"""As ``sys.settrace`` takes it."""


class OutOfTime(BaseException):
    """The template has had its time. Like ``KeyboardInterrupt``, so that no handler takes it for an error."""


@contextmanager
def time_limit(cpu_seconds: float) -> Iterator[None]:
    """Raises ``OutOfTime`` within the block once this thread has computed for so long. A busy host costs nothing."""
    end = time.thread_time() + cpu_seconds
    lines = 0

    def look(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += 1
        if lines % _LINES_PER_LOOK == 0 and time.thread_time() > end:
            raise OutOfTime
        return look

    with looked_at_by(look):
        yield


@contextmanager
def looked_at_by(look: Look | None) -> Iterator[None]:
    """What runs in the block is looked at so, or not at all. The latter is for what is done in one go and in proportion
    to its input, and runs nothing of the template's: looking at each line would take several times as long."""
    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


class GenerationTag(Extension):
    """``{% generation %}``, with which Transformers marks what the model said. Here its body is all of it."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, without ``**`` and without products of more than a million (characters, items or units)."""

    intercepted_binops = frozenset(("**", "*"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or _size(left) * _size(right) > _MAX_PRODUCT:
            raise SecurityError(f"the template multiplies beyond {_MAX_PRODUCT}")
        return super().call_binop(context, operator, left, right)


def _size(operand: Any) -> float:
    return abs(operand) if isinstance(operand, int | float) else len(operand) if hasattr(operand, "__len__") else 1
