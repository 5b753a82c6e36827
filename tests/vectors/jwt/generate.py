"""Writes tokens.json: tokens signed by a fixed key, and what the verifier must say of each at a fixed time.

Header and claims are exact bytes, so that a token may say what no library would write. Signatures are deterministic
(RFC 6979). The key is made from a public text and guards nothing. A test writes the file anew and compares; run this
after changing it.
"""

import hmac
import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

TOKENS = Path(__file__).with_name("tokens.json")

NOW = 1_790_000_000
ISSUER = "https://issuer.example"
AUDIENCE = "paddock"
MAX_LIFETIME = 86_400
LEEWAY = 30
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "first"}
CLAIMS = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "alice",
    "client_id": "notebook",
    "jti": "0001",
    "iat": NOW - 60,
    "exp": NOW + 600,
    "groups": ["staff"],
    "models": ["demo"],
}
MISSING = object()

SHAPE = "not three base64url segments of at most 8 kB"
MEMBERS = "the header has other members than alg, typ and kid"
TYP = "typ is not one of its issuer's"
KEY_ID = "unknown key id"
ALGORITHM = "the algorithm is not the key's own"
TWICE = "a key occurs twice"
SIGNATURE = "InvalidSignatureError"
LIFETIME = "the lifetime is not within the horizon"
EARLY = "it is not valid yet"
ISSUER_UNKNOWN = "an issuer that is not configured"
AUDIENCE_OTHER = "another audience"


def private_key(name):
    return ec.derive_private_key(int.from_bytes(sha256(name.encode()).digest(), "big") % P256_ORDER, ec.SECP256R1())


KEYS = {"first": private_key("paddock test key 1"), "second": private_key("paddock test key 2")}
STRANGER = private_key("paddock test key of a stranger")


def base64url(data):
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(key_id, key):
    numbers = key.public_key().public_numbers()
    x, y = (base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": key_id, "use": "sig", "alg": "ES256"}


def es256(key, data):
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def changed(document, changes):
    return {name: value for name, value in {**document, **changes}.items() if value is not MISSING}


def as_bytes(document):
    return document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()


def token(header=HEADER, claims=CLAIMS, *, key=KEYS["first"], signature=None):
    head = f"{base64url(as_bytes(header))}.{base64url(as_bytes(claims))}"
    made = es256(key, head.encode()) if signature is None else signature(head.encode())
    return f"{head}.{base64url(made)}"


def with_header(**changes):
    return token(header=changed(HEADER, changes))


def with_claims(**changes):
    return token(claims=changed(CLAIMS, changes))


def hmac_with_public_key(head):
    """CVE-2022-29217: the public key's bytes, which everybody knows, taken for an HMAC secret."""
    return hmac.new(json.dumps(public_jwk("first", KEYS["first"])).encode(), head, sha256).digest()


def raw_signature(r, s):
    return lambda _head: r.to_bytes(32, "big") + s.to_bytes(32, "big")


def der_signature(head):
    return KEYS["first"].sign(head, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


GOOD = token()
HEAD, BODY, SIGNED = GOOD.split(".")
PADDED = base64url(as_bytes(HEADER | {"kid": "first"})) + "="


def rows():
    """(row of the table of hostile input, name, token, what the operator is told; None when accepted)."""
    yield 0, "a good token", GOOD, None
    yield 0, "the second key", token(header=changed(HEADER, {"kid": "second"}), key=KEYS["second"]), None
    yield 0, "the long name of the type", with_header(typ="application/at+jwt"), None
    yield 0, "claims of an issuer's own", with_claims(email="a@b", acr=3, address={"city": ["x"]}), None
    yield 0, "no groups and no models", with_claims(groups=MISSING, models=MISSING), None
    yield 0, "valid from now on", with_claims(nbf=NOW), None
    yield 0, "a clock that is half a minute ahead", with_claims(iat=NOW + LEEWAY, nbf=NOW + LEEWAY), None
    yield 0, "expired within the leeway", with_claims(exp=NOW - LEEWAY + 1), None
    yield 0, "the longest lifetime", with_claims(iat=NOW, exp=NOW + MAX_LIFETIME), None

    yield 12, "empty", "", SHAPE
    yield 12, "one segment", HEAD, SHAPE
    yield 12, "two segments", f"{HEAD}.{BODY}", SHAPE
    yield 12, "no signature", f"{HEAD}.{BODY}.", SHAPE
    yield 12, "no header", f".{BODY}.{SIGNED}", SHAPE
    yield 12, "four segments", f"{GOOD}.{SIGNED}", SHAPE
    yield 12, "five segments, as an encrypted token", f"{HEAD}.{SIGNED}.{SIGNED}.{BODY}.{SIGNED}", SHAPE
    yield 12, "padding", f"{PADDED}.{BODY}.{SIGNED}", SHAPE
    yield 12, "space before", f" {GOOD}", SHAPE
    yield 12, "line break after", f"{GOOD}\n", SHAPE
    yield 12, "two tokens", f"{GOOD}, {GOOD}", SHAPE
    yield 12, "standard alphabet", f"{HEAD}.{BODY}.{'+/' * 43}", SHAPE
    yield 12, "letters that look alike", GOOD.replace("a", "\u0430"), SHAPE
    yield 12, "more than 8 kB", with_claims(pad="x" * 8192), SHAPE
    impossible = "A" * (1 + len(HEAD) // 4 * 4)
    yield 12, "a header of an impossible length", f"{impossible}.{BODY}.{SIGNED}", "a segment is not base64url"
    yield 12, "a header that is not JSON", token(header=b"{"), "not JSON"
    yield 12, "a header that is a list", token(header=[HEADER]), "not a JSON object"
    yield 12, "a header that is not UTF-8", token(header=b'{"alg":"\xff"}'), "not UTF-8"
    yield 12, "a header with a byte-order mark", token(header=b"\xef\xbb\xbf" + as_bytes(HEADER)), "not JSON"
    yield 12, "a header nested without end", token(header=b"[" * 3000), "nested deeper than 8"
    yield 12, "claims that are a list", token(claims=[1]), "not a JSON object"
    yield 12, "claims that are not JSON", token(claims=b"alice"), "not JSON"

    for algorithm in (
        "none",
        "None",
        "NONE",
        "",
        "HS256",
        "HS512",
        "RS256",
        "PS256",
        "ES384",
        "ES512",
        "EdDSA",
        "es256",
    ):
        yield 13, f"algorithm {algorithm!r}", with_header(alg=algorithm), ALGORITHM
    for algorithm in (None, 1, ["ES256"], {"ES256": 1}):
        yield 13, f"algorithm as {json.dumps(algorithm)}", with_header(alg=algorithm), ALGORITHM
    yield 13, "no algorithm", with_header(alg=MISSING), MEMBERS
    confused = changed(HEADER, {"alg": "HS256"})
    yield 13, "HMAC with the public key", token(header=confused, signature=hmac_with_public_key), ALGORITHM
    yield 13, "HMAC that says ES256", token(signature=hmac_with_public_key), SIGNATURE

    for member, value in (
        ("jwk", public_jwk("first", STRANGER)),
        ("jku", "https://evil.example/keys"),
        ("x5u", "https://evil.example/chain"),
        ("x5c", ["MIIB"]),
        ("x5t", "AAAA"),
        ("crit", ["exp"]),
        ("crit", []),
        ("b64", False),
        ("zip", "DEF"),
        ("enc", "A256GCM"),
        ("cty", "JWT"),
        ("nonce", "1"),
    ):
        yield 14, f"header with {member} {json.dumps(value)[:12]}", with_header(**{member: value}), MEMBERS
    forged = changed(HEADER, {"jwk": public_jwk("first", STRANGER)})
    yield 14, "a key of its own, and signed by it", token(header=forged, key=STRANGER), MEMBERS

    for kind in (
        "JWT",
        "jwt",
        "AT+JWT",
        "at+JWT",
        "dpop+jwt",
        "logout+jwt",
        "application/jwt",
        "",
        " at+jwt",
        "at+jwt ",
    ):
        yield 15, f"type {kind!r}", with_header(typ=kind), TYP
    for kind in (None, 1, True, ["at+jwt"], {"at+jwt": 1}):
        yield 15, f"type as {json.dumps(kind)}", with_header(typ=kind), TYP
    yield 15, "no type", with_header(typ=MISSING), TYP

    for key_id in ("", "third", "FIRST", "first ", "first\u0000", "../first", "' or 1=1 --", "x" * 129, "\u200bfirst"):
        yield 16, f"key id {key_id[:16]!r}", with_header(kid=key_id), KEY_ID
    for key_id in (None, 1, True, ["first"], {"first": 1}):
        yield 16, f"key id as {json.dumps(key_id)}", with_header(kid=key_id), KEY_ID
    yield 16, "no key id", with_header(kid=MISSING), MEMBERS
    yield 16, "the other key's id", with_header(kid="second"), SIGNATURE

    yield 17, "two types", token(header=b'{"alg":"ES256","typ":"JWT","kid":"first","typ":"at+jwt"}'), TWICE
    escaped = b'{"alg":"none","typ":"at+jwt","kid":"first","\\u0061lg":"ES256"}'
    yield 17, "two algorithms, one escaped", token(header=escaped), TWICE
    yield 17, "two subjects", token(claims=as_bytes(CLAIMS)[:-1] + b',"sub":"root"}'), TWICE
    yield 17, "two subjects, one escaped", token(claims=as_bytes(CLAIMS)[:-1] + b',"s\\u0075b":"root"}'), TWICE
    yield 17, "two keys in a claim of the issuer's", token(claims=as_bytes(CLAIMS)[:-1] + b',"a":{"b":1,"b":2}}'), TWICE

    yield 18, "no iss", with_claims(iss=MISSING), ISSUER_UNKNOWN
    for claim in ("aud", "sub", "client_id", "jti", "iat", "exp"):
        yield 18, f"no {claim}", with_claims(**{claim: MISSING}), "claims: "
    for claim in ("iat", "exp", "nbf"):
        for value in (str(CLAIMS["exp"]), 1.5, float(NOW), True, [NOW], {}):
            yield 18, f"{claim} as {json.dumps(value)}", with_claims(**{claim: value}), "claims: Expected `int"
    for value in (b"NaN", b"Infinity", b"-Infinity"):
        claims = as_bytes(CLAIMS).replace(b'"exp":%d' % CLAIMS["exp"], b'"exp":' + value)
        yield 18, f"exp {value.decode()}", token(claims=claims), "NaN and Infinity are not JSON"
    for value in (b"1e400", b"9" * 400):
        claims = as_bytes(CLAIMS).replace(b'"exp":%d' % CLAIMS["exp"], b'"exp":' + value)
        expected = "a number too large for a double" if b"e" in value else "an integer of more than 64 bits"
        yield 18, f"exp {value[:8].decode()}", token(claims=claims), expected
    yield 18, "exp of 2^64 - 1", with_claims(exp=2**64 - 1), LIFETIME
    yield 18, "exp negative", with_claims(exp=-1), LIFETIME
    yield 18, "exp before iat", with_claims(exp=NOW - 61), LIFETIME
    yield 18, "a lifetime of a day and a second", with_claims(iat=NOW, exp=NOW + MAX_LIFETIME + 1), LIFETIME
    far = NOW + MAX_LIFETIME + LEEWAY + 1
    yield 18, "iat and exp far ahead", with_claims(iat=far - 60, exp=far), "it expires beyond the horizon"
    yield 18, "iat ahead", with_claims(iat=NOW + LEEWAY + 1), EARLY
    yield 18, "nbf ahead", with_claims(nbf=NOW + LEEWAY + 1), EARLY
    yield 18, "expired at the end of the leeway", with_claims(exp=NOW - LEEWAY), "expired"
    yield 18, "expired long ago", with_claims(iat=1, exp=2), "expired"

    for value in ("https://evil.example", ISSUER + "/", ISSUER.upper(), ""):
        yield 19, f"issuer {json.dumps(value)}", with_claims(iss=value), ISSUER_UNKNOWN
    yield 19, "issuer null", with_claims(iss=None), ISSUER_UNKNOWN
    for value in ([ISSUER], {ISSUER: 1}, 1):
        yield 19, f"issuer as {json.dumps(value)[:10]}", with_claims(iss=value), ISSUER_UNKNOWN
    for value in ("other", "Paddock", "paddock ", ["paddock"], ["paddock", "other"], []):
        yield 19, f"audience {json.dumps(value)}", with_claims(aud=value), AUDIENCE_OTHER
    for value in ({"paddock": 1}, 1, [1], None):
        yield 19, f"audience {json.dumps(value)}", with_claims(aud=value), "claims: "

    yield 19, "audience empty", with_claims(aud=""), AUDIENCE_OTHER

    yield 20, "an ID token", with_header(typ="JWT"), TYP
    yield 20, "a refresh token", with_header(typ="refresh+jwt"), TYP
    yield 20, "a token for another service", with_claims(aud="https://mail.example"), AUDIENCE_OTHER

    yield 13, "signed by a stranger", token(key=STRANGER), SIGNATURE
    yield 13, "signature of another token", f"{HEAD}.{BODY}.{with_claims(sub='root').split('.')[2]}", SIGNATURE
    yield 13, "claims of another token", f"{HEAD}.{with_claims(sub='root').split('.')[1]}.{SIGNED}", SIGNATURE
    for name, r, s in (("zeros", 0, 0), ("the order", P256_ORDER, P256_ORDER), ("ones", 1, 1), ("zero s", 1, 0)):
        yield 13, f"signature of {name}", token(signature=raw_signature(r, s)), SIGNATURE
    yield 13, "signature as DER", token(signature=der_signature), SIGNATURE
    yield 13, "signature cut short", f"{HEAD}.{BODY}.{SIGNED[:-4]}", "DecodeError"
    yield 13, "signature with more after it", f"{HEAD}.{BODY}.{SIGNED}AAAA", SIGNATURE

    for claim, value in (
        ("sub", 7),
        ("sub", ["alice"]),
        ("client_id", None),
        ("jti", 1),
        ("groups", "staff"),
        ("groups", [1]),
        ("groups", {"staff": 1}),
        ("models", "*"),
        ("models", None),
    ):
        yield 18, f"{claim} as {json.dumps(value)}", with_claims(**{claim: value}), "claims: "
    surrogate = as_bytes(CLAIMS).replace(b"alice", b"\\ud800")
    for value in ({}, {"jkt": "short"}, {"jkt": 1}, {"jwk": {}}, {"kid": "first"}, {"jkt": None}, "x", []):
        yield 23, f"bound by {json.dumps(value)}", with_claims(cnf=value), "c"
    thumbprint = base64url(sha256(b"a key").digest())
    yield 23, "bound to a key, and sent without it", with_claims(cnf={"jkt": thumbprint}), "bound to a key"
    yield 24, "bound to a certificate, and sent without", with_claims(cnf={"x5t#S256": thumbprint}), "bound to another"
    yield 18, "a lone surrogate in the subject", token(claims=surrogate), "a lone surrogate"


def document():
    return {
        "about": "Made by generate.py. refused: null, or how the operator's detail begins.",
        "now_seconds": NOW,
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "max_lifetime_seconds": MAX_LIFETIME,
        "jwks": {"keys": [public_jwk(key_id, key) for key_id, key in KEYS.items()]},
        "tokens": [
            {"row": row, "name": name, "token": text, "refused": refused} for row, name, text, refused in rows()
        ],
    }


def text():
    return json.dumps(document(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    TOKENS.write_text(text(), encoding="utf-8")
