"""What an engine has done since it was loaded, in totals: nothing in it is about one caller.

Trusts: the engine thread, which alone counts.
Promises: counting is adding to integers; ``taken`` may be called by another thread, and then some numbers may be of one
step earlier than others.
Not here: rates and percentiles, which whoever keeps the totals over time can form.
"""

from appliance.core.values import EngineFigures


class Counts:
    """The sums while they grow."""

    __slots__ = (
        "accepted_tokens",
        "admitted",
        "answer_tokens",
        "answered",
        "batch_tokens",
        "cache_hits",
        "cached_tokens",
        "cancelled",
        "failed",
        "first_token_seconds",
        "prompt_tokens",
        "proposed_tokens",
        "queue_seconds",
        "refused",
        "step_seconds",
        "steps",
    )

    def __init__(self) -> None:
        self.admitted = self.refused = self.cancelled = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.cache_hits = 0
        self.answer_tokens = self.answered = 0
        self.proposed_tokens = self.accepted_tokens = 0
        self.steps = self.batch_tokens = 0
        self.first_token_seconds = self.queue_seconds = self.step_seconds = 0.0

    def taken(self, *, waiting: int, busy_slots: int, slots: int, used_cells: int, cells: int) -> EngineFigures:
        """All of it, with the states of now."""
        sums = {name: getattr(self, name) for name in self.__slots__}
        return EngineFigures(
            waiting=waiting, busy_slots=busy_slots, slots=slots, used_cells=used_cells, cells=cells, **sums
        )
