"""What is asked of the token endpoint, in the hands of Authlib: which grant it is, whether this client may use it, and
what it would give.

Authlib's callbacks cannot wait, and everything here that waits is the notary's or an issuer's. So what they need is
fetched before (the client), and what they would do is done after: a grant validates, and then says its order.

Trusts: Authlib to call the client's authentication first and to refuse what its grant does not allow the client.
Promises: an order asks for nothing that is not registered for its client, and of another's token for nothing that this
    does not have; it is made only by a grant that was validated.
Not here: verifying the token that is exchanged (``authority``), issuing (the notary, which judges each order again).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    BaseGrant,
    ClientCredentialsGrant,
    ClientMixin,
    OAuth2Error,
    OAuth2Request,
    RefreshTokenGrant,
    TokenEndpoint,
    TokenEndpointMixin,
    TokenMixin,
    UnauthorizedClientError,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload

from appliance.core.clients import (
    MAX_REFRESH_TOKEN_CHARACTERS,
    TOKEN_EXCHANGE,
    Client,
    GrantOrder,
    Party,
    RefreshOrder,
)
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import VerifiedClaims
from appliance.identity.issuer import forms
from appliance.identity.issuer.authentication import METHODS, Offered

MAX_ACTING: Final = 4
MAX_SUBJECT_CHARACTERS: Final = 1024
MAX_MODELS: Final = 64
MAX_MODEL_CHARACTERS: Final = 255
TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:"  # noqa: S105 - the beginning of a name
ACCESS_TOKEN: Final = TOKEN_TYPE + "access_token"
REFRESH_TOKEN: Final = TOKEN_TYPE + "refresh_token"
JWT: Final = TOKEN_TYPE + "jwt"
"""RFC 8693 section 3."""

_REASONS: Final = MappingProxyType(
    {
        "invalid_request": Reason.OAUTH_REQUEST_INVALID,
        "invalid_client": Reason.CLIENT_INVALID,
        "unauthorized_client": Reason.CLIENT_UNAUTHORISED,
        "unsupported_grant_type": Reason.GRANT_TYPE_UNSUPPORTED,
        "invalid_grant": Reason.GRANT_INVALID,
        "invalid_scope": Reason.SCOPE_INVALID,
    }
)


class Asked(OAuth2Request):  # type: ignore[misc]  # Authlib has no types
    """A request as Authlib sees it: of its form, what is there once and has a value. ``prove`` refuses a client that is
    not who it says."""

    def __init__(
        self, url: str, form: forms.Form, proof: Offered, registered: Client | None, prove: Callable[[], None]
    ) -> None:
        super().__init__("POST", url)
        values = dict(form.values)
        if values.get("token_type_hint") not in TokenEndpoint.SUPPORTED_TOKEN_TYPES:
            values.pop("token_type_hint", None)  # RFC 7009 section 2.2: ignored, where Authlib refuses it
        self.payload = BasicOAuth2Payload(values)
        self.proof = proof
        self.registered = registered
        self.prove = prove

    @property
    def form(self) -> Any:
        return self.payload.data


class _Registered(ClientMixin):  # type: ignore[misc]
    """A client as Authlib asks about one."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get_client_id(self) -> str:
        return self.client.client_id

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.client.authentication

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.client.grants


class ClientCredentials(ClientCredentialsGrant):  # type: ignore[misc]
    """RFC 6749 section 4.4: for the client itself, and without a refresh token."""

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def validate_requested_scope(self) -> None:
        self.groups = _narrowed(self.request, _client(self.request).groups)

    def order(self) -> GrantOrder:
        client = _client(self.request)
        return GrantOrder(
            client_id=client.client_id,
            grant="client_credentials",
            subject=client.client_id,
            groups=self.groups,
            models=client.models,
            certificate_sha256=_binding(self.request),
            ttl_seconds=client.ttl_seconds,
        )


class _NotJudged(TokenMixin):  # type: ignore[misc]
    """A refresh token, which only the notary can tell: whose it is, and what it gives."""

    def __init__(self, scope: str | None) -> None:
        self._scope = scope

    def check_client(self, client: _Registered) -> bool:
        return True

    def get_scope(self) -> str | None:
        return self._scope


class Refresh(RefreshTokenGrant):  # type: ignore[misc]
    """RFC 6749 section 6; rotation and reuse (RFC 9700 section 4.14.2) are the notary's."""

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def authenticate_refresh_token(self, refresh_token: str) -> _NotJudged:
        if len(refresh_token) > MAX_REFRESH_TOKEN_CHARACTERS:
            raise Refused(Reason.GRANT_INVALID, "a refresh token that is too long for one of ours")
        return _NotJudged(self.request.payload.scope)

    def order(self) -> RefreshOrder:
        scope = self.request.payload.scope
        return RefreshOrder(
            client_id=_client(self.request).client_id,
            unverified_refresh_token=self.request.form["refresh_token"],
            groups=forms.scopes(scope) if scope else None,
            certificate_sha256=_binding(self.request),
        )


class TokenExchange(BaseGrant, TokenEndpointMixin):  # type: ignore[misc]
    """RFC 8693: a token for somebody else, in whose name the client then acts. Authlib has no such grant.

    ``requested_token_type`` may ask for a refresh token, which then comes besides the access token: what outlives the
    subject's own token is given only to who asks for it and is registered for it (section 2.2.1).
    """

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS
    GRANT_TYPE = TOKEN_EXCHANGE

    def validate_token_request(self) -> None:
        client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClientError()
        self.request.client = client
        form = self.request.form
        if "actor_token" in form or "actor_token_type" in form:
            raise _invalid("an actor token: who acts is the client, as it authenticated")
        if "subject_token" not in form or form.get("subject_token_type") not in (ACCESS_TOKEN, JWT):
            raise _invalid("no subject token, or not one that can be exchanged")
        wanted = form.get("requested_token_type", ACCESS_TOKEN)
        if wanted not in (ACCESS_TOKEN, REFRESH_TOKEN):
            raise _invalid("a type of token that is not issued")
        self.refreshable = wanted == REFRESH_TOKEN
        if self.refreshable and not client.check_grant_type("refresh_token"):
            raise UnauthorizedClientError()

    @property
    def unverified_subject_token(self) -> str:
        return str(self.request.form["subject_token"])

    def order(self, subject: VerifiedClaims, *, issuer: str, now_seconds: int) -> GrantOrder:
        """Raises ``Refused(OAUTH_REQUEST_INVALID)`` for a token that this client may not exchange (section 2.2.2).

        The new token has of groups and models what both have, and unless it can be refreshed it ends no later.
        """
        client = _client(self.request)
        if subject.issuer not in client.exchanges:
            raise _invalid("the client may not exchange tokens of that issuer")
        acting = (Party(subject=client.client_id), *_acting(subject, issuer))
        if len(acting) > MAX_ACTING:
            raise _invalid(f"more than {MAX_ACTING} would act for each other")
        name = subject.subject if subject.issuer == issuer else f"{subject.issuer}|{subject.subject}"
        if not 1 <= len(name) <= MAX_SUBJECT_CHARACTERS:
            raise _invalid("the name of the subject is empty or too long")
        models = _models_of_both(client.models, subject.models)
        if len(models) > MAX_MODELS or not all(1 <= len(model) <= MAX_MODEL_CHARACTERS for model in models):
            raise _invalid("too many models in the subject token, or one whose name cannot be")
        left_seconds = subject.expires_at_seconds - now_seconds
        if left_seconds < 1:
            raise _invalid("the subject token has expired")
        return GrantOrder(
            client_id=client.client_id,
            grant=TOKEN_EXCHANGE,
            subject=name,
            groups=_narrowed(self.request, (group for group in client.groups if group in subject.groups)),
            models=models,
            acting=acting,
            certificate_sha256=_binding(self.request),
            ttl_seconds=client.ttl_seconds if self.refreshable else min(client.ttl_seconds, left_seconds),
            refreshable=self.refreshable,
        )


Grant = ClientCredentials | Refresh | TokenExchange


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's, with the grants and ways of authentication that there are here."""

    def __init__(self) -> None:
        super().__init__()
        for method in METHODS:
            self.register_client_auth_method(method, _proving(method))
        for grant in (ClientCredentials, Refresh, TokenExchange):
            self.register_grant(grant)

    def query_client(self, client_id: str) -> None:
        """The client was fetched before: ``Asked.registered``."""

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Nobody listens."""

    def validated_grant(self, asked: Asked) -> Grant:
        """Raises ``Refused``, with the reason of what Authlib raises."""
        with _refusing():
            if asked.payload.grant_type is None:
                raise _invalid("no grant_type")
            grant: Grant = self.get_token_grant(asked)
            grant.validate_token_request()
            return grant

    def authenticated(self, endpoint: TokenEndpoint, asked: Asked) -> Client:
        """For the other endpoints: the client, after the parameters were looked at. Raises ``Refused``."""
        with _refusing():
            registered: _Registered = endpoint.authenticate_endpoint_client(asked)
            endpoint.check_params(asked, registered)
            return registered.client


def _proving(method: str) -> Callable[[Any, Asked], _Registered | None]:
    def authenticate(_query: object, asked: Asked) -> _Registered | None:
        if asked.proof.method != method:
            return None
        asked.prove()
        return _Registered(asked.registered) if asked.registered is not None else None

    return authenticate


@contextmanager
def _refusing() -> Iterator[None]:
    """Authlib's words stay here: they repeat the caller's, and differ where nobody is to see a difference."""
    try:
        yield
    except OAuth2Error as error:
        reason = _REASONS.get(error.error)
        if reason is None:
            raise Fault(f"Authlib refuses with {error.error}") from error
        raise Refused(reason, type(error).__name__) from error


def _client(asked: Asked) -> Client:
    registered: _Registered = asked.client
    return registered.client


def _binding(asked: Asked) -> str | None:
    """Who authenticates by its certificate gets tokens of that certificate (RFC 8705 section 3)."""
    return asked.proof.certificate_sha256 or None


def _narrowed(asked: Asked, groups: Iterable[str]) -> tuple[str, ...]:
    """Of these groups, those that are asked for; without ``scope`` all of them (RFC 6749 section 3.3)."""
    allowed = tuple(groups)
    scope = asked.payload.scope
    if not scope:
        return allowed
    wanted = forms.scopes(scope)
    if not set(wanted) <= set(allowed):
        raise Refused(Reason.SCOPE_INVALID, "a scope beyond what the client may have here")
    return wanted


def _models_of_both(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """``*`` is all (``core.values.Principal``)."""
    if "*" in some:
        return others
    return some if "*" in others else tuple(name for name in some if name in others)


def _acting(subject: VerifiedClaims, issuer: str) -> tuple[Party, ...]:
    """Who acted for the subject before, the nearest first."""
    return tuple(
        Party(subject=party.subject, issuer=None if party.issuer == issuer else party.issuer)
        for party in getattr(subject, "acting", ())
    )


def _invalid(detail: str) -> Refused:
    return Refused(Reason.OAUTH_REQUEST_INVALID, detail)
