"""Whose input is computed next: everybody in turn, so that one who brings thousands does not stop one who brings one.

Turns go by principal and not by request, and a turn is one input. A principal's own inputs come first come, first
served.

Trusts: no input is longer than a batch.
Promises: an input waits for at most one of every other principal for each place that it has among its principal's own.
Not here: what is computed (``engine.embedding``).
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Item(Protocol):
    """One input."""

    @property
    def principal(self) -> str: ...

    @property
    def size(self) -> int:
        """In tokens."""
        ...


ItemT = TypeVar("ItemT", bound=Item)


class Turns(Generic[ItemT]):
    """Inputs that wait. One thread only."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[ItemT]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, item: ItemT) -> None:
        self._waiting.setdefault(item.principal, deque()).append(item)

    def take(self, at_most: int, at_most_tokens: int) -> list[ItemT]:
        """The next batch: the first input of whose turn it is, then of the next, until one does not fit."""
        taken: list[ItemT] = []
        room = at_most_tokens
        while self._waiting and len(taken) < at_most:
            principal, items = next(iter(self._waiting.items()))
            if items[0].size > room:
                break
            taken.append(items.popleft())
            room -= taken[-1].size
            if items:
                self._waiting.move_to_end(principal)
            else:
                del self._waiting[principal]
        return taken

    def keep(self, wanted: Callable[[ItemT], bool]) -> None:
        """Forgets all others, wherever they wait."""
        for principal, items in list(self._waiting.items()):
            self._waiting[principal] = deque(filter(wanted, items))
            if not self._waiting[principal]:
                del self._waiting[principal]
