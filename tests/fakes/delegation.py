"""``core.ports.Delegation``."""

from appliance.core.delegation import USER_TOKEN
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, ForwardedUser, VerifiedClaims
from tests.fakes.steps import Steps


class FakeDelegation:
    """Of one client. A header that begins with ``good`` names the user behind it, among those of ``issuer``."""

    issuer = "https://issuer.example#fake"

    def __init__(self, steps: Steps, client_id: str, header: bytes = USER_TOKEN) -> None:
        self._header = header
        self.asked: list[str] = []
        self._steps = steps
        self._client_id = client_id

    @property
    def header(self) -> bytes:
        return self._header

    def is_for(self, service: VerifiedClaims) -> bool:
        return service.client_id == self._client_id

    async def user(self, unverified: str, *, now_seconds: int) -> VerifiedClaims | ForwardedUser:
        self._steps.note("user")
        self.asked.append(unverified)
        if not unverified.startswith("good "):
            raise Refused(Reason.DELEGATION_REFUSED, "not a good one")
        return ForwardedUser(
            issuer=self.issuer,
            subject=unverified.removeprefix("good "),
            groups=("staff",),
            token_sha256=Digest.of(b"forwarded"),
        )
