"""Certificate mode: whether a chain leads from a code-signing leaf to one of the operator's pinned roots, now.

Chains are built and checked by ``cryptography.x509.verification`` (RFC 5280 section 6) under a policy of our own:

- only the operator's roots are anchors; there is no fall-back to the system's;
- every certificate is inside its validity at the moment the caller names, the leaf and the root too;
- the leaf: ``CA:FALSE`` said outright, ``digitalSignature``, ``codeSigning``;
- every issuer: ``CA:TRUE`` and critical, ``keyCertSign``, ``codeSigning`` if it limits its uses at all, no name
  constraints (they bind names that no model has, so ignoring them would be a guess), path length respected;
- at most four certificates; ECDSA on P-256, P-384 or P-521 throughout; unknown critical extensions refuse;
- none of them, the root included, is on the operator's deny-list;
- nothing in the bundle's chain stays unread: each certificate there is part of the chain that was verified.

Trusts: the operator's roots and deny-list.
Promises: ``judge`` returns a key that a pinned root vouches for at that moment, or raises.
Not here: revocation lists of the issuers (an appliance is offline: the deny-list is the operator's); what was signed.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from appliance.core.manifest import SignatureRefused
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer
from appliance.models.keys import check_signer_name, is_acceptable, key_fingerprint

MAX_CHAIN: Final = 4
_MAX_SUBJECT_LENGTH: Final = 256
_SERIAL_LINE = re.compile(r"serial:(?P<serial>[0-9a-f]{1,40}) +issuer:(?P<issuer>.{1,1024})")


class DenyList:
    """``trust/revoked.txt``: what no longer counts, whoever vouches for it. One entry, or one ``#`` comment, per line.

    ::

        sha256:<64 hex>                          a certificate (its DER) or a key (its SubjectPublicKeyInfo, as the
                                                 audit log shows a signer's fingerprint)
        serial:<hex> issuer:<RFC 4514 name>      a certificate by its number and its issuer's name
    """

    def __init__(self, text: str = "") -> None:
        """Raises ``Fault`` for a line that is none of these: one mistyped must not quietly revoke nothing."""
        self._digests: set[Digest] = set()
        self._serials: set[tuple[int, str]] = set()
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.strip()
            if entry and not entry.startswith("#"):
                self._add(entry, number)

    def _add(self, entry: str, number: int) -> None:
        if match := _SERIAL_LINE.fullmatch(entry):
            try:
                issuer = x509.Name.from_rfc4514_string(match["issuer"]).rfc4514_string()
            except ValueError:
                raise Fault(f"revoked.txt, line {number}: the issuer is not an RFC 4514 name") from None
            self._serials.add((int(match["serial"], 16), issuer))
            return
        try:
            self._digests.add(Digest.parse(entry))
        except ValueError:
            raise Fault(
                f"revoked.txt, line {number}: neither 'sha256:<hex>' nor 'serial:<hex> issuer:<name>'"
            ) from None

    def check_key(self, signer: Signer) -> None:
        """Raises ``SignatureRefused("signer-revoked")``."""
        if signer.fingerprint in self._digests:
            raise SignatureRefused("signer-revoked", f"the key of {signer.name} is on the deny-list")

    def check_certificate(self, certificate: x509.Certificate) -> None:
        """Raises ``SignatureRefused("certificate-revoked")``."""
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        revoked = (
            Digest.of(certificate.public_bytes(Encoding.DER)) in self._digests
            or Digest.of(spki) in self._digests
            or (certificate.serial_number, certificate.issuer.rfc4514_string()) in self._serials
        )
        if revoked:
            raise SignatureRefused("certificate-revoked", "a certificate of the chain is on the deny-list")


class TrustedRoots:
    """The operator's root certificates, each under a name of the operator's."""

    def __init__(self, unverified_pems: Mapping[str, bytes]) -> None:
        """Root name -> PEM of one certificate. Raises ``Fault`` for anything else, and for one root under two names."""
        self._names: dict[x509.Certificate, str] = {}
        for name, pem in unverified_pems.items():
            root = _root(name, pem)
            if root in self._names:
                raise Fault(f"the roots {self._names[root]} and {name} are the same certificate")
            self._names[root] = name

    def names(self) -> tuple[str, ...]:
        return tuple(self._names.values())

    def judge(
        self, unverified_chain: tuple[bytes, ...], denied: DenyList, *, now_seconds: int
    ) -> tuple[Signer, ec.EllipticCurvePublicKey]:
        """DER certificates, leaf first -> who signed, and the leaf's key. Raises ``SignatureRefused``.

        The signer's name is the root's and the leaf's subject (``acme:CN=Release,O=Acme``); distinct subjects count as
        distinct signers, so a root must vouch for that.
        """
        if not self._names:
            raise SignatureRefused("signer-unknown", "no certificate roots are trusted")
        leaf, *others = (_certificate(der) for der in unverified_chain)
        chain = self._verified_chain(leaf, others, now_seconds)
        if not set(others) <= set(chain):
            raise SignatureRefused("certificate-invalid", "the bundle has certificates that are not part of the chain")
        for certificate in chain:
            denied.check_certificate(certificate)
        key = leaf.public_key()
        if not all(is_acceptable(certificate.public_key()) for certificate in chain) or not is_acceptable(key):
            raise SignatureRefused("certificate-invalid", "a key of the chain is not ECDSA on P-256, P-384 or P-521")
        return Signer(name=f"{self._names[chain[-1]]}:{_subject(leaf)}", fingerprint=key_fingerprint(key)), key

    def _verified_chain(
        self, leaf: x509.Certificate, others: list[x509.Certificate], now_seconds: int
    ) -> list[x509.Certificate]:
        verifier = (
            PolicyBuilder()
            .store(Store(list(self._names)))
            .time(datetime.fromtimestamp(now_seconds, UTC))
            .max_chain_depth(MAX_CHAIN - 2)  # it counts neither the leaf nor the root
            .extension_policies(ca_policy=_ISSUERS, ee_policy=_LEAVES)
            .build_client_verifier()
        )
        try:
            return verifier.verify(leaf, others).chain
        except VerificationError as error:
            # The first line only: what follows repeats the certificate.
            reason = str(error).partition(" (encountered")[0]
            raise SignatureRefused("certificate-invalid", reason) from None
        except ValueError:
            raise SignatureRefused("certificate-malformed", "a certificate of the chain cannot be read") from None


def _root(name: str, pem: bytes) -> x509.Certificate:
    check_signer_name(name)
    try:
        roots = x509.load_pem_x509_certificates(pem)
        key = roots[0].public_key()
    except ValueError as error:
        raise Fault(f"the root {name} is not a PEM certificate") from error
    if len(roots) != 1:
        raise Fault(f"the file of the root {name} holds {len(roots)} certificates; give each its own name")
    if not is_acceptable(key):
        raise Fault(f"the root {name} has no ECDSA key on P-256, P-384 or P-521")
    if not _is_authority(roots[0]):
        # The library takes an anchor at its word: as a leaf it would need nobody's signature.
        raise Fault(f"the root {name} is not a certificate authority; trust a signer's own key as a key")
    return roots[0]


def _is_authority(root: x509.Certificate) -> bool:
    try:
        return root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise SignatureRefused("certificate-malformed", "a certificate of the chain is not DER") from None


def _subject(leaf: x509.Certificate) -> str:
    """The name that audit records will show: never empty, never more than a line."""
    subject = leaf.subject.rfc4514_string()
    if not subject or len(subject) > _MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise SignatureRefused("certificate-invalid", "the leaf's subject is empty, too long or not printable")
    return subject


# --- what each extension must say ------------------------------------------------------------------------------------
# A validator refuses by raising ValueError; cryptography turns that into VerificationError.


def _leaf_is_no_authority(_policy: Policy, _certificate: x509.Certificate, value: x509.BasicConstraints) -> None:
    if value.ca:
        raise ValueError("the leaf is a certificate authority")


def _leaf_signs(_policy: Policy, _certificate: x509.Certificate, value: x509.KeyUsage) -> None:
    if not value.digital_signature or value.key_cert_sign:
        raise ValueError("the leaf's key is not for signatures, or is for certificates")


def _signs_code(_policy: Policy, _certificate: x509.Certificate, value: x509.ExtendedKeyUsage | None) -> None:
    if value is not None and ExtendedKeyUsageOID.CODE_SIGNING not in value:
        raise ValueError("the certificate is not for code signing")


def _issuer_is_authority(_policy: Policy, _certificate: x509.Certificate, value: x509.BasicConstraints) -> None:
    if not value.ca:
        raise ValueError("the issuer is not a certificate authority")


def _issuer_certifies(_policy: Policy, _certificate: x509.Certificate, value: x509.KeyUsage) -> None:
    if not value.key_cert_sign:
        raise ValueError("the issuer's key is not for certificates")


_LEAVES: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _leaf_is_no_authority)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _leaf_signs)
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _signs_code)
    .require_not_present(x509.NameConstraints)
)
_ISSUERS: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _issuer_is_authority)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _issuer_certifies)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _signs_code)
    .require_not_present(x509.NameConstraints)
)
