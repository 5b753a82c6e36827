"""``core.ports.TokenBudget`` in memory: one number for everybody, so that a test sees whether it is whole again."""

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Reservation
from tests.fakes.steps import Steps


class FakeBudget:
    def __init__(self, steps: Steps, tokens: int = 10_000) -> None:
        self.left = tokens
        self.held: dict[str, int] = {}
        self.reserved: list[str] = []
        self.settled: list[tuple[str, int]] = []
        self._steps = steps

    async def reserve(self, request_id: str, principal_key: str, tokens: int) -> Reservation:
        await self._steps.reach("reserve")
        if tokens > self.left:
            raise Refused(Reason.BUDGET_EXHAUSTED, retry_after_seconds=60)
        self.left -= tokens
        self.reserved.append(request_id)
        self.held[request_id] = tokens
        return Reservation(request_id=request_id, principal_key=principal_key, tokens=tokens)

    async def settle(self, reservation: Reservation, spent_tokens: int) -> int:
        """Takes effect before it waits, as the port's one implementation does: a cancelled settlement is one."""
        self.settled.append((reservation.request_id, spent_tokens))
        held = self.held.pop(reservation.request_id, 0)
        returned = max(0, held - spent_tokens)
        self.left += returned
        await self._steps.reach("settle")
        return returned
