"""Our own OAuth 2.0 authorization server: for sites without an identity provider, and for services that act for others.

The steps for each request, in order:

(1) form and header are read (``forms``), one way of authentication found in them, and the client looked up;
(2) Authlib finds the grant or endpoint and has the client authenticate (``authentication``, ``assertions``);
(3) where a token comes with the request it is verified; nothing of a stranger's is before he is known;
(4) token endpoint: the grant's order goes to the notary, which judges it again, signs and records (``ClientRegistry``).

Trusts: the notary for the clients and the tokens; the verifier for foreign tokens and our own.
Promises: every answer is one of RFC 6749 section 5, RFC 7009 section 2.2 or RFC 7662 section 2.2, not to be stored by
    anybody; a refusal says its reason's public text, and to an unknown client what it says to one with a wrong secret.
Not here: HTTP (the gateway), what a token may do (policy), rotation of refresh tokens (the notary).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from appliance.core.clients import MAX_REFRESH_TOKEN_CHARACTERS, Client, IssuedTokens, RevokeOrder
from appliance.core.oauth import PATHS, OAuthAnswer, TokenRequest, error_body
from appliance.core.ports import ClientRegistry, TokenVerifier
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
from appliance.identity.issuer import authentication, forms, metadata
from appliance.identity.issuer.assertions import AssertionChecker
from appliance.identity.issuer.authentication import METHODS
from appliance.identity.issuer.grants import ACCESS_TOKEN, Asked, ClientCredentials, Refresh, Server, TokenExchange
from appliance.identity.issuer.looking import Looked, check_may_act, unverified_look

_HEADERS: Final = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"))
"""RFC 6749 section 5.1."""
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="paddock"')
_INACTIVE: Final = {"active": False}


class _Revocation(RevocationEndpoint):  # type: ignore[misc]  # Authlib has no types
    CLIENT_AUTH_METHODS = METHODS


class _Introspection(IntrospectionEndpoint):  # type: ignore[misc]
    CLIENT_AUTH_METHODS = METHODS


class Authority:
    """Implements ``core.ports.AuthorizationServer``. ``issuer`` is the name in our tokens; ``public_url`` the origin
    under which clients know this server; ``audience`` that of our tokens. Raises ``Misconfigured``."""

    def __init__(
        self,
        *,
        issuer: str,
        public_url: str,
        audience: str,
        registry: ClientRegistry,
        verifier: TokenVerifier,
        now_seconds: Callable[[], int],
    ) -> None:
        self.metadata = metadata.document(issuer=issuer, public_url=public_url)
        self._issuer = issuer
        self._urls = {endpoint: public_url + path for path, endpoint in PATHS.items()}
        self._targets = frozenset({public_url, public_url + "/", audience})  # RFC 3986 section 6.2.3: one address
        self._registry = registry
        self._verifier = verifier
        self._now_seconds = now_seconds
        self._server = Server()
        self._revocation = _Revocation(self._server)
        self._introspection = _Introspection(self._server)
        self._checker = AssertionChecker(issuer, since_seconds=now_seconds())

    async def answer(self, request: TokenRequest) -> OAuthAnswer:
        """As ``core.ports.AuthorizationServer`` says."""
        try:
            form = forms.read(request.form)
            asked = await self._asked(request, form)
            match request.endpoint:
                case "token":
                    return await self._token(asked, form, request)
                case "revoke":
                    return await self._revoke(asked)
                case "introspect":
                    return await self._introspect(asked)
        except Refused as refusal:
            return _refusing(refusal)

    async def _asked(self, request: TokenRequest, form: forms.Form) -> Asked:
        """Step (1)."""
        proof = authentication.offered(form, request.authorization, request.client_certificate_sha256)
        client = await self._registry.client(proof.client_id)
        return Asked(
            self._urls[request.endpoint],
            form,
            proof,
            client,
            lambda: authentication.check(proof, client, self._checker, now_seconds=self._now_seconds()),
        )

    # --- RFC 6749, RFC 8693 -----------------------------------------------------------------------------------------

    async def _token(self, asked: Asked, form: forms.Form, request: TokenRequest) -> OAuthAnswer:
        grant = self._server.validated_grant(asked)
        if not self._targets.issuperset(form.targets):  # RFC 8707 section 2, RFC 8693 section 2.2.2
            raise Refused(Reason.TARGET_INVALID, "a resource or audience that is not ours")
        match grant:
            case ClientCredentials():
                return _issued(await self._registry.grant(grant.order()))
            case Refresh():
                return _issued(await self._registry.refresh(grant.order()))
            case TokenExchange():
                subject = await self._subject(grant, request.client_certificate_sha256)
                check_may_act(grant.unverified_subject_token, asked.proof.client_id, self._issuer)
                order = grant.order(subject, issuer=self._issuer, now_seconds=self._now_seconds())
                return _issued(await self._registry.grant(order), issued_token_type=ACCESS_TOKEN)

    async def _subject(self, grant: TokenExchange, certificate_sha256: bytes | None) -> VerifiedClaims:
        """Step (3). A token that is bound is taken only from who holds what it is bound to."""
        presented = Presented(
            unverified_token=grant.unverified_subject_token, client_certificate_sha256=certificate_sha256
        )
        try:
            return await self._verifier.verify(presented, now_seconds=self._now_seconds())
        except Refused as refusal:
            if refusal.reason in {Reason.TOKEN_INVALID, Reason.PROOF_INVALID, Reason.SCOPE_MISSING}:
                # RFC 8693 section 2.2.2
                raise Refused(Reason.OAUTH_REQUEST_INVALID, f"the subject token: {refusal.detail}") from refusal
            raise

    # --- RFC 7009 ---------------------------------------------------------------------------------------------------

    async def _revoke(self, asked: Asked) -> OAuthAnswer:
        """A token that is not known, or not the client's, is passed over: it is not the client's to end, and whose it
        is nobody is told (sections 2.1 and 2.2)."""
        client = self._server.authenticated(self._revocation, asked)
        unverified_token = asked.form["token"]
        if len(unverified_token) <= MAX_REFRESH_TOKEN_CHARACTERS:
            order = RevokeOrder(client_id=client.client_id, unverified_refresh_token=unverified_token)
        else:
            looked = await self._look(unverified_token)
            if looked is None or looked.claims.client_id != client.client_id:
                return _answer({})
            order = RevokeOrder(
                client_id=client.client_id,
                token_id=looked.claims.token_id,
                expires_at_seconds=looked.claims.expires_at_seconds,
            )
        await self._registry.revoke(order)
        return _answer({})

    # --- RFC 7662 ---------------------------------------------------------------------------------------------------

    async def _introspect(self, asked: Asked) -> OAuthAnswer:
        """Of a refresh token nobody is told anything: no protected resource takes one."""
        client = self._server.authenticated(self._introspection, asked)
        looked = await self._look(asked.form["token"])
        if looked is None or not _may_see(client, looked.claims):
            return _answer(_INACTIVE)
        return _answer({"active": True} | looked.description())

    async def _look(self, unverified_token: str) -> Looked | None:
        """An access token of ours that is good now; None for all others. Raises ``Refused(AUDIT_UNAVAILABLE)``."""
        look = unverified_look(unverified_token, self._issuer)
        if look is None:
            return None
        try:
            claims = await self._verifier.verify(look.presented, now_seconds=self._now_seconds())
        except Refused as refusal:
            if refusal.reason.status == 503:
                raise
            return None
        return Looked(claims, look.unverified_claims)


def _may_see(client: Client, claims: VerifiedClaims) -> bool:
    return client.introspects or claims.client_id == client.client_id


def _issued(tokens: IssuedTokens, **more: str) -> OAuthAnswer:
    """RFC 6749 section 5.1, RFC 8693 section 2.2.1."""
    body: dict[str, Any] = {
        "access_token": tokens.access_token,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in_seconds,
    }
    if tokens.groups:
        body["scope"] = " ".join(tokens.groups)
    if tokens.refresh_token is not None:
        body["refresh_token"] = tokens.refresh_token
    return _answer(body | more)


def _answer(body: dict[str, Any]) -> OAuthAnswer:
    return OAuthAnswer(status=200, body=msgspec.json.encode(body), headers=_HEADERS)


def _refusing(refusal: Refused) -> OAuthAnswer:
    """RFC 6749 section 5.2. RFC 9110 section 15.5.2 wants a challenge with every 401, however the client came."""
    headers: tuple[tuple[bytes, bytes], ...] = _HEADERS
    if refusal.reason.status == 401:
        headers = (*headers, _CHALLENGE)
    if refusal.retry_after_seconds is not None:
        headers = (*headers, (b"retry-after", str(refusal.retry_after_seconds).encode()))
    return OAuthAnswer(
        status=refusal.reason.status,
        body=error_body(refusal.reason),
        headers=headers,
        refused=refusal.reason,
        detail=refusal.detail,
    )
