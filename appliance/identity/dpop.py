"""DPoP proofs (RFC 9449): who sends a token that is bound to a key has that key.

The checks of section 4.3, by their numbers there. (1), one header, is the gate's; (10), a nonce of the server's, does
not apply: none is given out, so a proof may have been made ``AGE_SECONDS`` before it is used, and is used once.

Trusts: the configured public URL; the caller to have verified the token and to say which key it is bound to.
Promises: a proof that passes was signed with the key of this thumbprint, for this token, method and path, within the
    window, and passes no second time in this process, nor a first time here after one in the process before, unless
    its sender's clock is ahead.
Not here: which tokens are bound (``tokens``). Several gateways would each take a proof once; there is one on a node.
"""

from collections import OrderedDict
from hashlib import sha256
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Meta

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Value
from appliance.identity.compact import SERIALISATION, base64url, signed_payload, strict_object, unverified_object
from appliance.identity.keys import VerifyingKey, parse_jwk

ALGORITHMS: Final = ("ES256", "EdDSA", "PS256", "RS256")
"""Asymmetric ones only (section 4.2)."""

MAX_PROOF_BYTES: Final = 4096
AGE_SECONDS: Final = 60
AHEAD_SECONDS: Final = 30
MAX_REMEMBERED: Final = 65_536

_MEMBERS: Final = {"EC": {"kty", "crv", "x", "y"}, "RSA": {"kty", "n", "e"}, "OKP": {"kty", "crv", "x"}}
"""RFC 7638 section 3.2 and RFC 8037 section 2: what a public key is made of, and its thumbprint."""
_HARMLESS: Final = {"kid", "alg", "use", "key_ops"}


class _Proof(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Other claims may be there (section 4.2); a nonce that nobody gave out is one of them."""

    jti: Annotated[str, Meta(min_length=1, max_length=256)]
    htm: str
    htu: Annotated[str, Meta(max_length=2048)]
    iat: int
    ath: str


class ProofChecker:
    """``public_url`` is the origin under which clients know this server: https, host, and a port unless it is 443. What
    was used before ``since_seconds``, the start of this process, is not remembered, so no proof that is older is taken.
    """

    def __init__(self, public_url: str, *, since_seconds: int) -> None:
        self._since_seconds = since_seconds
        self._origin = _normal(public_url)
        self._used: OrderedDict[bytes, int] = OrderedDict()

    def check(self, unverified_proof: str, *, token: str, jkt: str, method: str, path: str, now_seconds: int) -> None:
        """Raises ``Refused(PROOF_INVALID)``; ``Refused(OVERLOADED)`` when no more proofs can be remembered."""
        head, key = self._key(unverified_proof)
        proof = _claims(unverified_proof, key)
        if head != jkt:
            raise _refused("the key is not the one that the token is bound to")  # (12b)
        if proof.htm != method:
            raise _refused("htm is another method")  # (8)
        if _normal(proof.htu) != self._origin + path:
            raise _refused("htu is another address")  # (9)
        if not now_seconds - AGE_SECONDS <= proof.iat <= now_seconds + AHEAD_SECONDS:
            raise _refused("iat is not within the window")  # (11)
        if proof.iat < self._since_seconds:
            raise _refused("iat is before this process: it may have been used in the one before")
        if proof.ath != base64url(sha256(token.encode("utf-8", "surrogatepass")).digest()):
            raise _refused("ath is another token's")  # (12a)
        self._use_once(f"{jkt} {proof.jti}", now_seconds)

    def _key(self, unverified_proof: str) -> tuple[str, VerifyingKey]:
        """(2), (4), (5), (7): the header, and the thumbprint of its key."""
        match = SERIALISATION.fullmatch(unverified_proof) if len(unverified_proof) <= MAX_PROOF_BYTES else None
        if match is None:
            raise _refused("not three base64url segments of at most 4 kB")
        header = unverified_object(match[1], Reason.PROOF_INVALID)
        if header.keys() != {"typ", "alg", "jwk"}:
            raise _refused("the header has other members than typ, alg and jwk")
        if header["typ"] != "dpop+jwt":
            raise _refused("typ is not dpop+jwt")
        algorithm, jwk = header["alg"], header["jwk"]
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or not isinstance(jwk, dict):
            raise _refused("the algorithm is not one of those told, or the key is none")
        kind = jwk.get("kty")
        members = _MEMBERS.get(kind) if isinstance(kind, str) else None
        if members is None or not members <= jwk.keys() <= members | _HARMLESS:
            raise _refused("the key has other members than a public key has")
        try:
            key = parse_jwk(jwk, algorithm)
        except Fault as fault:
            raise _refused(fault.detail) from fault
        return thumbprint(key), key

    def _use_once(self, use: str, now_seconds: int) -> None:
        """(11): the identifier is remembered until its proof is too old. Times differ by at most the window, so what is
        oldest in the order of use is forgotten no earlier than it may be."""
        while self._used and next(iter(self._used.values())) <= now_seconds:
            self._used.popitem(last=False)
        name = sha256(use.encode("utf-8", "surrogatepass")).digest()
        if name in self._used:
            raise _refused("the proof was used before")
        if len(self._used) >= MAX_REMEMBERED:  # to forget one early would let it be used twice
            raise Refused(Reason.OVERLOADED, "too many DPoP proofs to remember", retry_after_seconds=AGE_SECONDS)
        self._used[name] = now_seconds + AGE_SECONDS + AHEAD_SECONDS + 1


def thumbprint(key: VerifyingKey) -> str:
    """RFC 7638, of the key as it was understood: two spellings of one key have one thumbprint."""
    jwk = _EXPORT[key.algorithm](key.key)
    members = {name: jwk[name] for name in sorted(_MEMBERS[jwk["kty"]])}
    return base64url(sha256(msgspec.json.encode(members)).digest())


_EXPORT: Final[dict[str, Any]] = {
    "ES256": lambda key: ECAlgorithm.to_jwk(key, as_dict=True),
    "EdDSA": lambda key: OKPAlgorithm.to_jwk(key, as_dict=True),
    "PS256": lambda key: RSAAlgorithm.to_jwk(key, as_dict=True),
    "RS256": lambda key: RSAAlgorithm.to_jwk(key, as_dict=True),
}


def _claims(unverified_proof: str, key: VerifyingKey) -> _Proof:
    """(3), (6)."""
    payload = signed_payload(unverified_proof, key, Reason.PROOF_INVALID)
    try:
        return msgspec.convert(strict_object(payload, Reason.PROOF_INVALID), _Proof)
    except msgspec.ValidationError as error:
        raise _refused(f"claims: {error}") from error


def _normal(url: str) -> str:
    """Without query and fragment (section 4.3), scheme and host in lower case, and no port that is the scheme's own."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("htu is not a URL") from None
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    if parts.username is not None or parts.password is not None:
        raise _refused("htu has a user in it")
    return f"{parts.scheme.lower()}://{host}{'' if port in (None, 443) else f':{port}'}{parts.path}"


def _refused(detail: str) -> Refused:
    return Refused(Reason.PROOF_INVALID, detail)
