"""``core.ports.RateLimiter`` that counts and permits."""

from tests.fakes.steps import Steps


class FakeRates:
    def __init__(self, steps: Steps) -> None:
        self.counted: list[str] = []
        self._steps = steps

    async def admit(self, principal_key: str) -> None:
        await self._steps.reach("rate")
        self.counted.append(principal_key)
