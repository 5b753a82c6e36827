"""Folders as ``listen[].tls`` names them, and the other side of such a connection."""

import ssl
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.certificates import Party

_DAY = 86400


def authority(name: str = "test authority") -> Party:
    return _party(name, extended=())


def server_of(ca: Party) -> Party:
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("llm.example.com")])
    return _party("localhost", ca, extended=(ExtendedKeyUsageOID.SERVER_AUTH,), extra=((names, False),))


def client_of(ca: Party, **spoiled: Any) -> Party:
    return _party("service", ca, extended=(ExtendedKeyUsageOID.CLIENT_AUTH,), **spoiled)


def _party(name: str, issuer: Party | None = None, *, extra: Any = (), **details: Any) -> Party:
    """With what OpenSSL's strict mode asks for: key identifiers."""
    now = int(time.time())
    first = Party(name, issuer)
    own = x509.SubjectKeyIdentifier.from_public_key(first.key.public_key())
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer or first).key.public_key())
    return Party(
        name,
        issuer,
        key=first.key,
        extra=((own, False), (above, False), *extra),
        **({"begins": now - 3600, "ends": now + _DAY} | details),
    )


def write_key(path: Path, party: Party) -> Path:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(party.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def write_folder(folder: Path, server: Party, clients: Party | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "certificate.pem").write_bytes(server.pem)
    write_key(folder / "key.pem", server)
    if clients is not None:
        (folder / "clients.pem").write_bytes(clients.pem)
    return folder


def client_context(folder: Path, ca: Party, client: Party | None = None) -> ssl.SSLContext:
    """What a careful client has; ``folder`` is for its files."""
    context = ssl.create_default_context(cadata=ca.pem.decode())
    if client is not None:
        (folder / "client.pem").write_bytes(client.pem)
        context.load_cert_chain(folder / "client.pem", write_key(folder / "client.key", client))
    return context
