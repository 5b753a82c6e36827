"""Clients that are registered, what they may ask for, and what they ask."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.core.clients import TOKEN_EXCHANGE, Client, GrantOrder, Party, PublicKey, RefreshOrder, RevokeOrder
from appliance.core.values import Digest, VerifiedClaims

CERTIFICATE = "c" * 43
OTHER_CERTIFICATE = "d" * 43
JKT = "j" * 43
OUR_ISSUER = "https://issuer.test"


def client(**fields: Any) -> Client:
    given: dict[str, Any] = {
        "client_id": "agent",
        "authentication": "client_secret_basic",
        "secrets_sha256": (Digest.of(b"secret"),),
        "grants": ("client_credentials", "refresh_token"),
        "groups": ("analysts", "staff"),
        "models": ("demo", "other"),
    }
    return Client(**(given | fields))


def by_certificate(**fields: Any) -> Client:
    given: dict[str, Any] = {
        "authentication": "self_signed_tls_client_auth",
        "secrets_sha256": (),
        "certificates": (CERTIFICATE,),
    }
    return client(**(given | fields))


def by_key(*keys: PublicKey, **fields: Any) -> Client:
    return client(authentication="private_key_jwt", secrets_sha256=(), keys=keys or (public_key(),), **fields)


def exchanging(**fields: Any) -> Client:
    return client(**({"grants": (TOKEN_EXCHANGE, "refresh_token"), "exchanges": (OUR_ISSUER,)} | fields))


def order(**fields: Any) -> GrantOrder:
    given: dict[str, Any] = {
        "client_id": "agent",
        "grant": "client_credentials",
        "subject": "agent",
        "groups": ("analysts",),
        "models": ("demo",),
        "ttl_seconds": 600,
    }
    return GrantOrder(**(given | fields))


def exchange(**fields: Any) -> GrantOrder:
    given: dict[str, Any] = {"grant": TOKEN_EXCHANGE, "subject": "ada", "acting": (Party(subject="agent"),)}
    return order(**(given | fields))


def refresh(refresh_token: str | None, **fields: Any) -> RefreshOrder:
    given: dict[str, Any] = {"client_id": "agent", "unverified_refresh_token": refresh_token}
    return RefreshOrder(**(given | fields))


def revoke(**fields: Any) -> RevokeOrder:
    return RevokeOrder(**({"client_id": "agent"} | fields))


def public_key(kind: str = "ES256", key_id: str = "k1", **fields: Any) -> PublicKey:
    private: Any = {
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
        "short": lambda: rsa.generate_private_key(65537, 1024),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    given: dict[str, Any] = {"key_id": key_id, "algorithm": kind, "spki": spki}
    return PublicKey(**(given | fields))


def claims(**fields: Any) -> Any:
    """As far as revocation looks at them."""
    given: dict[str, Any] = {"token_id": "t", "client_id": "agent", "issued_at_seconds": 1_790_000_000}
    rest: dict[str, Any] = dict.fromkeys(VerifiedClaims.__struct_fields__, None)
    return VerifiedClaims(**(rest | given | fields))
