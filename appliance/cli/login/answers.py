"""What an identity provider answers a client: bytes in, values out, and nothing believed that could mislead a terminal.

Trusts: nothing; the bytes are the provider's, who may be any.
Promises: what is returned has the declared types and sizes, and its text is printable ASCII, or words that went through
    ``told``; all else is ``AnswerInvalid``. Members that are not known are ignored (RFC 6749 section 5.1).
Not here: asking (``provider``).
"""

from base64 import urlsafe_b64decode
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from appliance.core.strict_json import JsonInvalid, check
from appliance.core.text import printable

MAX_TOLD_CHARACTERS: Final = 300
CLOCK_SECONDS: Final = 60
"""By how much the provider's clock may differ from ours."""
_MAX_DEPTH: Final = 8

Visible = Annotated[str, Meta(min_length=1, max_length=16384, pattern=r"\A[\x21-\x7e]+\Z")]
"""RFC 6749 appendix A: codes and tokens; without spaces, since they end up in a header."""
Url = Annotated[str, Meta(max_length=1024, pattern=r"\Ahttps://[\x21-\x7e]+\Z")]
Typed = Annotated[str, Meta(max_length=64, pattern=r"\A[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")]
"""What a person can read from one screen and type at another."""
Seconds = Annotated[int, Meta(ge=0, le=2**40)]


class AnswerInvalid(Exception):
    """The text is ours; it never repeats the provider's bytes."""


class Metadata(Struct, frozen=True, kw_only=True):
    """RFC 8414 section 2, as far as we use it."""

    issuer: Annotated[str, Meta(max_length=1024)]
    token_endpoint: Url
    device_authorization_endpoint: Url | None = None
    revocation_endpoint: Url | None = None


class DeviceAuthorization(Struct, frozen=True, kw_only=True):
    """RFC 8628 section 3.2."""

    device_code: Visible
    user_code: Typed
    verification_uri: Url
    expires_in: Seconds
    verification_uri_complete: Url | None = None
    interval: Seconds = 5


class Grant(Struct, frozen=True, kw_only=True):
    """RFC 6749 section 5.1, and the ID token of OpenID Connect."""

    access_token: Visible
    token_type: Annotated[str, Meta(max_length=64)]
    expires_in: Seconds | None = None
    refresh_token: Visible | None = None
    id_token: Visible | None = None


class Person(Struct, frozen=True, kw_only=True):
    """Whom an ID token is about: ``subject`` for machines, ``name`` for people."""

    subject: str
    name: str


class Declined(Exception):
    """RFC 6749 section 5.2: the provider's no. ``code`` is its word for it, ``str()`` is for the terminal."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(told(f"{code}: {description}" if description else code))
        self.code = code


class _Error(Struct, frozen=True, kw_only=True):
    error: str
    error_description: str = ""


class _IdToken(Struct, frozen=True, kw_only=True):
    iss: str
    sub: Annotated[str, Meta(min_length=1, max_length=255)]
    aud: str | list[str]
    exp: float
    preferred_username: str = ""
    email: str = ""


def metadata(body: bytes, issuer: str) -> Metadata:
    """RFC 8414 section 3.3 and OpenID Connect Discovery section 4.3: about exactly this issuer, or not believed."""
    found = _read(body, Metadata, "the provider's metadata")
    if found.issuer != issuer:
        raise AnswerInvalid(f"the provider calls itself {told(found.issuer)!r}, not {issuer!r}")
    return found


def device_authorization(body: bytes) -> DeviceAuthorization:
    return _read(body, DeviceAuthorization, "the answer about a code")


def grant(body: bytes) -> Grant:
    """RFC 6749 section 7.1: a token whose kind we cannot use is not used."""
    found = _read(body, Grant, "the answer with the token")
    if found.token_type.lower() != "bearer":
        raise AnswerInvalid(f"the provider gave a token of type {told(found.token_type)!r}; it must be Bearer")
    return found


def declined(body: bytes) -> Declined:
    found = _read(body, _Error, "the provider's error")
    return Declined(found.error, found.error_description)


def person(id_token: str, *, issuer: str, client_id: str, now_seconds: int) -> Person:
    """Whom an ID token names that came from the token endpoint itself, over TLS that was verified: that stands for its
    signature (OpenID Connect Core section 3.1.3.7, step 6). It is shown to the person, and decides nothing."""
    payload = id_token.split(".")[1] if id_token.count(".") == 2 else ""
    try:
        body = urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    except ValueError:
        raise AnswerInvalid("the ID token is not base64url") from None
    claims = _read(body, _IdToken, "the ID token")
    audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if claims.iss != issuer or client_id not in audiences or claims.exp + CLOCK_SECONDS <= now_seconds:
        raise AnswerInvalid("the ID token is of another issuer, for another client, or has expired")
    return Person(subject=claims.sub, name=told(claims.preferred_username or claims.email or claims.sub))


def told(text: str) -> str:
    """The provider's words as they may reach a terminal."""
    return printable(text[:MAX_TOLD_CHARACTERS])


_Kind = TypeVar("_Kind", bound=Struct)


def _read(body: bytes, kind: type[_Kind], what: str) -> _Kind:
    try:
        value: Any = check(body, max_depth=_MAX_DEPTH)
        return msgspec.convert(value, kind)
    except JsonInvalid as error:
        raise AnswerInvalid(f"{what} is not usable: {error}") from error
    except msgspec.ValidationError as error:
        raise AnswerInvalid(f"{what} is not usable: {told(str(error))}") from error
