"""Certificates for tests: roots, intermediates and leaves, rightly made or spoiled in one way."""

from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_800_000_000
"""The moment at which tests verify, in seconds."""

_DEFAULT = object()


def name_of(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def usage(*, sign: bool = False, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=certify,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


class Party:
    """A key, and the certificate that ``issuer`` (or itself) made for it. Keyword arguments spoil one thing each."""

    def __init__(
        self,
        common: str,
        issuer: "Party | None" = None,
        *,
        ca: bool | None = None,
        path_length: int | None = None,
        key: Any = None,
        key_usage: x509.KeyUsage | None = None,
        no_key_usage: bool = False,
        no_basic_constraints: bool = False,
        extended: tuple[x509.ObjectIdentifier, ...] | None = None,
        begins: int = NOW - 3600,
        ends: int = NOW + 86400,
        issuer_name: str | None = None,
        serial: int | None = None,
        extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
        digest: hashes.HashAlgorithm | None = None,
        signed_by: Any = None,
        subject: x509.Name | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        is_ca = issuer is None if ca is None else ca
        parent_name = name_of(issuer_name) if issuer_name else issuer.cert.subject if issuer else name_of(common)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(common) if subject is None else subject)
            .issuer_name(parent_name)
            .public_key(self.key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(begins, UTC))
            .not_valid_after(datetime.fromtimestamp(ends, UTC))
        )
        if not no_basic_constraints:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None), critical=True
            )
        if not no_key_usage:
            builder = builder.add_extension(key_usage or usage(sign=not is_ca, certify=is_ca), critical=True)
        uses = ((ExtendedKeyUsageOID.CODE_SIGNING,) if not is_ca else ()) if extended is None else extended
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        signing = signed_by or (issuer.key if issuer else self.key)
        self.cert = builder.sign(signing, digest or hashes.SHA256())

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(Encoding.PEM)
