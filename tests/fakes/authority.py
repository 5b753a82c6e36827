"""``core.ports.AuthorizationServer``, which says what the test tells it to."""

from appliance.core.oauth import OAuthAnswer, TokenRequest
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
