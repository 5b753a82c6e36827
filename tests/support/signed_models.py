"""Keys, bundles and stores for tests of model signing."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.manifest import PAYLOAD_TYPE, pae
from appliance.models.oms import MEDIA_TYPE, TrustedKeys, key_hint, public_pem, sign_model

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
TRUSTED = TrustedKeys({"acme": public_pem(KEY.public_key())})
TRUSTS_OTHER = TrustedKeys({"other": public_pem(OTHER_KEY.public_key())})

_HASHES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}


def memory_file(data: bytes) -> int:
    """A descriptor whose bytes are ``data``, at its start. The caller closes it. Uses no call that tests make fail."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    Path(f"/proc/self/fd/{fd}").write_bytes(data)
    return fd


def signed(data: bytes, key: ec.EllipticCurvePrivateKey = KEY, path: str = "model.gguf") -> bytes:
    """The bundle that ``sign_model`` makes for these bytes."""
    fd = memory_file(data)
    try:
        return sign_model(fd, path=path, key=key)
    finally:
        os.close(fd)


def root_digest(resources: list[dict[str, Any]]) -> str:
    return sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()


def statement_of(resources: list[dict[str, Any]], **serialization: Any) -> dict[str, Any]:
    """A statement with its right root digest; ``serialization`` adds to or replaces the keys of that object."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": root_digest(resources)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "resources": resources,
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False} | serialization,
        },
    }


def resource(name: str, data: bytes, algorithm: str = "sha256") -> dict[str, Any]:
    return {"name": name, "digest": sha256(data).hexdigest(), "algorithm": algorithm}


def shards(name: str, data: bytes, size: int, algorithm: str = "sha256") -> list[dict[str, Any]]:
    starts = range(0, len(data), size)
    return [
        resource(f"{name}:{start}:{min(start + size, len(data))}", data[start : start + size], algorithm)
        for start in starts
    ]


def bundle_of(payload: bytes, key: ec.EllipticCurvePrivateKey = KEY, hint: str | None = None) -> dict[str, Any]:
    """A bundle over any payload, rightly signed, as a document that a test can spoil."""
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(_HASHES[key.curve.name]))
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint or key_hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
        },
    }


def signed_statement(statement: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return json.dumps(bundle_of(json.dumps(statement).encode(), key)).encode()


def spoiled(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(bundle)
    change(document)
    return json.dumps(document).encode()


def payload_of(bundle: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return payload


def tree(root: Path) -> set[str]:
    """Every file below a directory, relative."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
