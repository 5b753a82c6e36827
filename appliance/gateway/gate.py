"""The one door: every HTTP request comes in here, and every error goes out here.

(1) the wire guard, and who asks where a proxy says so; (2) the coarse limit per address; (3) a verified token, for
everything but the open routes, and whom its bearer asks for, if it is a service that may say so; (4) one of the
principal's slots; (5) its request rate, whatever the request asks for.
It wraps the whole application, so no other route, and no path without a route, can be reached without a token. The open
ones are ``GET /healthz`` and, where they are configured, ``GET`` of the metadata of the resource (RFC 9728) and of the
authorization server (RFC 8414), and ``POST`` to that one's endpoints, whose callers authenticate themselves there.

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
from functools import partial
from typing import Any, Final

from litestar.exceptions import HTTPException, MethodNotAllowedException

from appliance.core import oauth
from appliance.core.claims import principal
from appliance.core.ports import AddressLimiter, RateLimiter, TokenVerifier
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
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

_TOKEN_ENDPOINTS: Final = frozenset(path.encode() for path in oauth.PATHS)
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
        issues_tokens: bool = False,
    ) -> None:
        """``issues_tokens``: there is an authorization server behind it."""
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
        self._open = _open_routes(has_metadata=self._challenges.metadata is not None, issues_tokens=issues_tokens)
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
                    challenge = self._challenge(refusal, scope)
                    await send_refusal(
                        send, refusal, path=path, request_id=request_id, challenge=challenge, close=not identified
                    )
        except OSError as error:
            LINES.say(f"request {request_id}: the client left: {error}")

    def _challenge(self, refusal: Refused, scope: Scope) -> bytes | None:
        """A token endpoint takes no tokens, and whoever fails there as a client was told so by the server itself."""
        return None if self._open.get(scope["raw_path"]) == "POST" else self._challenges.header(refusal)

    async def _admit(self, scope: Scope, request_id: str, held: ExitStack) -> None:
        """Steps (1) to (5). Raises ``Refused``, or ``Fault`` when a limiter fails: then nobody gets through."""
        guard.check(scope, self._allowed_hosts)
        if stripped := origin.settle(scope):
            self.refusals.stripped_headers += len(stripped)
            LINES.say(f"stripped from a request of {peer_of(scope).address}: {', '.join(stripped)}")
        self._addresses.check(scope)
        method = self._open.get(scope["raw_path"])
        if method == scope["method"]:
            return
        if method == "POST":  # no other method has a use there, with or without a token
            raise Refused(Reason.METHOD_NOT_ALLOWED, param="POST")
        now_seconds = self._now_seconds()
        claims = await self._verifier.verify(_presented(scope), now_seconds=now_seconds)
        scope[_EXCHANGE] = exchange = Exchange(
            request_id=request_id,
            principal=principal(claims),
            peer=peer_of(scope),
            method=scope["method"],
            route="-",  # until a route is found: a caller's own path has no place in a record
            has_ended=partial(self._verifier.has_ended, claims),
        )
        if of_a_user := said(scope):
            named = await self._delegates.named(
                of_a_user, claims, exchange.principal, rates=self._rates, held=held, now_seconds=now_seconds
            )
            exchange.principal = named.principal
            exchange.has_ended = partial(self._has_one_ended, (claims, *named.tokens))
        held.enter_context(self._slots.taken(exchange.principal.key))
        await self._rates.admit(exchange.principal.key)

    def end_revoked(self) -> None:
        """Stops the answers whose tokens have been revoked since."""
        self._pipeline.end_revoked()

    def _has_one_ended(self, tokens: Iterable[VerifiedClaims]) -> bool:
        return any(map(self._verifier.has_ended, tokens))

    async def _recorded(self, scope: Scope, refusal: Refused) -> Refused:
        exchange: Exchange | None = scope.get(_EXCHANGE)
        if exchange is None:
            self.refusals.stranger(refusal.reason, refusal.detail)
            return refusal
        if refusal.reason in COUNTED:
            self.refusals.count(actor_of(exchange.principal), refusal.reason)
            return refusal
        refusal = await self._pipeline.record_refusal(exchange, refusal)
        self.refusals.recorded(refusal.reason)
        return refusal


def _open_routes(*, has_metadata: bool, issues_tokens: bool) -> dict[bytes, str]:
    """Raw path -> the one method for which no token is asked."""
    routes = {b"/healthz": "GET"}
    if has_metadata:
        routes[METADATA_PATH.encode()] = "GET"
    if issues_tokens:
        routes[oauth.METADATA_PATH.encode()] = "GET"
        routes |= dict.fromkeys(_TOKEN_ENDPOINTS, "POST")
    return routes


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
