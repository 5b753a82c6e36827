"""Debian's docker-registry on a free loopback port, with its own storage, and on request with TLS or a password."""

import datetime
import ipaddress
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

USER, PASSWORD = "alice", "letmein"
_PASSWORD_LINE = "alice:$2b$04$n1SCSm35EplJDHiWbDXTBuHbMV9bS0FNwgedv68oSOLSkDN9NzIrW"  # bcrypt of PASSWORD


class OciRegistry:
    def __init__(self, folder: Path, *, tls: bool = False, password: bool = False) -> None:
        binary = shutil.which("docker-registry")
        if binary is None:
            pytest.skip("there is no docker-registry")
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.storage = folder / "storage"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if tls:
            self.ca = folder / "ca.pem"
            certificate, key = self_signed()
            self.ca.write_bytes(certificate)
            (folder / "key.pem").write_bytes(key)
            config["http"]["tls"] = {"certificate": str(self.ca), "key": str(folder / "key.pem")}
        if password:
            (folder / "htpasswd").write_text(_PASSWORD_LINE + "\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [binary, "serve", str(folder / "config.yml")], stdout=self._log, stderr=self._log, env={"PATH": "/usr/bin"}
        )
        self._await_port()

    def _await_port(self) -> None:
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, "the registry ended"
                assert time.monotonic() < deadline, "the registry does not listen"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._log.close()

    # --- what a publisher with other tools would do ------------------------------------------------------------------

    def put_blob(self, repository: str, data: bytes, digest: str) -> None:
        with _call("POST", f"http://{self.host}/v2/{repository}/blobs/uploads/") as answer:
            location = answer.headers["Location"]
        with _call("PUT", f"{location}&digest={digest}", data, "application/octet-stream") as answer:
            assert answer.status == 201

    def put_manifest(self, repository: str, target: str, document: dict[str, Any]) -> None:
        url = f"http://{self.host}/v2/{repository}/manifests/{target}"
        with _call("PUT", url, json.dumps(document).encode(), document["mediaType"]) as answer:
            assert answer.status == 201

    def get(self, path: str, accept: str) -> bytes:
        request = urllib.request.Request(f"http://{self.host}{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            data: bytes = answer.read()
            return data


def _call(method: str, url: str, data: bytes = b"", kind: str = "application/octet-stream") -> Any:
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
    return urllib.request.urlopen(request, timeout=10)


def self_signed() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test registry")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private
