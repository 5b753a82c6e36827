"""The one door: every HTTP request comes in here, and every error goes out here.

(1) the wire guard; (2) the coarse limit per address; (3) a verified bearer token, for everything but ``GET /healthz``;
(4) one of the principal's slots; (5) its request rate, whatever the request asks for.
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
from appliance.gateway import guard
from appliance.gateway.asgi import REFUSED_ON_WIRE, AsgiApp, Message, Receive, Scope, Send, header, peer_of
from appliance.gateway.pipeline import Exchange, Pipeline, actor_of
from appliance.gateway.problems import SECURE_HEADERS, send_refusal
from appliance.gateway.slots import Slots
from appliance.gateway.tally import COUNTED, LINES, Tally

PUBLIC_PATH: Final = b"/healthz"
_EXCHANGE: Final = "paddock.exchange"

log = logging.getLogger(__name__)


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
    ) -> None:
        self._inner = inner
        self._pipeline = pipeline
        self._verifier = verifier
        self._addresses = addresses
        self._rates = rates
        self._slots = slots
        self._allowed_hosts = allowed_hosts
        self._now_seconds = now_seconds
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
                    await send_refusal(send, refusal, path=path, request_id=request_id, close=not identified)
        except OSError as error:
            log.info("request %s: the client left: %s", request_id, error)

    async def _admit(self, scope: Scope, request_id: str, held: ExitStack) -> None:
        """Steps (1) to (5). Raises ``Refused``, or ``Fault`` when a limiter fails: then nobody gets through."""
        guard.check(scope, self._allowed_hosts)
        self._addresses.check(scope)
        if (scope["method"], scope["raw_path"]) == ("GET", PUBLIC_PATH):
            return
        claims = self._verifier.verify(_bearer_token(scope), now_seconds=self._now_seconds())
        scope[_EXCHANGE] = exchange = Exchange(
            request_id=request_id,
            principal=principal(claims),
            peer=peer_of(scope),
            method=scope["method"],
            route="-",  # until a route is found: a caller's own path has no place in a record
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
            log.error("request %s: %s", request_id, error.detail)
            return Refused(Reason.INTERNAL, error.detail, retry_after_seconds=1)
        case MethodNotAllowedException():
            return Refused(Reason.METHOD_NOT_ALLOWED, param=(error.headers or {}).get("allow"))
        case HTTPException(status_code=404):
            return Refused(Reason.NOT_FOUND)
        case HTTPException() if error.status_code < 500:
            return Refused(Reason.FIELD_INVALID, error.detail[:200])
    log.error("request %s", request_id, exc_info=error)
    return Refused(Reason.INTERNAL, type(error).__name__, retry_after_seconds=1)


def _bearer_token(scope: Scope) -> str:
    """RFC 6750 section 2.1: the Authorization header is the only place for a token."""
    value = header(scope, b"authorization")
    if value is None:
        raise Refused(Reason.TOKEN_MISSING)
    scheme, _, unverified_token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(Reason.TOKEN_INVALID, "another scheme than Bearer")
    return unverified_token
