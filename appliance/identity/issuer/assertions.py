"""Assertions by which clients authenticate: ``private_key_jwt`` (RFC 7523 section 3, RFC 9700 section 2.5).

The steps, in order; each refuses with ``client-invalid`` and a detail for the operator:

(1) shape: at most 8 kB, three base64url segments, no padding;
(2) header: strict JSON with ``alg``, perhaps ``kid`` and a ``typ`` that is no other kind of token's;
(3) subject: the claims, strict JSON as well, name a client;
(4) key: the one that is registered for the client, with its own algorithm; then the signature, by PyJWT;
(5) claims: issuer and subject are the client; the audience is our issuer, alone and as a text: an assertion for the
    URL of an endpoint, or for several servers, could be used here by one of those others;
(6) times: by the caller's clock, of a lifetime within the horizon;
(7) once: its identifier is remembered until it has expired.

Trusts: the registered keys.
Promises: what passes was signed by a key of this client for us and for now, and passes no second time in this process,
    nor a first time here after one in the process before, unless its client's clock was ahead of ours. A client that
    is not known costs the same work.
Not here: which client may authenticate in this way (``authentication``).
"""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta

from appliance.core.clients import Client, PublicKey
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS
from appliance.core.values import Value
from appliance.identity.compact import SERIALISATION, signed_payload, strict_object, unverified_object
from appliance.identity.keys import from_wire

ALGORITHMS: Final = ("ES256", "EdDSA", "PS256", "RS256")
MAX_CHARACTERS: Final = 8192
MAX_LIFETIME_SECONDS: Final = 600
MAX_REMEMBERED_OF_CLIENT: Final = 4096
"""One client cannot take the places of the others."""
_TYPES: Final = frozenset({"JWT", "client-authentication+jwt"})
_REMEMBER_SECONDS: Final = MAX_LIFETIME_SECONDS + 2 * LEEWAY_SECONDS


class Assertion(NamedTuple):
    """Steps (1) to (3). Who it is from, and all that it says, is not verified."""

    unverified_text: str
    unverified_client_id: str
    algorithm: str
    key_id: str | None


class _Claims(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Others may be there (RFC 7523 section 3, item 9)."""

    iss: str
    sub: str
    aud: str
    jti: Annotated[str, Meta(min_length=1, max_length=256)]
    iat: int
    exp: int
    nbf: int | None = None


def read(unverified_text: str) -> Assertion:
    """Raises ``Refused(CLIENT_INVALID)``."""
    match = SERIALISATION.fullmatch(unverified_text) if len(unverified_text) <= MAX_CHARACTERS else None
    if match is None:
        raise _refused("not three base64url segments of at most 8 kB")  # (1)
    header = unverified_object(match[1], Reason.CLIENT_INVALID)
    if not {"alg"} <= header.keys() <= {"alg", "kid", "typ"}:
        raise _refused("the header has other members than alg, kid and typ")  # (2)
    algorithm, key_id, kind = header["alg"], header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused("an algorithm that is not offered")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _refused("typ is another kind of token's")
    if "kid" in header and not isinstance(key_id, str):
        raise _refused("the key id is not a text")
    subject = unverified_object(match[2], Reason.CLIENT_INVALID).get("sub")
    if not isinstance(subject, str):
        raise _refused("no sub")  # (3)
    return Assertion(unverified_text, subject, algorithm, key_id)


class AssertionChecker:
    """``issuer`` is our own name. What was used before ``since_seconds``, the start of this process, is not remembered,
    so no assertion that is older is taken."""

    def __init__(self, issuer: str, *, since_seconds: int) -> None:
        self._issuer = issuer
        self._since_seconds = since_seconds
        self._stand_ins = _stand_ins()
        self._used: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._of_client: Counter[str] = Counter()

    def check(self, assertion: Assertion, client: Client | None, *, now_seconds: int) -> None:
        """Raises ``Refused(CLIENT_INVALID)``; ``Refused(OVERLOADED)`` when no more of this client can be remembered."""
        known = _key(assertion, client)
        key = from_wire([known or self._stand_ins[assertion.algorithm]], frozenset(ALGORITHMS))
        (verifying,) = key.values()
        payload = signed_payload(assertion.unverified_text, verifying, Reason.CLIENT_INVALID)  # (4)
        if known is None or client is None:
            raise _refused("no such key is registered")
        claims = _claims(payload)
        if not claims.iss == claims.sub == client.client_id:
            raise _refused("issuer and subject are not the client")  # (5)
        if claims.aud != self._issuer:
            raise _refused("the audience is not the name of this issuer")
        self._check_times(claims, now_seconds)
        self._use_once(client.client_id, claims.jti, now_seconds)

    def _check_times(self, claims: _Claims, now_seconds: int) -> None:
        """Step (6)."""
        if not 0 < claims.exp - claims.iat <= MAX_LIFETIME_SECONDS:
            raise _refused(f"a lifetime of more than {MAX_LIFETIME_SECONDS} seconds, or none")
        if max(claims.iat, claims.nbf or 0) > now_seconds + LEEWAY_SECONDS:
            raise _refused("it is not valid yet")
        if now_seconds >= claims.exp + LEEWAY_SECONDS:
            raise _refused("expired")
        if claims.iat < self._since_seconds:
            raise _refused("from before what is remembered: it may have been used")

    def _use_once(self, client_id: str, jti: str, now_seconds: int) -> None:
        """Step (7). All are remembered equally long, so that the oldest use is forgotten first. What could have been
        used when that was is not taken any more, also if the clock is set back to where it had not expired."""
        while self._used and next(iter(self._used.values())) <= now_seconds:
            (forgotten, _name), until_seconds = self._used.popitem(last=False)
            self._since_seconds = max(self._since_seconds, until_seconds - _REMEMBER_SECONDS + LEEWAY_SECONDS)
            self._of_client[forgotten] -= 1
            if not self._of_client[forgotten]:
                del self._of_client[forgotten]
        use = client_id, sha256(jti.encode("utf-8", "surrogatepass")).digest()
        if use in self._used:
            raise _refused("it was used before")
        if self._of_client[client_id] >= MAX_REMEMBERED_OF_CLIENT:  # to forget one early would let it be used twice
            raise Refused(Reason.OVERLOADED, "too many assertions of one client to remember")
        self._used[use] = now_seconds + _REMEMBER_SECONDS + 1
        self._of_client[client_id] += 1


def _key(assertion: Assertion, client: Client | None) -> PublicKey | None:
    """Without a key id, the client's only key. The algorithm is the key's own, never the header's choice."""
    keys = client.keys if client is not None else ()
    if assertion.key_id is None:
        found = keys[0] if len(keys) == 1 else None
    else:
        found = next((key for key in keys if key.key_id == assertion.key_id), None)
    return found if found is not None and found.algorithm == assertion.algorithm else None


def _claims(payload: bytes) -> _Claims:
    try:
        return msgspec.convert(strict_object(payload, Reason.CLIENT_INVALID), _Claims)
    except msgspec.ValidationError as error:
        raise _refused(f"claims: {error}") from error


def _stand_ins() -> Mapping[str, PublicKey]:
    """Keys of nobody, against which an assertion fails as slowly as against a client's."""
    number = secrets.randbits(2048) | 1 << 2047 | 1
    rsa_key = rsa.RSAPublicNumbers(65537, number).public_key()
    keys: dict[str, Any] = {
        "ES256": ec.generate_private_key(ec.SECP256R1()).public_key(),
        "EdDSA": ed25519.Ed25519PrivateKey.generate().public_key(),
        "PS256": rsa_key,
        "RS256": rsa_key,
    }
    return MappingProxyType(
        {
            name: PublicKey(
                key_id="nobody",
                algorithm=name,  # type: ignore[arg-type]  # one of ALGORITHMS
                spki=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            )
            for name, key in keys.items()
        }
    )


def _refused(detail: str) -> Refused:
    return Refused(Reason.CLIENT_INVALID, detail)
