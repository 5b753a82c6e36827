"""No certificate counts unless it leads to a pinned root, now, and is for signing code."""

import json
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.core.manifest import SignatureRefused
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.models.certificates import DenyList, TrustedRoots
from appliance.models.keys import TrustedKeys, key_fingerprint, public_pem
from appliance.models.oms import sign_model, verify_bundle
from appliance.models.trust import Trust
from tests.support.certificates import NOW, Party, name_of, usage
from tests.support.signed_models import memory_file, signed, spoiled

DATA = b"bytes of a model"
CODE = (ExtendedKeyUsageOID.CODE_SIGNING,)
ROOT = Party("root")
ISSUER = Party("issuer", ROOT, ca=True)
LEAF = Party("release", ISSUER)
OTHER_ROOT = Party("other root")


def bundle(leaf: Party, *others: Party) -> bytes:
    fd = memory_file(DATA)
    with open(fd, "rb"):
        return sign_model(fd, path="model.gguf", key=leaf.key, chain=[one.cert for one in (leaf, *others)])


def trust(*roots: Party, revoked: str = "", now_seconds: int = NOW) -> Trust:
    named = {f"root-{number}": root.pem for number, root in enumerate(roots)}
    return Trust(TrustedKeys({}), now_seconds=now_seconds, roots=TrustedRoots(named), denied=DenyList(revoked))


def refusal(made: bytes, trusted: Trust) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify_bundle(made, trusted)
    assert caught.value.detail
    assert "Certificate(" not in caught.value.detail
    return caught.value.reason


def leaf(issuer: Party = ROOT, **spoil: Any) -> tuple[Party, ...]:
    return (Party("release", issuer, **spoil),)


def below(**spoil: Any) -> tuple[Party, ...]:
    """A good leaf below an issuer that is spoiled."""
    issuer = Party("issuer", ROOT, **({"ca": True} | spoil))
    return Party("release", issuer), issuer


@cache
def tower(height: int) -> tuple[Party, ...]:
    """A leaf below so many issuers."""
    issuers = [ROOT]
    for number in range(height):
        issuers.append(Party(f"issuer {number}", issuers[-1], ca=True))
    return (Party("release", issuers[-1]), *reversed(issuers[1:]))


def forged() -> tuple[Party, ...]:
    """An issuer with the right name and another key."""
    impostor = Party("issuer", OTHER_ROOT, ca=True, issuer_name="root")
    return Party("release", impostor), impostor


def two_below_one_that_allows_none() -> tuple[Party, ...]:
    one = Party("one", ROOT, ca=True, path_length=0)
    two = Party("two", one, ca=True)
    return Party("release", two), two, one


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
NAMES = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.test")], excluded_subtrees=None)

CHAINS: list[tuple[str, Callable[[], tuple[Party, ...]]]] = [
    ("expired leaf", lambda: leaf(ends=NOW - 1)),
    ("leaf that is not yet valid", lambda: leaf(begins=NOW + 1)),
    ("expired issuer", lambda: below(ends=NOW - 1)),
    ("issuer that is not yet valid", lambda: below(begins=NOW + 1)),
    ("authority as leaf", lambda: leaf(ca=True, extended=CODE, key_usage=usage(sign=True, certify=True))),
    ("the root as leaf", lambda: (ROOT,)),
    ("leaf that says nothing about being an authority", lambda: leaf(no_basic_constraints=True)),
    ("leaf for no use", lambda: leaf(extended=())),
    ("leaf for servers", lambda: leaf(extended=(ExtendedKeyUsageOID.SERVER_AUTH,))),
    ("leaf for clients", lambda: leaf(extended=(ExtendedKeyUsageOID.CLIENT_AUTH,))),
    ("leaf for any use", lambda: leaf(extended=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,))),
    ("leaf without key usage", lambda: leaf(no_key_usage=True)),
    ("leaf whose key is not for signatures", lambda: leaf(key_usage=usage())),
    ("leaf whose key is for certificates too", lambda: leaf(key_usage=usage(sign=True, certify=True))),
    ("leaf with an unknown critical extension", lambda: leaf(extra=((UNKNOWN, True),))),
    ("leaf with name constraints", lambda: leaf(extra=((NAMES, True),))),
    ("leaf with an empty subject", lambda: leaf(subject=x509.Name([]))),
    ("leaf with a line break in its subject", lambda: leaf(subject=name_of("a\nb"))),
    ("leaf with a bell in its subject", lambda: leaf(subject=name_of("a\a"))),
    ("leaf on secp256k1", lambda: leaf(key=ec.generate_private_key(ec.SECP256K1()))),
    ("leaf signed by another key", lambda: leaf(signed_by=OTHER_ROOT.key)),
    ("leaf of an issuer with another name", lambda: leaf(issuer_name="somebody")),
    ("leaf that signed itself", lambda: (Party("release", ca=False, extended=CODE),)),
    ("leaf of another root", lambda: leaf(OTHER_ROOT)),
    ("leaf of another root, with that root", lambda: (*leaf(OTHER_ROOT), OTHER_ROOT)),
    ("issuer missing", lambda: (LEAF,)),
    ("issuer that is no authority", lambda: below(ca=False)),
    ("issuer that does not say", lambda: below(no_basic_constraints=True)),
    ("issuer without key usage", lambda: below(no_key_usage=True)),
    ("issuer whose key is not for certificates", lambda: below(key_usage=usage(sign=True))),
    ("issuer for servers only", lambda: below(extended=(ExtendedKeyUsageOID.SERVER_AUTH,))),
    ("issuer with name constraints", lambda: below(extra=((NAMES, True),))),
    ("issuer with an unknown critical extension", lambda: below(extra=((UNKNOWN, True),))),
    ("forged issuer", forged),
    ("certificates that are not part of the chain", lambda: (*leaf(), OTHER_ROOT)),
    ("another leaf in the chain", lambda: (LEAF, ISSUER, Party("other", ISSUER))),
    ("path longer than an issuer allows", two_below_one_that_allows_none),
    ("five certificates", lambda: tower(3)),
]  # fmt: skip


@pytest.mark.parametrize("make", [row[1] for row in CHAINS], ids=[row[0] for row in CHAINS])
def test_bad_chain_is_refused(make: Callable[[], tuple[Party, ...]]) -> None:
    parties = make()
    try:
        made = bundle(*parties)
    except KeyError:  # our own signer does not know the curve: the chain alone is judged
        chain = tuple(one.der for one in parties)
        with pytest.raises(SignatureRefused) as caught:
            trust(ROOT).roots.judge(chain, DenyList(), now_seconds=NOW)
        assert caught.value.reason == "certificate-invalid"
        return
    assert refusal(made, trust(ROOT)) == "certificate-invalid"


def raw(change: Callable[[list[dict[str, str]]], object]) -> bytes:
    return spoiled(
        bundle(LEAF, ISSUER), lambda b: change(b["verificationMaterial"]["x509CertificateChain"]["certificates"])
    )


def mixed() -> bytes:
    """The chain of one signer over the signature of another."""
    document = json.loads(bundle(LEAF, ISSUER))
    document["dsseEnvelope"] = json.loads(bundle(Party("release", ISSUER), ISSUER))["dsseEnvelope"]
    return json.dumps(document).encode()


BUNDLES: list[tuple[str, bytes, str]] = [
    ("no certificates", raw(lambda c: c.clear()), "bundle-malformed"),
    ("five entries", raw(lambda c: c.extend([c[1]] * 3)), "bundle-malformed"),
    ("not base64", raw(lambda c: c[0].update(rawBytes="!")), "bundle-malformed"),
    ("not DER", raw(lambda c: c[0].update(rawBytes="AAAA")), "certificate-malformed"),
    ("empty", raw(lambda c: c[0].update(rawBytes="")), "bundle-malformed"),
    ("unknown key", raw(lambda c: c[0].update(other=1)), "bundle-malformed"),
    ("PEM", raw(lambda c: c[0].update(rawBytes=b64encode(LEAF.pem).decode())), "certificate-malformed"),
    ("with a tail", raw(lambda c: c[0].update(rawBytes=b64encode(LEAF.der + b"\0").decode())), "certificate-malformed"),
    ("root first", raw(lambda c: c.reverse()), "certificate-invalid"),
    ("log entries", spoiled(bundle(LEAF, ISSUER), lambda b: b["verificationMaterial"].update(tlogEntries=[{}])),
     "bundle-malformed"),
    ("a key beside the chain", spoiled(bundle(LEAF, ISSUER), lambda b: b["verificationMaterial"].update(
        publicKey={"hint": "x"})), "bundle-malformed"),
    ("signature of another leaf", mixed(), "signature-invalid"),
    ("payload of another model", spoiled(bundle(LEAF, ISSUER), lambda b: b["dsseEnvelope"].update(
        payload=json.loads(signed(b"other"))["dsseEnvelope"]["payload"])), "signature-invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "reason"), [row[1:] for row in BUNDLES], ids=[row[0] for row in BUNDLES])
def test_bad_certificate_bundle_is_refused(made: bytes, reason: str) -> None:
    assert refusal(made, trust(ROOT)) == reason


def test_no_roots_refuse_everything() -> None:
    assert refusal(bundle(LEAF, ISSUER), trust()) == "signer-unknown"


def test_key_of_a_trusted_signer_is_not_a_root() -> None:
    trusted = Trust(TrustedKeys({}), now_seconds=NOW)
    assert refusal(bundle(LEAF, ISSUER), trusted) == "signer-unknown"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_chain_to_a_pinned_root_is_accepted(curve: ec.EllipticCurve) -> None:
    one = Party("release", ISSUER, key=ec.generate_private_key(curve))
    found = verify_bundle(bundle(one, ISSUER), trust(OTHER_ROOT, ROOT))
    assert found.signer.name == "root-1:CN=release,O=Acme"
    assert found.signer.fingerprint == key_fingerprint(one.key.public_key())


@pytest.mark.parametrize("parties", [(LEAF, ISSUER, ROOT), leaf(), (*leaf(), ROOT), tower(2), (*tower(2), ROOT)[:4]])
def test_good_chains_are_accepted(parties: tuple[Party, ...]) -> None:
    verify_bundle(bundle(*parties), trust(ROOT))


def test_root_that_expired_vouches_for_nobody() -> None:
    old = Party("old", ends=NOW + 10)
    made = bundle(Party("release", old))
    verify_bundle(made, trust(old))
    assert refusal(made, trust(old, now_seconds=NOW + 11)) == "certificate-invalid"


def test_time_of_signing_does_not_keep_a_leaf_valid() -> None:
    """What the reference implementation gets wrong: it verifies at the leaf's own beginning."""
    made = bundle(LEAF, ISSUER)
    verify_bundle(made, trust(ROOT, now_seconds=NOW))
    assert refusal(made, trust(ROOT, now_seconds=NOW + 10**6)) == "certificate-invalid"
    assert refusal(made, trust(ROOT, now_seconds=NOW - 10**6)) == "certificate-invalid"


def test_model_is_not_signed_with_another_leaf() -> None:
    fd = memory_file(DATA)
    with open(fd, "rb"), pytest.raises(Fault, match="signing key"):
        sign_model(fd, path="model.gguf", key=LEAF.key, chain=[ISSUER.cert])


# --- the deny-list ----------------------------------------------------------------------------------------------------


def by_certificate(party: Party) -> str:
    return str(Digest.of(party.der))


def by_key(party: Party) -> str:
    return str(key_fingerprint(party.key.public_key()))


def by_serial(party: Party) -> str:
    return f"serial:{party.cert.serial_number:x} issuer:{party.cert.issuer.rfc4514_string()}"


@pytest.mark.parametrize("how", [by_certificate, by_key, by_serial])
@pytest.mark.parametrize("party", [LEAF, ISSUER, ROOT], ids=["leaf", "issuer", "root"])
def test_revoked_certificate_refuses_the_chain(how: Callable[[Party], str], party: Party) -> None:
    text = f"# stolen in May\n\n{by_certificate(OTHER_ROOT)}\n  {how(party)}  \n"
    assert refusal(bundle(LEAF, ISSUER), trust(ROOT, revoked=text)) == "certificate-revoked"


def test_deny_list_of_others_changes_nothing() -> None:
    number = f"serial:{LEAF.cert.serial_number:x} issuer:CN=other,O=Acme"
    verify_bundle(bundle(LEAF, ISSUER), trust(ROOT, revoked=f"{by_key(OTHER_ROOT)}\n{number}\n"))


def test_revoked_key_refuses_key_mode_too() -> None:
    made = signed(DATA, LEAF.key)
    keys = TrustedKeys({"acme": public_pem(LEAF.key.public_key())})
    verify_bundle(made, Trust(keys, now_seconds=NOW))
    assert refusal(made, Trust(keys, now_seconds=NOW, denied=DenyList(by_key(LEAF)))) == "signer-revoked"


@pytest.mark.parametrize(
    "line",
    ["sha256:00", "SHA256:" + "0" * 64, "0" * 64, "sha1:" + "0" * 40, "serial:1", "serial:xyz issuer:CN=a",
     "serial:1 issuer:not a name", "issuer:CN=a serial:1", "sha256:" + "0" * 64 + " # why"],
)  # fmt: skip
def test_mistyped_line_is_a_fault(line: str) -> None:
    with pytest.raises(Fault, match="line 2"):
        DenyList(f"\n{line}\n")


# --- roots ------------------------------------------------------------------------------------------------------------


def rsa_root() -> bytes:
    return Party("rsa", key=rsa.generate_private_key(65537, 2048)).pem


@pytest.mark.parametrize(
    "pem", [b"", b"junk", ROOT.der, ROOT.pem + OTHER_ROOT.pem, rsa_root()], ids=["empty", "junk", "DER", "two", "RSA"]
)
def test_root_of_another_kind_is_a_fault(pem: bytes) -> None:
    with pytest.raises(Fault):
        TrustedRoots({"acme": pem})


def test_one_root_under_two_names_is_a_fault() -> None:
    with pytest.raises(Fault, match="the same certificate"):
        TrustedRoots({"a": ROOT.pem, "b": ROOT.pem})


@pytest.mark.parametrize("name", ["", "../acme", "a:b", "a b"])
def test_root_with_an_odd_name_is_a_fault(name: str) -> None:
    with pytest.raises(Fault):
        TrustedRoots({name: ROOT.pem})


def test_root_that_is_no_authority_is_a_fault() -> None:
    """As an anchor it would be believed with no signature above it, and with whatever uses it gives itself."""
    with pytest.raises(Fault, match="not a certificate authority"):
        TrustedRoots({"acme": Party("fake", ca=False, extended=CODE).pem})
    with pytest.raises(Fault, match="not a certificate authority"):
        TrustedRoots({"acme": Party("fake", no_basic_constraints=True).pem})


def test_weak_hash_is_not_accepted_in_a_chain() -> None:
    with pytest.raises(Exception):  # noqa: B017 - the library does not even make one
        Party("release", ROOT, digest=hashes.MD5())


def test_trust_is_read_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir(mode=0o755)
    (tmp_path / "roots" / "acme.pem").write_bytes(ROOT.pem)
    found = verify_bundle(bundle(LEAF, ISSUER), Trust.load(tmp_path, now_seconds=NOW))
    assert found.signer.name == "acme:CN=release,O=Acme"
    (tmp_path / "revoked.txt").write_text(by_certificate(LEAF))
    assert refusal(bundle(LEAF, ISSUER), Trust.load(tmp_path, now_seconds=NOW)) == "certificate-revoked"


@pytest.mark.parametrize("what", ["roots", "roots/acme.pem", "revoked.txt", "policy.toml"])
def test_trust_that_others_can_write_is_a_fault(tmp_path: Path, what: str) -> None:
    (tmp_path / "roots").mkdir(mode=0o755)
    (tmp_path / "roots" / "acme.pem").write_bytes(ROOT.pem)
    (tmp_path / "revoked.txt").write_text("")
    (tmp_path / "policy.toml").write_text("")
    Trust.load(tmp_path, now_seconds=NOW)
    (tmp_path / what).chmod(0o777)
    with pytest.raises(Fault, match=r"can be written by .*: chmod go-w /"):
        Trust.load(tmp_path, now_seconds=NOW)
