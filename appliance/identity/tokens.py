"""Credentials of a request -> ``VerifiedClaims`` (RFC 9068, RFC 8725, RFC 7662, RFC 9449, RFC 8705).

The steps for a JWT, in order; each refuses with ``token-invalid`` and a detail for the operator:

(1) shape: at most 8 kB, three base64url segments, no padding;
(2) header: strict JSON with exactly ``alg``, ``kid`` and, unless the issuer's tokens have none, ``typ``;
(3) issuer: the claims, strict JSON as well, name one that is configured; ``typ`` is one of its types, the key id one of
    its keys', and the algorithm that key's own;
(4) signature, by PyJWT with one key and one algorithm;
(5) claims: all that the issuer's rules want, with their types; times judged by the caller's clock and no other, and a
    lifetime within the horizon;
(6) binding: a token that is bound to a key or a certificate comes with the proof of it.

A token of another shape is asked of the one issuer of opaque tokens, if there is one; steps (5) and (6) are the same.
One of our own is besides looked for among those that were revoked, each time that it comes.

Trusts: each key source and the introspection for what they say of their own issuer, and nothing of another.
Promises: what ``verify`` returns was signed by a known key of its issuer, or called active by it, for an audience of
    ours, is valid at ``now_seconds``, and was sent by whoever it is bound to. The cache is keyed by the SHA-256 of the
    whole token (CVE-2026-35030), filled only after verification, and asked only while the key set that verified is the
    one in force.
Not here: what the principal may do (policy), and what was revoked (``core.ports.Revocations``).
"""

import hmac
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from appliance.core.ports import Revocations
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import (
    Confirmation,
    IssuerRules,
    ReadClaims,
    check_not_expired,
    check_scopes,
    check_times,
    check_within,
    read,
)
from appliance.core.values import Digest, Presented, VerifiedClaims
from appliance.identity.compact import SERIALISATION, base64url, signed_payload, unverified_object
from appliance.identity.dpop import ProofChecker
from appliance.identity.keys import KeySet, VerifyingKey

MAX_TOKEN_BYTES: Final = 8192
MAX_OPAQUE_BYTES: Final = 1024
CACHE_ENTRIES: Final = 4096
RETRY_SECONDS: Final = 5
_OPAQUE = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""RFC 6750 section 2.1, ``b64token``; a shorter one could be guessed."""


class KeySource(Protocol):
    """The keys of one issuer."""

    def keys(self, now_seconds: int) -> KeySet | None:
        """The set in force, the same object until it changes; None when the issuer has been out of reach too long."""
        ...

    def miss(self) -> None:
        """A token named a key that is not in the set. Does not block."""
        ...


class OwnKeys:
    """Implements ``KeySource`` for keys that are there for as long as the process is."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def keys(self, now_seconds: int) -> KeySet | None:
        return self._keys

    def miss(self) -> None:
        """There is nobody to ask."""


class JwtIssuer(NamedTuple):
    """``revocations`` are those of our own issuer; of a foreign one nobody tells us any."""

    rules: IssuerRules
    source: KeySource
    revocations: Revocations | None = None


class OpaqueIssuer(NamedTuple):
    """``ask`` returns None for a token that is not active; raises ``Refused(ISSUER_UNAVAILABLE)``. An answer holds for
    ``cache_seconds``."""

    rules: IssuerRules
    ask: Callable[[str], Awaitable[ReadClaims | None]]
    cache_seconds: int


class _Known(NamedTuple):
    """A verified token. Of a JWT, ``keys`` is the set that verified it; of an opaque one, there is none."""

    claims: VerifiedClaims
    confirmation: Confirmation | None
    source: KeySource | None
    keys: KeySet | None
    until_seconds: int

    def holds(self, now_seconds: int) -> bool:
        if self.source is None:
            return now_seconds < self.until_seconds
        return self.source.keys(now_seconds) is self.keys


class TokenVerifier:
    """Implements ``core.ports.TokenVerifier``. ``proofs`` None: this server does not offer DPoP."""

    def __init__(
        self, issuers: Sequence[JwtIssuer], *, opaque: OpaqueIssuer | None = None, proofs: ProofChecker | None = None
    ) -> None:
        self._issuers = {issuer.rules.issuer: issuer for issuer in issuers}
        if len(self._issuers) != len(issuers):
            raise ValueError("an issuer is configured twice")
        self._opaque = opaque
        self._proofs = proofs
        self._cache: OrderedDict[Digest, _Known] = OrderedDict()

    async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
        """Raises as ``core.ports.TokenVerifier`` says."""
        unverified_token = presented.unverified_token
        token_sha256 = Digest.of(unverified_token.encode("utf-8", "surrogatepass"))
        known = self._cache.get(token_sha256)
        if known is None or not known.holds(now_seconds):
            known = await self._verify(unverified_token, token_sha256, now_seconds)
            self._remember(token_sha256, known)
        check_not_expired(known.claims.expires_at_seconds, now_seconds)
        self._check_not_revoked(known.claims)
        if known.confirmation is not None or presented.scheme != "bearer":
            self._confirm(known.confirmation, presented, now_seconds)
        return known.claims

    def has_ended(self, claims: VerifiedClaims) -> bool:
        """As ``core.ports.TokenVerifier`` says."""
        try:
            self._check_not_revoked(claims)
        except Refused as refusal:
            return refusal.reason is Reason.TOKEN_INVALID
        return False

    def _check_not_revoked(self, claims: VerifiedClaims) -> None:
        """Raises ``Refused(AUDIT_UNAVAILABLE)`` while nobody knows: a token that may have been ended opens nothing."""
        issuer = self._issuers.get(claims.issuer)
        if issuer is not None and issuer.revocations is not None and issuer.revocations.is_revoked(claims):
            raise _refused("revoked")

    def _remember(self, token_sha256: Digest, known: _Known) -> None:
        self._cache[token_sha256] = known
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)

    async def _verify(self, unverified_token: str, token_sha256: Digest, now_seconds: int) -> _Known:
        match = SERIALISATION.fullmatch(unverified_token) if len(unverified_token) <= MAX_TOKEN_BYTES else None
        if match is not None:
            return self._verify_jwt(unverified_token, match, token_sha256, now_seconds)
        if self._opaque is not None and _may_be_opaque(unverified_token):
            return await self._verify_opaque(self._opaque, unverified_token, token_sha256, now_seconds)
        raise _refused("not three base64url segments of at most 8 kB")  # (1)

    def _verify_jwt(
        self, unverified_token: str, match: re.Match[str], token_sha256: Digest, now_seconds: int
    ) -> _Known:
        unverified_header = _header(match[1])
        unverified_claims = unverified_object(match[2], Reason.TOKEN_INVALID)
        rules, source, _ = self._issuer(unverified_claims.get("iss"))
        keys = source.keys(now_seconds)
        if keys is None:
            raise Refused(Reason.ISSUER_UNAVAILABLE, rules.issuer, retry_after_seconds=RETRY_SECONDS)
        key = _key_for(unverified_header, rules, keys, source)
        # Everything else is checked by hand, on the same bytes: PyJWT takes ``exp`` as a string, the last of two equal
        # keys, and a missing ``typ``.
        signed_payload(unverified_token, key, Reason.TOKEN_INVALID)
        claims = read(unverified_claims, rules)
        if claims.issued_at_seconds is None:
            raise _refused("claims: no iat")
        return _known(claims, rules, token_sha256, now_seconds, source=source, keys=keys)

    def _issuer(self, unverified_issuer: object) -> JwtIssuer:
        issuer = self._issuers.get(unverified_issuer) if isinstance(unverified_issuer, str) else None
        if issuer is None:
            raise _refused("an issuer that is not configured")
        return issuer

    async def _verify_opaque(
        self, opaque: OpaqueIssuer, unverified_token: str, token_sha256: Digest, now_seconds: int
    ) -> _Known:
        claims = await opaque.ask(unverified_token)
        if claims is None:
            raise _refused("its issuer does not call it active")
        check_within(claims, opaque.rules)
        return _known(claims, opaque.rules, token_sha256, now_seconds, until_seconds=now_seconds + opaque.cache_seconds)

    def _confirm(self, confirmation: Confirmation | None, presented: Presented, now_seconds: int) -> None:
        """Step (6)."""
        if confirmation is not None and confirmation.certificate_sha256 is not None:
            _check_certificate(confirmation.certificate_sha256, presented.client_certificate_sha256)
        jkt = confirmation.jkt if confirmation is not None else None
        if jkt is None and presented.scheme == "dpop":  # RFC 9449 section 7.1: the scheme is for bound tokens
            raise _refused("a token that is not bound to a key, sent as if it were")
        if jkt is None:
            return
        if self._proofs is None:
            raise _refused("bound to a key, and this server has no public URL for proofs")
        if presented.scheme != "dpop" or presented.unverified_proof is None:
            raise Refused(Reason.PROOF_INVALID, "a token that is bound to a key, sent without a proof")
        self._proofs.check(
            presented.unverified_proof,
            token=presented.unverified_token,
            jkt=jkt,
            method=presented.method,
            path=presented.path,
            now_seconds=now_seconds,
        )


def _known(
    claims: ReadClaims,
    rules: IssuerRules,
    token_sha256: Digest,
    now_seconds: int,
    *,
    source: KeySource | None = None,
    keys: KeySet | None = None,
    until_seconds: int = 0,
) -> _Known:
    """Step (5), and the making of what is trusted from here on."""
    check_times(claims, max_lifetime_seconds=rules.max_lifetime_seconds, now_seconds=now_seconds)
    check_scopes(claims, rules)
    verified = VerifiedClaims(
        issuer=claims.issuer,
        subject=claims.subject,
        client_id=claims.client_id,
        audience=claims.audience,
        token_id=claims.token_id or str(token_sha256),
        issued_at_seconds=now_seconds if claims.issued_at_seconds is None else claims.issued_at_seconds,
        expires_at_seconds=claims.expires_at_seconds,
        groups=claims.groups,
        models=claims.models,
        token_sha256=token_sha256,
        acting=claims.acting,
    )
    return _Known(verified, claims.confirmation, source, keys, until_seconds)


def _may_be_opaque(unverified_token: str) -> bool:
    """Five segments are an encrypted JWT, which nobody here can read: row 12 of the table of hostile input."""
    return (
        len(unverified_token) <= MAX_OPAQUE_BYTES
        and unverified_token.count(".") not in (2, 4)
        and _OPAQUE.fullmatch(unverified_token) is not None
    )


def _header(segment: str) -> dict[str, Any]:
    """Step (2). ``jwk``, ``jku``, ``x5u``, ``crit``, ``b64`` and ``zip`` fall to the exact set of names."""
    header = unverified_object(segment, Reason.TOKEN_INVALID)
    if not {"alg", "kid"} <= header.keys() <= {"alg", "typ", "kid"}:
        raise _refused("the header has other members than alg, typ and kid")
    return header


def _key_for(header: dict[str, Any], rules: IssuerRules, keys: KeySet, source: KeySource) -> VerifyingKey:
    """Step (3)."""
    kind = header.get("typ", "")
    if not isinstance(kind, str) or kind not in rules.token_types or ("typ" in header and not kind):
        raise _refused("typ is not one of its issuer's")
    kid = header["kid"]
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        source.miss()
        raise _refused("unknown key id")
    if header["alg"] != key.algorithm:
        raise _refused("the algorithm is not the key's own")
    return key


def _check_certificate(bound: str, presented: bytes | None) -> None:
    """RFC 8705 section 3: the certificate of the connection is the one that the token names."""
    if presented is None or not hmac.compare_digest(base64url(presented), bound):
        raise _refused("bound to another certificate than the client's")


def _refused(detail: str) -> Refused:
    return Refused(Reason.TOKEN_INVALID, detail)
