"""The Protocols through which the rooms meet. ``assemble.py`` joins an implementation to each.

Every method says what it raises; a caller writes beside the call what happens then.
"""

from collections.abc import MutableMapping
from typing import Any, Protocol

from appliance.core.clients import Client, GrantOrder, IssuedTokens, RefreshOrder, RevokeOrder
from appliance.core.oauth import OAuthAnswer, TokenRequest
from appliance.core.records import Record
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Digest,
    ForwardedUser,
    Presented,
    Receipt,
    Reservation,
    RunnerFacts,
    RunnerReport,
    VerifiedClaims,
    VerifiedModel,
)


class TokenVerifier(Protocol):
    async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
        """Token, with the proof that it is the sender's where it is bound to a key -> claims.

        Raises ``Refused(TOKEN_INVALID | PROOF_INVALID | SCOPE_MISSING)``, or ``Refused(ISSUER_UNAVAILABLE)`` where only
        an issuer that is out of reach could tell, and ``Refused(AUDIT_UNAVAILABLE)`` while nobody knows what was
        revoked.
        """
        ...

    def has_ended(self, claims: VerifiedClaims) -> bool:
        """Was this token, which has been verified, revoked since? No, while nobody knows: what runs goes on."""
        ...


class Delegation(Protocol):
    """What one service may say of the user for whom it asks, in a header of its request."""

    @property
    def header(self) -> bytes:
        """The one that it may send; lower case."""
        ...

    def is_for(self, service: VerifiedClaims) -> bool:
        """Whether the bearer of this token is that service."""
        ...

    async def user(self, unverified: str, *, now_seconds: int) -> VerifiedClaims | ForwardedUser:
        """The header's value -> the user. Raises ``Refused(DELEGATION_REFUSED)``, or
        ``Refused(ISSUER_UNAVAILABLE | AUDIT_UNAVAILABLE)`` where nobody can tell at the moment."""
        ...


class PolicyEngine(Protocol):
    @property
    def policy_digest(self) -> Digest:
        """Digest of the policy and its data: what a decision is recorded against."""
        ...

    async def evaluate(self, document: bytes) -> Any:
        """Input document, as JSON -> the raw, unjudged value of the decision rule (None when undefined).

        Raises ``Fault`` when the engine failed, ran out of fuel or is absent. ``core.decide`` judges the answer.
        """
        ...


class AddressLimiter(Protocol):
    def check(self, scope: MutableMapping[str, Any]) -> None:
        """Counts one request of an ASGI scope's ``client``, before anybody is identified.

        Raises ``Refused(ADDRESS_RATE_LIMITED)`` with a retry time, or ``Fault``.
        """
        ...


class RateLimiter(Protocol):
    async def admit(self, principal_key: str) -> None:
        """Counts one request, whatever it asks for.

        Raises ``Refused(RATE_LIMITED)`` with a retry time, or ``Fault`` if the store is down.
        """
        ...


class TokenBudget(Protocol):
    async def reserve(self, request_id: str, principal_key: str, tokens: int) -> Reservation:
        """Sets tokens aside. Raises ``Refused(BUDGET_EXHAUSTED | BUDGET_TOO_SMALL)``, or ``Fault``."""
        ...

    async def settle(self, reservation: Reservation, spent_tokens: int) -> int:
        """Charges what was spent and returns the rest: the number of tokens given back. Idempotent per request."""
        ...


class AuditLog(Protocol):
    async def open(self, record: Record) -> Receipt:
        """Writes a record and returns when it is durable. Raises ``Refused(AUDIT_UNAVAILABLE)``."""
        ...

    def close(self, record: Record) -> None:
        """Takes charge of an outcome record and returns at once, so that it can stand in any ``finally``. Never raises:
        the record is offered again until the notary has it."""
        ...


class AuthorizationServer(Protocol):
    @property
    def metadata(self) -> bytes:
        """Of this server, as JSON (RFC 8414 section 2)."""
        ...

    async def answer(self, request: TokenRequest) -> OAuthAnswer:
        """Judges one request, its client's authentication first; a refusal is an answer too. Raises ``Fault``."""
        ...


class ClientRegistry(Protocol):
    """Our own authorization server's hold on the notary, which keeps the clients and signs the tokens.

    Every method raises ``Refused(AUDIT_UNAVAILABLE)`` when the notary is away, cannot write, or does not answer in
    time.
    """

    async def client(self, client_id: str) -> Client | None:
        """What is registered under this id; None for nothing, and for a client that is disabled."""
        ...

    async def grant(self, order: GrantOrder) -> IssuedTokens:
        """Signed and recorded. Raises ``Refused(GRANT_INVALID)`` for what is not registered for this client."""
        ...

    async def refresh(self, order: RefreshOrder) -> IssuedTokens:
        """Signed and recorded, with the next refresh token.

        Raises ``Refused(GRANT_INVALID)`` for a token that is unknown, expired, another client's, bound otherwise or
        used before; ``Refused(SCOPE_INVALID)`` for groups that its family does not have.
        """
        ...

    async def revoke(self, order: RevokeOrder) -> None:
        """On record, and told to every gateway. A token that is unknown, or another client's, is passed over."""
        ...


class Revocations(Protocol):
    def is_revoked(self, claims: VerifiedClaims) -> bool:
        """Of a token of our own issuer: has it, or its client's tokens of that time, been ended? Raises
        ``Refused(AUDIT_UNAVAILABLE)`` while that cannot be known."""
        ...


class Lease(Protocol):
    """The use of one live runner."""

    @property
    def facts(self) -> RunnerFacts: ...

    def answer(self, request_id: str, admission: Admission, principal_key: str) -> "RunnerAnswer":
        """Submits one request; whose it is decides its turn and its cache.

        Raises ``Refused(RUNNER_LOST)`` when the channel is broken already."""
        ...


class RunnerAnswer(Protocol):
    """The events of one request in a runner."""

    @property
    def cut(self) -> bool:
        """Whether some are missing: so many were not fetched that it was stopped. ``End`` still says what it cost."""
        ...

    @property
    def first_delta_at(self) -> float | None:
        """When the first ``Delta`` arrived, in seconds of the monotonic clock."""
        ...

    async def events(self, *, patient: bool = False) -> list[AnswerEvent]:
        """Waits for the next events and returns all that have arrived: ``Started`` first, ``End`` last. A ``patient``
        reader waits for the last, or until what waits for it takes room.

        Raises ``Refused(RUNNER_LOST)`` when the channel breaks, and when the runner refuses to start
        ``Refused(PROMPT_TOO_LONG | FIELD_INVALID | OPERATION_UNSUPPORTED)`` or ``Refused(OVERLOADED)``, perhaps with a
        retry time.
        """
        ...

    def cancel(self) -> None:
        """Stops generation unless ``End`` has come. Safe to call at any time, in any ``finally``."""
        ...


class Models(Protocol):
    async def catalogue(self) -> tuple[VerifiedModel, ...]:
        """The models that verified. Raises ``Fault`` when the warden is away."""
        ...

    async def lease(self, model: VerifiedModel) -> Lease:
        """A live runner for this model, started if need be.

        Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE)``, or ``Fault`` when the warden is away.
        """
        ...

    async def reports(self) -> tuple[RunnerReport, ...]:
        """What the runners that live now say of themselves, within about a second. Starts none; raises nothing."""
        ...


__all__ = [
    "AddressLimiter",
    "AuditLog",
    "AuthorizationServer",
    "ClientRegistry",
    "Delegation",
    "Lease",
    "Models",
    "PolicyEngine",
    "RateLimiter",
    "Revocations",
    "RunnerAnswer",
    "TokenBudget",
    "TokenVerifier",
]
