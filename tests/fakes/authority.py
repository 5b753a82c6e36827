"""``core.ports.AuthorizationServer`` and ``core.ports.Revocations``, which say what the test tells them to."""

from appliance.core.oauth import OAuthAnswer, TokenRequest
from appliance.core.refusals import Reason, Refused
from appliance.core.values import VerifiedClaims
from tests.fakes.steps import Steps


class FakeAuthorizationServer:
    def __init__(self, steps: Steps) -> None:
        self.asked: list[TokenRequest] = []
        self.says = OAuthAnswer(status=200, body=b'{"access_token":"x"}')
        self._steps = steps

    @property
    def metadata(self) -> bytes:
        return b'{"issuer":"https://llm.example"}'

    async def answer(self, request: TokenRequest) -> OAuthAnswer:
        await self._steps.reach("authority")
        self.asked.append(request)
        return self.says


class FakeRevocations:
    """``tokens`` are the ids of those that ended; with ``unknown`` nobody could tell."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.unknown = False

    def is_revoked(self, claims: VerifiedClaims) -> bool:
        if self.unknown:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "nobody has told")
        return claims.token_id in self.tokens
