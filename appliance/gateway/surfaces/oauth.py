"""The endpoints of our own authorization server: a form comes in, and what the server answers goes out.

Their callers authenticate themselves as OAuth clients, so the gate lets them in without a token; they come through the
wire guard and the limit per address as everybody does, and no more of them than ``MAX_UNDER_WAY`` are answered at once.

Trusts: ``core.ports.AuthorizationServer`` for what it says to whom.
Promises: the server gets only what a form says without doubt: a bounded body, parameters in UTF-8 without control
    characters, nothing of the query. A refusal is counted, and told the operator in a bounded log, before it is
    answered.
Not here: who the client is and what it may have (``identity.issuer``).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote_to_bytes

from appliance.core.oauth import PATHS, TokenRequest
from appliance.core.ports import AuthorizationServer
from appliance.core.refusals import Reason, Refused
from appliance.gateway.asgi import CLIENT_CERTIFICATE, Receive, Scope, Send, header, read_body, send_response
from appliance.gateway.tally import Tally

MEDIA_TYPE: Final = "application/x-www-form-urlencoded"
MAX_FORM_BYTES: Final = 16 * 1024
"""A token to be exchanged has at most 8 kB, and its actor's or a client's assertion comes beside it."""
MAX_PARAMETERS: Final = 32
MAX_UNDER_WAY: Final = 64
RETRY_SECONDS: Final = 1

_CHARSET = re.compile(r"[^;]*(?:; *charset=\"?utf-8\"? *)?", re.IGNORECASE)
_PIECE = re.compile(rb"(?:[!-$'-<>-~]|%[0-9A-Fa-f]{2})+=(?:[!-$'-~]|%[0-9A-Fa-f]{2})*")
"""``name=value`` in printable ASCII, of which ``%`` begins two hexadecimal digits and ``&`` is another's."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_form(body: bytes) -> tuple[tuple[str, str], ...]:
    """The parameters in their order, also repeated ones and those without a value: the server judges them.

    Raises ``Refused(OAUTH_REQUEST_INVALID)`` for what two readers could read differently.
    """
    pieces = body.split(b"&") if body else []
    if len(pieces) > MAX_PARAMETERS:
        raise _invalid(f"more than {MAX_PARAMETERS} parameters")
    return tuple(map(_parameter, pieces))


def _parameter(piece: bytes) -> tuple[str, str]:
    if not _PIECE.fullmatch(piece):
        raise _invalid("a parameter is not name=value in percent-encoding")
    name, _, value = piece.replace(b"+", b" ").partition(b"=")
    try:
        decoded = unquote_to_bytes(name).decode(), unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise _invalid("a parameter is not UTF-8") from None
    if any(_CONTROL.search(text) for text in decoded):
        raise _invalid("a control character in a parameter")
    return decoded


class OAuthRoute:
    """The three endpoints. ``refusals`` counts what the server says no to."""

    def __init__(self, server: AuthorizationServer, refusals: Tally, *, body_timeout_seconds: float) -> None:
        self._server = server
        self._refusals = refusals
        self._body_timeout_seconds = body_timeout_seconds
        self._under_way = 0

    @property
    def metadata(self) -> bytes:
        return self._server.metadata

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A ``POST``. Raises ``Refused``, and ``Fault`` as the server does."""
        request = await self._read(scope, receive)
        with self._one_more():
            answer = await self._server.answer(request)
        if answer.refused is not None:
            self._refusals.stranger(answer.refused, answer.detail)
        await send_response(
            send, answer.status, answer.body, content_type=b"application/json", headers=dict(answer.headers)
        )

    async def _read(self, scope: Scope, receive: Receive) -> TokenRequest:
        if scope["query_string"]:
            raise _invalid("a query (RFC 6749 section 2.3.1)")
        if any(name == b"dpop" for name, _value in scope["headers"]):
            # The token would be anybody's (RFC 9449 section 5), which is not what was asked for.
            raise _invalid("a DPoP proof, which nothing here is bound to")
        if not _CHARSET.fullmatch(header(scope, b"content-type") or ""):
            raise Refused(Reason.MEDIA_TYPE_UNSUPPORTED, "a form in another charset than UTF-8")
        body = await read_body(
            scope,
            receive,
            max_bytes=MAX_FORM_BYTES,
            timeout_seconds=self._body_timeout_seconds,
            media_type=MEDIA_TYPE,
        )
        return TokenRequest(
            endpoint=PATHS[scope["path"]],
            form=read_form(body),
            authorization=header(scope, b"authorization"),
            client_certificate_sha256=scope.get(CLIENT_CERTIFICATE),
        )

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """Only around what the server does: who sends slowly takes no place. Raises ``Refused(OVERLOADED)``."""
        if self._under_way >= MAX_UNDER_WAY:
            raise Refused(Reason.OVERLOADED, "too many token requests at once", retry_after_seconds=RETRY_SECONDS)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _invalid(detail: str) -> Refused:
    return Refused(Reason.OAUTH_REQUEST_INVALID, detail)
