"""``core.ports.RateLimiter`` that counts and permits."""

from appliance.core.values import Digest
from tests.fakes.steps import Steps


class FakeRates:
    def __init__(self, steps: Steps) -> None:
        self.counted: list[tuple[str, Digest]] = []
        self._steps = steps

    async def admit(self, principal_key: str, model: Digest) -> None:
        await self._steps.reach("rate")
        self.counted.append((principal_key, model))
