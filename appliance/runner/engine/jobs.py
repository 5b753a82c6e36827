"""What is asked of the engine, and what it tells of it.

Trusts: whoever makes a job for a prompt that is not empty, for token ids in range, and for a prompt and an answer that
fit the context (``channel``).
Promises: nothing of its own: the channel and the engine thread keep to what stands at each field.
Not here: who comes first (``engine.fair``), what becomes of a job (``engine.steps``).
"""

from typing import Literal, NamedTuple

from appliance.core.values import FinishReason, Sampling
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.logprobs import Logprobs
from appliance.runner.engine.model import TokenIds

Refusal = Literal["", "queue-full", "queue-timeout"]


class Job:
    """One answer that is asked of the engine. The channel sets ``cancelled``; the engine looks at it at every step.

    ``principal`` is whose turn it is, ``weight`` how much of one. A prefix is shared only within ``partition``; "" is a
    partition of the request's own. ``queue_ms`` bounds the wait for a slot; 0 is no bound. Jobs of one request differ
    in ``choice``, which counts from 0; they are queued together, and refused together. Each has a ``constraint`` of its
    own.

    The engine sets ``cached_tokens``, how many of the prompt's it did not compute, before the first event. It sets
    ``queue_position``, how many jobs were to get a slot up to this one when it came, 0 with a slot free for it, and
    with the slot ``queued_seconds``.
    """

    __slots__ = (
        "cached_tokens",
        "cancelled",
        "choice",
        "constraint",
        "max_tokens",
        "partition",
        "principal",
        "prompt",
        "queue_ms",
        "queue_position",
        "queued_seconds",
        "request_id",
        "sampling",
        "submitted_at",
        "weight",
    )

    def __init__(
        self,
        request_id: str,
        prompt: TokenIds,
        sampling: Sampling,
        max_tokens: int,
        *,
        principal: str = "",
        weight: int = 1,
        partition: str = "",
        queue_ms: int = 0,
        choice: int = 0,
        constraint: CompiledConstraint | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.principal = principal
        self.weight = weight
        self.partition = partition
        self.queue_ms = queue_ms
        self.choice = choice
        self.constraint = constraint
        self.cancelled = False
        self.submitted_at = 0.0
        self.cached_tokens = 0
        self.queue_position = 0
        self.queued_seconds = 0.0


class Event(NamedTuple):
    """A job has a slot (``begun``), or a token, or has ended (``token`` is then -1).

    A job that never had a slot ends with ``refused``, with a guess of when it is worth coming back, and with how many
    jobs were ``ahead`` of it.
    """

    job: Job
    token: int = -1
    logprobs: Logprobs | None = None
    begun: bool = False
    ended: FinishReason | None = None
    detail: str = ""
    refused: Refusal = ""
    retry_after_seconds: int = 0
    ahead: int = 0
