"""``core.ports.ClientRegistry`` and ``core.ports.Revocations`` in memory. The tokens are real ones, of the key of
``tests/vectors/jwt``."""

import itertools
from typing import Any

from appliance.core.clients import (
    TOKEN_EXCHANGE,
    Client,
    GrantOrder,
    IssuedTokens,
    Party,
    RefreshOrder,
    RevokeOrder,
)
from appliance.core.refusals import Reason, Refused
from appliance.core.values import VerifiedClaims
from appliance.ipc import frames, messages
from tests.fakes.steps import Steps
from tests.vectors.jwt import generate


class FakeRevocations:
    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.ended: dict[str, int] = {}
        self.unknown = False

    def is_revoked(self, claims: VerifiedClaims) -> bool:
        if self.unknown:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "nobody has told")
        return claims.token_id in self.tokens or claims.issued_at_seconds <= self.ended.get(claims.client_id, -1)


class FakeClientRegistry:
    """``orders`` are those that were carried out. Judges them as the port says, and no more than that."""

    def __init__(self, steps: Steps, *clients: Client, now_seconds: int = generate.NOW) -> None:
        self.clients = {client.client_id: client for client in clients}
        self.revocations = FakeRevocations()
        self.orders: list[GrantOrder | RefreshOrder | RevokeOrder] = []
        self.now_seconds = now_seconds
        self._steps = steps
        self._ids = itertools.count(1)
        self._families: dict[str, GrantOrder] = {}
        self._living: set[str] = set()
        self._ended: set[str] = set()

    async def client(self, client_id: str) -> Client | None:
        await self._steps.reach("look up the client")
        _as_the_notary(messages.FindClient(call=1, client_id=client_id))
        client = self.clients.get(client_id)
        return None if client is None or client.disabled else client

    async def grant(self, order: GrantOrder) -> IssuedTokens:
        await self._steps.reach("grant")
        _as_the_notary(messages.AskGrant(call=1, order=order))
        client = self.clients.get(order.client_id)
        if (
            client is None
            or client.disabled
            or order.grant not in client.grants
            or not set(order.groups) <= set(client.groups)
            or not ("*" in client.models or set(order.models) <= set(client.models))
            or order.ttl_seconds > client.ttl_seconds
            or (order.refreshable and "refresh_token" not in client.grants)
            or (order.grant == TOKEN_EXCHANGE and order.acting[0].subject != order.client_id)
        ):
            raise Refused(Reason.GRANT_INVALID, "not registered")
        self.orders.append(order)
        refresh_token = self._next(f"family-{next(self._ids)}", order) if order.refreshable else None
        return self._signed(order, refresh_token)

    async def refresh(self, order: RefreshOrder) -> IssuedTokens:
        await self._steps.reach("refresh")
        _as_the_notary(messages.AskRefresh(call=1, order=order))
        family = order.unverified_refresh_token.partition(".")[0]
        first = self._families.get(family)
        if (
            first is None
            or first.client_id != order.client_id
            or family in self._ended
            or first.certificate_sha256 != order.certificate_sha256
        ):
            raise Refused(Reason.GRANT_INVALID, "no such refresh token")
        if order.unverified_refresh_token not in self._living:
            self._ended.add(family)
            raise Refused(Reason.GRANT_INVALID, "used before")
        if not set(order.groups or ()) <= set(first.groups):
            raise Refused(Reason.SCOPE_INVALID, "beyond the family")
        self.orders.append(order)
        self._living.discard(order.unverified_refresh_token)
        return self._signed(first, self._next(family, first), order.groups)

    async def revoke(self, order: RevokeOrder) -> None:
        await self._steps.reach("revoke")
        _as_the_notary(messages.AskRevoke(call=1, order=order))
        self.orders.append(order)
        if order.token_id is not None:
            self.revocations.tokens.add(order.token_id)
        family = (order.unverified_refresh_token or "").partition(".")[0]
        if family in self._families and self._families[family].client_id == order.client_id:
            self._ended.add(family)

    def _next(self, family: str, order: GrantOrder) -> str:
        token = f"{family}.{next(self._ids)}"
        self._families[family] = order
        self._living.add(token)
        return token

    def _signed(
        self, order: GrantOrder, refresh_token: str | None, groups: tuple[str, ...] | None = None
    ) -> IssuedTokens:
        token_id = f"token-{next(self._ids)}"
        kept = order.groups if groups is None else groups
        claims: dict[str, Any] = {
            "iss": generate.ISSUER,
            "aud": generate.AUDIENCE,
            "sub": order.subject,
            "client_id": order.client_id,
            "jti": token_id,
            "iat": self.now_seconds,
            "exp": self.now_seconds + order.ttl_seconds,
            "scope": " ".join(kept),
            "groups": list(kept),
            "models": list(order.models),
        }
        if order.certificate_sha256 is not None:
            claims["cnf"] = {"x5t#S256": order.certificate_sha256}
        if order.acting:
            claims["act"] = _act(order.acting)
        return IssuedTokens(
            access_token=generate.token(claims=claims),
            token_id=token_id,
            groups=kept,
            expires_in_seconds=order.ttl_seconds,
            refresh_token=refresh_token,
        )


_TO_NOTARY = frames.FrameDecoder[messages.ToNotary](messages.ToNotary)


def _as_the_notary(question: Any) -> None:
    """What it cannot read would end the gateway's connection: a defect of whoever asks."""
    try:
        _TO_NOTARY.decode(frames.encode(question))
    except frames.FrameError as error:
        raise AssertionError(question) from error


def _act(acting: tuple[Party, ...]) -> dict[str, Any]:
    act: dict[str, Any] = {}
    for party in reversed(acting):
        nested = {"act": act} if act else {}
        act = {"sub": party.subject} | ({"iss": party.issuer} if party.issuer else {}) | nested
    return act
