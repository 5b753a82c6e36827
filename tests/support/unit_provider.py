"""An identity provider inside the container of ``nspawn``: prints its port and a token, then serves its keys.

Runs with the appliance's own Python. The first argument is where the file of its certificate authority goes.
"""

import json
import ssl
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "provider")])
NOW = datetime.fromtimestamp(time.time(), UTC)
CERTIFICATE = (
    x509.CertificateBuilder(NAME, NAME, KEY.public_key(), x509.random_serial_number())
    .not_valid_before(NOW - timedelta(hours=1))
    .not_valid_after(NOW + timedelta(days=1))
    .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    .sign(KEY, hashes.SHA256())
)
KEYS = json.dumps({"keys": [ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True) | {"kid": "one", "alg": "ES256"}]})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(KEYS)))
        self.end_headers()
        self.wfile.write(KEYS.encode())


authority = Path(sys.argv[1])
authority.write_bytes(CERTIFICATE.public_bytes(Encoding.PEM))
authority.chmod(0o644)
own = Path("/tmp/provider.pem")
own.write_bytes(
    KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + CERTIFICATE.public_bytes(Encoding.PEM)
)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(own)
server = HTTPServer(("127.0.0.1", 0), Handler)
server.socket = tls.wrap_socket(server.socket, server_side=True)
port = server.server_address[1]
now = int(time.time())
claims = {"iss": f"https://127.0.0.1:{port}", "aud": "llm", "sub": "carol", "client_id": "c", "jti": "1"}
claims |= {"iat": now, "exp": now + 600, "groups": ["people"]}  # type: ignore[dict-item]
token = jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "one"})
print(json.dumps({"port": port, "token": token}), flush=True)
server.serve_forever()
