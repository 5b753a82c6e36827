"""Deadlines of one length, for many who wait at once, by one timer of the event loop.

A request begins and ends half a dozen waits, nearly all of which end in time. A timer for each is a walk through the
loop's heap, twice. Those that are equally long end in the order in which they began: a dictionary keeps that, and one
timer for the first of them is enough.

Trusts: one event loop, and its clock.
Promises: what began is called once, not before its time, unless it was ended or began anew; an error in one call keeps
    no other from its own.
Not here: what happens then (``wire``, ``pipeline``).
"""

import asyncio
from collections.abc import Callable

OnDue = Callable[[], object]


class Deadlines:
    """Each ``seconds`` long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[OnDue, float] = {}
        self._timer: asyncio.Handle | None = None

    def begin(self, on_due: OnDue) -> None:
        """``on_due`` is its name too: one that is waiting already begins anew."""
        loop = asyncio.get_running_loop()
        self._due.pop(on_due, None)
        self._due[on_due] = due = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)

    def end(self, on_due: OnDue) -> None:
        """Safe to call for one that never began. The timer stays: it will find the next one."""
        self._due.pop(on_due, None)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        first = next(iter(self._due.items()), None)
        if first is None:
            return
        on_due, due = first
        if due > loop.time():
            self._timer = loop.call_at(due, self._look)
            return
        del self._due[on_due]
        self._timer = loop.call_soon(self._look)
        on_due()
