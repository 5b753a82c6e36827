"""The one door: every HTTP request comes in here, and every error goes out here.

(1) the wire guard, and who asks where a proxy says so; (2) the coarse limit per address; (3) a verified token, for
everything but the public routes, ``GET /healthz`` and, where it is configured, ``GET`` of the resource's metadata
(RFC 9728), and whom its bearer asks for, if it is a service that may say so; (4) one of the principal's slots; (5) its
request rate, whatever the request asks for.
It wraps the whole application, so no route, and no path without a route, can be reached without a token.

Trusts: the verifier and the limiters that ``assemble`` gives it.
Promises: what is routed carries an ``Exchange`` of a verified principal; a refusal to a known principal is recorded
    before it is answered, or counted for the next summary where only its frequency was refused (``tally``); nothing of
    an unexpected error reaches the caller.
Not here: what the principal may do (``pipeline``).
"""

import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Final

from litestar.exceptions import HTTPException, MethodNotAllowedException

from appliance.core.claims import principal
from appliance.core.ports import AddressLimiter, RateLimiter, TokenVerifier
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Presented
from appliance.gateway import guard, origin
from appliance.gateway.asgi import (
    CLIENT_CERTIFICATE,
    REFUSED_ON_WIRE,
    AsgiApp,
    Message,
    Receive,
    Scope,
    Send,
    header,
    peer_of,
)
from appliance.gateway.challenges import METADATA_PATH, Challenges
from appliance.gateway.delegation import Delegates, said
from appliance.gateway.pipeline import Exchange, Pipeline, actor_of
from appliance.gateway.problems import SECURE_HEADERS, send_refusal
from appliance.gateway.slots import Slots
from appliance.gateway.tally import COUNTED, FAULTS, LINES, Tally

_PUBLIC: Final = frozenset({b"/healthz"})
_EXCHANGE: Final = "paddock.exchange"


def exchange_of(scope: Any, route: str) -> Exchange:
    """The exchange that the gate made, now with the route's template in place of the caller's path."""
    exchange: Exchange = scope[_EXCHANGE]
    exchange.route = route
    return exchange


class Gate:
    """An ASGI application around another. ``refusals`` counts what it says no to."""

    def __init__(
        self,
        inner: AsgiApp,
        pipeline: Pipeline,
        *,
        verifier: TokenVerifier,
        addresses: AddressLimiter,
        rates: RateLimiter,
        slots: Slots,
        refusals: Tally,
        allowed_hosts: frozenset[str],
        now_seconds: Callable[[], int],
        challenges: Challenges | None = None,
        delegates: Delegates | None = None,
    ) -> None:
        self._inner = inner
        self._pipeline = pipeline
        self._verifier = verifier
        self._addresses = addresses
        self._rates = rates
        self._slots = slots
        self._allowed_hosts = allowed_hosts
        self._now_seconds = now_seconds
        self._challenges = challenges or Challenges()
        self._delegates = delegates or Delegates()
        self._public = _PUBLIC | ({METADATA_PATH.encode()} if self._challenges.metadata else set())
        self.refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._serve(scope, receive, _Once(send))
            case "lifespan":
                await self._inner(scope, receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1008})  # no surface speaks WebSocket

    async def _serve(self, scope: Scope, receive: Receive, send: "_Once") -> None:
        request_id = secrets.token_hex(16)
        path = scope["path"]
        try:
            try:
                with ExitStack() as held:
                    await self._admit(scope, request_id, held)
                    await self._inner(scope, receive, send)
                if REFUSED_ON_WIRE in scope:  # the caller has been told no, whatever was answered here
                    raise scope[REFUSED_ON_WIRE]
            except Exception as error:  # noqa: BLE001 - the one place where everything unexpected becomes a 503
                refusal = await self._recorded(scope, scope.get(REFUSED_ON_WIRE) or _as_refusal(error, request_id))
                if not send.started:
                    identified = _EXCHANGE in scope
                    challenge = self._challenges.header(refusal)
                    await send_refusal(
                        send, refusal, path=path, request_id=request_id, challenge=challenge, close=not identified
                    )
        except OSError as error:
            LINES.say(f"request {request_id}: the client left: {error}")

    async def _admit(self, scope: Scope, request_id: str, held: ExitStack) -> None:
        """Steps (1) to (5). Raises ``Refused``, or ``Fault`` when a limiter fails: then nobody gets through."""
        guard.check(scope, self._allowed_hosts)
        if stripped := origin.settle(scope):
            self.refusals.stripped_headers += len(stripped)
            LINES.say(f"stripped from a request of {peer_of(scope).address}: {', '.join(stripped)}")
        self._addresses.check(scope)
        if scope["method"] == "GET" and scope["raw_path"] in self._public:
            return
        now_seconds = self._now_seconds()
        claims = await self._verifier.verify(_presented(scope), now_seconds=now_seconds)
        scope[_EXCHANGE] = exchange = Exchange(
            request_id=request_id,
            principal=principal(claims),
            peer=peer_of(scope),
            method=scope["method"],
            route="-",  # until a route is found: a caller's own path has no place in a record
        )
        if of_a_user := said(scope):
            exchange.principal = await self._delegates.principal(
                of_a_user, claims, exchange.principal, rates=self._rates, held=held, now_seconds=now_seconds
            )
        held.enter_context(self._slots.taken(exchange.principal.key))
        await self._rates.admit(exchange.principal.key)

    async def _recorded(self, scope: Scope, refusal: Refused) -> Refused:
        exchange: Exchange | None = scope.get(_EXCHANGE)
        if exchange is None:
            self.refusals.strangers[refusal.reason.code] += 1
            LINES.tell(refusal.reason, refusal.detail)
            return refusal
        if refusal.reason in COUNTED:
            self.refusals.count(actor_of(exchange.principal), refusal.reason)
            return refusal
        refusal = await self._pipeline.record_refusal(exchange, refusal)
        self.refusals.recorded(refusal.reason)
        return refusal


def _missing(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The secure headers that a route did not write itself: no answer of a principal may reach a cache without them."""
    written = {name.lower() for name, _value in headers}
    return [field for field in SECURE_HEADERS.items() if field[0] not in written]


class _Once:
    """Remembers whether an answer has started, after which no other can be given. Every answer goes out with the
    secure headers, whoever wrote it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_missing(message["headers"])]
        await self._send(message)


def _as_refusal(error: Exception, request_id: str) -> Refused:
    match error:
        case Refused():
            return error
        case Fault():
            FAULTS.say(f"request {request_id}: {error.detail}", level=logging.ERROR)
            return Refused(Reason.INTERNAL, error.detail, retry_after_seconds=1)
        case MethodNotAllowedException():
            return Refused(Reason.METHOD_NOT_ALLOWED, param=(error.headers or {}).get("allow"))
        case HTTPException(status_code=404):
            return Refused(Reason.NOT_FOUND)
        case HTTPException() if error.status_code < 500:
            return Refused(Reason.FIELD_INVALID, error.detail[:200])
    FAULTS.say(f"request {request_id}", level=logging.ERROR, error=error)
    return Refused(Reason.INTERNAL, type(error).__name__, retry_after_seconds=1)


def _presented(scope: Scope) -> Presented:
    """RFC 6750 section 2.1: the Authorization header is the only place for a token; RFC 9449 section 7.1: likewise with
    the scheme DPoP, and one header with the proof."""
    value = header(scope, b"authorization")
    if value is None:
        raise Refused(Reason.TOKEN_MISSING)
    scheme, _, unverified_token = value.partition(" ")
    scheme = scheme.lower()
    if scheme not in ("bearer", "dpop"):
        raise Refused(Reason.TOKEN_INVALID, "another scheme than Bearer and DPoP")
    if "," in unverified_token:  # a list of credentials; no token has one
        raise Refused(Reason.TOKEN_MISPLACED, "more than one token")
    return Presented(
        unverified_token=unverified_token,
        scheme="dpop" if scheme == "dpop" else "bearer",
        unverified_proof=_proof(scope),
        method=scope["method"],
        path=scope["path"],
        client_certificate_sha256=scope.get(CLIENT_CERTIFICATE),
    )


def _proof(scope: Scope) -> str | None:
    """RFC 9449 section 4.3, (1)."""
    values = [value for name, value in scope["headers"] if name == b"dpop"]
    if len(values) > 1:
        raise Refused(Reason.PROOF_INVALID, "more than one DPoP header")
    return values[0].decode("latin-1") if values else None
