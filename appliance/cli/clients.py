"""``paddock clients``: who may ask our own authorization server for tokens, and for which.

A secret is made here, printed once, and known to nobody else: the notary gets its digest.

Trusts: whoever owns the admin socket's path.
Promises: a change that is told has its record in the log. A client that was changed by somebody else in between is not
    changed again.
Not here: which client makes sense, and what a change ends (``notary.operating``).
"""

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import jwt.algorithms
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from appliance.cli.ask import ask
from appliance.core.clients import TOKEN_EXCHANGE, Client, ClientId, PublicKey
from appliance.core.codec import dec_hook, enc_hook
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.ipc.messages import (
    ClientFound,
    ClientList,
    Failed,
    FromNotaryAdmin,
    ListClients,
    PutClient,
    RemoveClient,
)
from appliance.settings import Settings

GRANTS: Final = {
    "client_credentials": "client_credentials",
    "refresh_token": "refresh_token",
    "token-exchange": TOKEN_EXCHANGE,
}
OLD_SECRET: Final = "old-secret"  # noqa: S105 - the name of one
_SECRET_BYTES: Final = 32
_MAX_PEM_BYTES: Final = 64 * 1024


def add(config: Settings, client_id: str, *, keys: Sequence[Path], certificates: Sequence[Path], **given: Any) -> str:
    """Registers a client; returns its secret, or an empty text where it has none. ``given`` are fields of ``Client``.

    Raises ``Fault`` when a file cannot be read, the notary is away or refuses.
    """
    if keys and certificates:
        raise Fault("a client authenticates by its keys or by its certificates")
    secret = ""
    if keys:
        given |= {"authentication": "private_key_jwt", "keys": tuple(map(read_key, keys))}
    elif certificates:
        given |= {
            "authentication": "self_signed_tls_client_auth",
            "certificates": tuple(map(read_certificate, certificates)),
        }
    else:
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        given["secrets_sha256"] = (Digest.of(secret.encode()),)
    _put(config, _client(given | {"client_id": client_id}), None)
    return secret


def change(
    config: Settings,
    client_id: str,
    *,
    add_keys: Sequence[Path] = (),
    add_certificates: Sequence[Path] = (),
    drop: Sequence[str] = (),
    **given: Any,
) -> Client:
    """Replaces the fields of ``Client`` that are ``given``, adds keys and certificates, and drops others by their id or
    thumbprint; ``old-secret`` is the older of two secrets. Raises ``Fault``."""
    before = find(config, client_id)
    known = {key.key_id for key in before.keys} | set(before.certificates)
    if len(before.secrets_sha256) == 2:
        known.add(OLD_SECRET)
    if unknown := set(drop) - known:
        raise Fault(f"{client_id} has no {', '.join(sorted(unknown))}")
    credentials = {
        "keys": (*(key for key in before.keys if key.key_id not in drop), *map(read_key, add_keys)),
        "certificates": (
            *(one for one in before.certificates if one not in drop),
            *map(read_certificate, add_certificates),
        ),
        "secrets_sha256": before.secrets_sha256[OLD_SECRET in drop :],
    }
    return _put(config, _client(_fields(before) | credentials | given), before)


def new_secret(config: Settings, client_id: str, *, keep_old: bool) -> str:
    """Another secret, in the place of all others or beside the last. Raises ``Fault``."""
    before = find(config, client_id)
    if not before.secrets_sha256:
        raise Fault(f"{client_id} authenticates without a secret")
    if keep_old and len(before.secrets_sha256) == 2:
        raise Fault(f"{client_id} has two secrets: take the old one away first, with 'change --drop {OLD_SECRET}'")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    kept = before.secrets_sha256 if keep_old else ()
    digests = (*kept, Digest.of(secret.encode()))
    _put(config, _client(_fields(before) | {"secrets_sha256": digests}), before)
    return secret


def remove(config: Settings, client_id: str) -> None:
    """Raises ``Fault``."""
    _ask(config, RemoveClient(call=1, client_id=_checked(client_id)))


def find(config: Settings, client_id: str) -> Client:
    """Raises ``Fault``, also where there is none."""
    for client in everyone(config):
        if client.client_id == client_id:
            return client
    raise Fault(f"no client {client_id!r} is registered")


def everyone(config: Settings) -> list[Client]:
    """In the order of their ids. Raises ``Fault``."""
    found: list[Client] = []
    while True:
        page = _ask(config, ListClients(call=1, after=found[-1].client_id if found else ""))
        if not isinstance(page, ClientList):
            raise Fault("the notary answered something else")
        found += page.clients
        if not page.more:
            return found


def read_key(path: Path) -> PublicKey:
    """PEM of a public key -> with the algorithm of its kind, RS256 for RSA, and its RFC 7638 thumbprint for an id.

    Raises ``Fault`` for anything else, a private key among them.
    """
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Fault(f"{path} is not a public key in PEM") from error
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    match key:
        case EllipticCurvePublicKey():
            jwk = jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
            return PublicKey(key_id=_thumbprint(jwk, "crv", "kty", "x", "y"), algorithm="ES256", spki=spki)
        case RSAPublicKey():
            jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
            return PublicKey(key_id=_thumbprint(jwk, "e", "kty", "n"), algorithm="RS256", spki=spki)
        case Ed25519PublicKey():
            jwk = jwt.algorithms.OKPAlgorithm.to_jwk(key, as_dict=True)
            return PublicKey(key_id=_thumbprint(jwk, "crv", "kty", "x"), algorithm="EdDSA", spki=spki)
    raise Fault(f"{path} is neither an ECDSA, RSA nor Ed25519 key")


def read_certificate(path: Path) -> str:
    """PEM of a certificate -> its ``x5t#S256`` (RFC 8705 section 3.1). Raises ``Fault``."""
    try:
        certificate = x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise Fault(f"{path} is not a certificate in PEM") from error
    return _base64url(sha256(certificate.public_bytes(Encoding.DER)).digest())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_PEM_BYTES)


def _thumbprint(jwk: dict[str, Any], *members: str) -> str:
    """RFC 7638 section 3."""
    return _base64url(sha256(msgspec.json.encode({name: jwk[name] for name in members}, order="sorted")).digest())


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _fields(client: Client) -> dict[str, Any]:
    return {name: getattr(client, name) for name in client.__struct_fields__}


def _client(fields: dict[str, Any]) -> Client:
    """Judged as the notary's decoder will. Raises ``Fault``."""
    built: Any = msgspec.to_builtins(fields, enc_hook=enc_hook, builtin_types=(bytes,))
    try:
        return msgspec.convert(built, Client, dec_hook=dec_hook, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Fault(f"this is no client: {error}") from error


def _checked(client_id: str) -> str:
    try:
        return msgspec.convert(client_id, ClientId)
    except msgspec.ValidationError as error:
        raise Fault(f"{client_id!r} is no client id: {error}") from error


def _put(config: Settings, client: Client, before: Client | None) -> Client:
    answer = _ask(config, PutClient(call=1, client=client, before=before))
    if not isinstance(answer, ClientFound) or answer.client is None:
        raise Fault("the notary answered something else")
    return answer.client


def _ask(config: Settings, question: Any) -> Any:
    answer = ask(config, "notary", question, FromNotaryAdmin)
    if isinstance(answer, Failed):
        raise Fault(f"the notary refused: {answer.reason}: {answer.detail}")
    return answer
