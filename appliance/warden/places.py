"""Who has how much of the memory, and of the places: one for each runner, from before it starts until it has ended.

A place is taken before a byte of the model is copied, and given back only when the process is known to have ended: what
has not ended still has its memory.

Trusts: the plans.
Promises: those who have a place fit the budget together; one who does not fit gets none.
Not here: who ends to make room (``pool``, by ``core.memory.who_makes_room``).
"""

import asyncio
from typing import Final

from appliance.core.memory import Room


class Place:
    """Held by whoever made it, once more for each ``keep``, and by every task that it is kept for. Made by
    ``Places.take``."""

    def __init__(self, places: "Places", n_bytes: int) -> None:
        self.n_bytes: Final = n_bytes
        self._places = places
        self._holders = 1

    def keep(self) -> None:
        """Until one more ``leave``."""
        self._holders += 1

    def keep_for(self, ending: "asyncio.Task[object]") -> None:
        """Until this task is done."""
        self.keep()
        ending.add_done_callback(lambda _task: self.leave())

    def leave(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._places.taken.discard(self)


class Places:
    def __init__(self, *, most: int, budget_bytes: int) -> None:
        self.most: Final = most
        self.budget_bytes: Final = budget_bytes
        self.taken: Final[set[Place]] = set()

    def take(self, n_bytes: int) -> Place:
        """To be called when ``room`` has room for it."""
        place = Place(self, n_bytes)
        self.taken.add(place)
        return place

    @property
    def planned_bytes(self) -> int:
        return sum(place.n_bytes for place in self.taken)

    @property
    def room(self) -> Room:
        return Room(self.budget_bytes - self.planned_bytes, self.most - len(self.taken))
