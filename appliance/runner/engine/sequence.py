"""A job that has a slot: how much of its prompt and answer is in the KV cache.

Trusts: the engine thread, which alone writes to it.
Promises: nothing of its own.
Not here: who gets a slot (``engine.slots``), what is computed (``engine.filling``), what is drawn (``engine.steps``).
"""

from collections.abc import Hashable

import numpy as np

from appliance.runner.engine.jobs import Job
from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.sampling import Sampler
from appliance.runner.engine.search import Search


class Sequence:
    """A job in a slot. ``position`` counts the tokens in the KV cache; the last of ``answer`` is not yet there.

    ``waits`` for others that may have the same prompt, before it computes anything. ``search`` is that of a draw which
    is not done; the last of ``answer`` is in the cache meanwhile.
    """

    __slots__ = (
        "admitted_at",
        "answer",
        "job",
        "number",
        "position",
        "prompt_tokens",
        "sampler",
        "search",
        "settled",
        "slot",
        "waits",
    )

    def __init__(self, job: Job, number: int, sampler: Sampler, now: float) -> None:
        self.job = job
        self.number = number  # as they came into slots
        self.slot = -1
        self.sampler = sampler
        self.admitted_at = now
        self.prompt_tokens = len(job.prompt)
        self.position = 0
        self.settled = 0  # the position at the last ``Slots.settle``
        self.answer: list[int] = []
        self.waits = True
        self.search: Search | None = None

    @property
    def partition(self) -> Hashable:
        return (self.job.partition, "" if self.job.partition else self.job.request_id)

    @property
    def computed(self) -> TokenIds:
        """The tokens whose keys and values are in the cache."""
        return np.concatenate([self.job.prompt, np.array(self.answer, np.int32)])[: self.position]
