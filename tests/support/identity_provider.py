"""An identity provider for tests, over TLS with a certificate authority of its own: it says what a test tells it to."""

import json
import ssl
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.appliance import GROUP
from tests.support.certificates import Party

DAY_SECONDS = 86_400
AUDIENCE = "llm"

_ALGORITHMS: dict[str, Any] = {
    "ES256": ECAlgorithm,
    "RS256": RSAAlgorithm,
    "PS256": RSAAlgorithm,
    "EdDSA": OKPAlgorithm,
}


def new_key(algorithm: str) -> Any:
    match algorithm:
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, 2048)


def public_jwk(key: Any, algorithm: str, **members: Any) -> dict[str, Any]:
    """``members`` are added, or taken away by None."""
    document = _ALGORITHMS[algorithm].to_jwk(key.public_key(), as_dict=True) | members
    return {name: value for name, value in document.items() if value is not None}


class Authority:
    """Makes server certificates for 127.0.0.1 that are valid today."""

    def __init__(self) -> None:
        now = int(time())
        self._times = {"begins": now - 60, "ends": now + DAY_SECONDS}
        self.root = Party("test authority", **self._times)  # type: ignore[arg-type]

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """The files of the authority, a server's certificate and its key."""
        folder.mkdir(parents=True, exist_ok=True)
        address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        leaf = Party(
            "server",
            self.root,
            extended=(ExtendedKeyUsageOID.SERVER_AUTH,),
            extra=((address, False),),
            **self._times,  # type: ignore[arg-type]
        )
        files = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        files[0].write_bytes(self.root.pem)
        files[1].write_bytes(leaf.pem)
        files[2].write_bytes(leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files


class IdentityProvider:
    """Answers ``/keys`` and ``/introspect``. ``answers`` maps a path to (status, headers, body), for whatever a test
    wants said; ``gate`` is called before each answer."""

    def __init__(self, folder: Path, algorithm: str = "ES256") -> None:
        self.ca_file, certificate, key = Authority().write(folder)
        self.algorithm = algorithm
        self.keys: dict[str, Any] = {"one": new_key(algorithm)}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.active: dict[str, dict[str, Any]] = {}
        self.gate: Callable[[], object] = lambda: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        self.issuer = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @contextmanager
    def serving(self) -> Iterator["IdentityProvider"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self.close()

    def close(self) -> None:
        """Nobody listens any more."""
        self._server.server_close()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.asked.append((path, headers, body))
        self.gate()
        if path in self.answers:
            return self.answers[path]
        document: dict[str, Any] = {}
        if path == "/keys":
            document = {
                "keys": [
                    public_jwk(key, self.algorithm, kid=key_id, alg=self.algorithm, use="sig")
                    for key_id, key in self.keys.items()
                ]
            }
        elif path == "/introspect":
            token = dict(pair.split("=", 1) for pair in body.decode().split("&"))["token"]
            document = self.active.get(token, {"active": False})
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def asked_for(self, path: str) -> int:
        return sum(asked == path for asked, _headers, _body in self.asked)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good access token says; a change to None takes a claim away."""
        now = int(time())
        document = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "carol",
            "client_id": "chat",
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + 600,
            "groups": ["people"],
        } | changes
        return {name: value for name, value in document.items() if value is not None}

    def token(self, *, key_id: str = "one", key: Any = None, typ: str | None = "at+jwt", **changes: Any) -> str:
        algorithm = changes.pop("algorithm", self.algorithm)
        headers = {"kid": key_id, "typ": typ}
        return jwt.encode(self.claims(**changes), key or self.keys[key_id], algorithm=algorithm, headers=headers)

    def settings(self, name: str = "idp", **changes: Any) -> str:
        """A table for the settings file. A value of None takes a setting away."""
        values: dict[str, Any] = {
            "issuer": self.issuer,
            "audiences": [AUDIENCE],
            "ca_file": str(self.ca_file),
            "jwks_uri": f"{self.issuer}/keys",
            "algorithms": [self.algorithm],
            "cooldown_seconds": 1,
            "groups_claim": ["groups"],
            "groups": {"people": GROUP},
            "models": ["*"],
        } | changes
        lines = (f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)
        return f"[issuer.{name}]\n" + "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def _handler(provider: IdentityProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, asked: bytes) -> None:
            status, headers, body = provider.answer(self.path, dict(self.headers), asked)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def proof_for(
    key: Any,
    token: str,
    *,
    method: str = "GET",
    url: str,
    algorithm: str = "ES256",
    header: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """A DPoP proof (RFC 9449). Changes spoil its claims, ``header`` its header; None takes a member away."""
    claims = {
        "jti": uuid4().hex,
        "htm": method,
        "htu": url,
        "iat": int(time()),
        "ath": base64url(sha256(token.encode()).digest()),
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    members = {"typ": "dpop+jwt", "jwk": public_jwk(key, algorithm)} | (header or {})
    return jwt.encode(claims, key, algorithm=algorithm, headers=members)


def thumbprint(key: Any, algorithm: str = "ES256") -> str:
    """RFC 7638."""
    jwk = public_jwk(key, algorithm)
    names = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}[jwk["kty"]]
    text = json.dumps({name: jwk[name] for name in names}, separators=(",", ":"))
    return base64url(sha256(text.encode()).digest())
