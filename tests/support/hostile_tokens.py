"""Tokens that no library would write, signed with the key of the appliance under test, which alone makes them bad."""

import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from appliance.settings import Settings
from tests.support.identity_provider import IdentityProvider

MISSING: Final = object()
"""As a value: the member is left out."""


class Forge:
    """Makes tokens for one appliance. ``header`` and ``claims`` are those of a good token, with changes. ``foreign``
    is an issuer that it believes too."""

    def __init__(self, config: Settings, foreign: IdentityProvider | None = None) -> None:
        pem = (config.notary_dir / "keys" / "token.key").read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._foreign = foreign
        self._config = config
        self.jwk: dict[str, Any] = json.loads((config.public_dir / "jwks.json").read_bytes())["keys"][0]

    @property
    def foreign(self) -> IdentityProvider:
        assert self._foreign is not None
        return self._foreign

    def header(self, **changes: Any) -> bytes:
        return _written({"alg": "ES256", "typ": "at+jwt", "kid": self.jwk["kid"]}, changes)

    def claims(self, **changes: Any) -> bytes:
        now = int(time.time())
        identity = self._config.identity
        return _written(
            {
                "iss": identity.issuer,
                "aud": identity.audience,
                "sub": "alice",
                "client_id": "tests",
                "jti": "0001",
                "iat": now,
                "exp": now + 600,
                "groups": ["staff"],
                "models": ["*"],
            },
            changes,
        )

    def token(self, header: bytes | None = None, claims: bytes | None = None, *, stranger: bool = False) -> str:
        signed = f"{base64url(header or self.header())}.{base64url(claims or self.claims())}"
        key = ec.generate_private_key(ec.SECP256R1()) if stranger else self._key
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def with_header(self, **changes: Any) -> str:
        return self.token(self.header(**changes))

    def with_claims(self, **changes: Any) -> str:
        return self.token(None, self.claims(**changes))

    def with_hmac(self) -> str:
        """CVE-2022-29217: the public key, which everybody knows, as the secret."""
        signed = f"{base64url(self.header(alg='HS256'))}.{base64url(self.claims())}"
        return f"{signed}.{base64url(hmac.new(json.dumps(self.jwk).encode(), signed.encode(), sha256).digest())}"


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any]:
    """Of a token that is whole."""
    segment = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return claims


def subject_of(token: str) -> str:
    subject: str = claims_of(token)["sub"]
    return subject


def in_seconds(seconds: int) -> int:
    return int(time.time()) + seconds


def _written(members: dict[str, Any], changes: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in (members | changes).items() if value is not MISSING}).encode()
