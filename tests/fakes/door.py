"""The two ports of the gate: ``core.ports.AddressLimiter`` and ``core.ports.TokenVerifier``."""

from collections.abc import MutableMapping
from typing import Any

import msgspec

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
from tests.fakes.steps import Steps
from tests.support.made_values import CLAIMS


class FakeAddressLimiter:
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def check(self, scope: MutableMapping[str, Any]) -> None:
        assert scope["client"]
        self._steps.note("address")


class FakeVerifier:
    """Knows one token: ``good``."""

    def __init__(self, steps: Steps) -> None:
        self.claims = msgspec.structs.replace(CLAIMS)
        self.asked_at: list[int] = []
        self.presented: list[Presented] = []
        self.ended: set[str] = set()
        self._steps = steps

    async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
        self._steps.note("verify")
        self.asked_at.append(now_seconds)
        self.presented.append(presented)
        if presented.unverified_token != "good":
            raise Refused(Reason.TOKEN_INVALID, "not the good one")
        return self.claims

    def has_ended(self, claims: VerifiedClaims) -> bool:
        return claims.token_id in self.ended
