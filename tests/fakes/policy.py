"""``core.ports.PolicyEngine`` with one raw answer, which the test writes, or one for each input."""

import json
from collections.abc import Callable
from typing import Any

from appliance.core.values import Digest
from tests.fakes.steps import Steps

ALLOWED: dict[str, Any] = {"allow": True, "reasons": ["group-permits-model"], "obligations": {}}
DENIED: dict[str, Any] = {"allow": False, "reasons": ["no-group-permits-model"], "obligations": {}}


class FakePolicy:
    def __init__(self, steps: Steps) -> None:
        self.raw_answer: Any = ALLOWED
        self.answer_to: Callable[[dict[str, Any]], Any] | None = None
        self.inputs: list[dict[str, Any]] = []
        self._steps = steps

    @property
    def policy_digest(self) -> Digest:
        return Digest.of(b"policy")

    async def evaluate(self, document: bytes) -> Any:
        await self._steps.reach("policy")
        policy_input = json.loads(document)
        self.inputs.append(policy_input)
        return self.raw_answer if self.answer_to is None else self.answer_to(policy_input)
