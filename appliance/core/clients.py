"""The clients of our own authorization server: what an operator registered, and what may be asked for with it.

A client is a program. It has groups and models as a person's token has, and no token of it says more. What a stranger
must not learn, its secret, is here as a digest: the secrets are random, of 256 bits, so that nothing slower is needed.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta

from appliance.core.values import Digest, Value

MAX_TTL_SECONDS: Final = 86_400
MAX_FAMILY_SECONDS: Final = 90 * 86_400
MAX_REFRESH_TOKEN_CHARACTERS: Final = 128
MAX_TOKEN_ID_CHARACTERS: Final = 64

ClientId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._~-]*\Z")]
"""RFC 6749 section 2.2; of characters that need no encoding in a form, a header or a log, and no option of a
command line."""
Group = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[\x21\x23-\x5b\x5d-\x7e]+\Z")]
"""A group is asked for as a scope (RFC 6749 section 3.3)."""
Name = Annotated[str, Meta(min_length=1, max_length=255)]
ThumbprintText = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]
"""A SHA-256 in base64url without padding, as ``x5t#S256`` (RFC 8705 section 3.1)."""

IssuedId = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_ID_CHARACTERS, pattern=r"\A[A-Za-z0-9_-]+\Z")]
"""Of an access token or a family of ours: random bytes in base64url. Those that have ended are remembered and told to
every gateway that comes, so nobody makes them longer."""

Authentication = Literal["client_secret_basic", "client_secret_post", "private_key_jwt", "self_signed_tls_client_auth"]
"""RFC 7591 section 2 and RFC 8705 section 2.2.1."""
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - the name of a grant
Grant = Literal["client_credentials", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"]


class PublicKey(Value, frozen=True, kw_only=True):
    """A verifying key, of a foreign issuer or of a client that signs its assertions (RFC 7523), as SubjectPublicKeyInfo
    in DER."""

    key_id: Annotated[str, Meta(min_length=1, max_length=128)]
    algorithm: Literal["ES256", "RS256", "PS256", "EdDSA"]
    spki: Annotated[bytes, Meta(max_length=2048)]


class Client(Value, frozen=True, kw_only=True):
    """What is registered of one client.

    It authenticates in one way and no other. ``secrets_sha256`` are one, or two while a secret is replaced.
    ``grants`` without ``refresh_token`` gets no refresh tokens. ``exchanges`` are the issuers whose tokens it may
    exchange, ours among them if it is named. ``introspects`` lets it ask about tokens of others.
    """

    client_id: ClientId
    authentication: Authentication
    secrets_sha256: Annotated[tuple[Digest, ...], Meta(max_length=2)] = ()
    keys: Annotated[tuple[PublicKey, ...], Meta(max_length=8)] = ()
    certificates: Annotated[tuple[ThumbprintText, ...], Meta(max_length=8)] = ()
    grants: Annotated[tuple[Grant, ...], Meta(min_length=1, max_length=3)] = ("client_credentials",)
    groups: Annotated[tuple[Group, ...], Meta(max_length=64)] = ()
    models: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    exchanges: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    introspects: bool = False
    ttl_seconds: Annotated[int, Meta(ge=60, le=MAX_TTL_SECONDS)] = 600
    family_seconds: Annotated[int, Meta(ge=60, le=MAX_FAMILY_SECONDS)] = 30 * 86_400
    disabled: bool = False


class Party(Value, frozen=True, kw_only=True):
    """Who acts for the subject of a token, one member of ``act`` (RFC 8693 section 4.1)."""

    subject: Annotated[str, Meta(min_length=1, max_length=1024)]
    issuer: Name | None = None


class GrantOrder(Value, frozen=True, kw_only=True):
    """A token that a client may have, as the authorization server found; the notary judges it again by what is
    registered. ``subject`` is the client's own id unless tokens are exchanged; ``acting`` then begins with the client.

    ``refreshable`` asks for a refresh token besides. The access token is bound to the certificate or key, if one is
    named (RFC 8705 section 3, RFC 9449 section 6).
    """

    client_id: ClientId
    grant: Grant
    subject: Annotated[str, Meta(min_length=1, max_length=1024)]
    groups: Annotated[tuple[Group, ...], Meta(max_length=64)]
    models: Annotated[tuple[Name, ...], Meta(max_length=64)]
    acting: Annotated[tuple[Party, ...], Meta(max_length=4)] = ()
    certificate_sha256: ThumbprintText | None = None
    jkt: ThumbprintText | None = None
    ttl_seconds: Annotated[int, Meta(ge=1, le=MAX_TTL_SECONDS)]
    refreshable: bool = False


class RefreshOrder(Value, frozen=True, kw_only=True):
    """Use this refresh token: it is replaced, and one that was replaced before ends its whole family (RFC 9700 section
    4.14.2). ``groups`` None asks for all that the family has."""

    client_id: ClientId
    unverified_refresh_token: Annotated[str, Meta(min_length=1, max_length=MAX_REFRESH_TOKEN_CHARACTERS)]
    groups: Annotated[tuple[Group, ...], Meta(max_length=64)] | None = None
    certificate_sha256: ThumbprintText | None = None
    jkt: ThumbprintText | None = None


class Family(Value, frozen=True, kw_only=True):
    """Refresh tokens that come one of the other, of which the last counts; what each gives, and until when.

    ``grant`` is what the first came of, ``ttl_seconds`` how long its access tokens live at most.
    """

    family_id: str
    client_id: str
    grant: Grant
    subject: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    acting: tuple[Party, ...] = ()
    certificate_sha256: str | None = None
    jkt: str | None = None
    ttl_seconds: int
    expires_at_seconds: int


class RevokeOrder(Value, frozen=True, kw_only=True):
    """End a token of this client: an access token by its id, or a refresh token with its family (RFC 7009)."""

    client_id: ClientId
    token_id: IssuedId | None = None
    expires_at_seconds: int = 0
    unverified_refresh_token: Annotated[str, Meta(max_length=MAX_REFRESH_TOKEN_CHARACTERS)] | None = None


class IssuedTokens(Value, frozen=True, kw_only=True):
    """Signed, and on record."""

    access_token: str
    token_id: str
    groups: tuple[str, ...]
    expires_in_seconds: int
    refresh_token: str | None = None


class RevokedToken(Value, frozen=True, kw_only=True):
    """Forgotten once it has expired."""

    token_id: IssuedId
    expires_at_seconds: int


class EndedClient(Value, frozen=True, kw_only=True):
    """Every token of this client that was issued up to this moment has ended."""

    client_id: str
    until_seconds: int
