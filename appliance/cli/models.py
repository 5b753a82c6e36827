"""``paddock models``: sign, import, list and remove models.

Trusts: the operator, for the keys in ``trust/`` and the private key that signs.
Promises: a model is listed as verified only after its bytes were hashed against a trusted signature.
Not here: the rules of signatures and of the store (``models``).
"""

import os
from pathlib import Path

from appliance.core.refusals import Fault, Refused
from appliance.models.oms import (
    TrustedKeys,
    generate_signing_key,
    load_signing_key,
    private_pem,
    public_pem,
    sign_model,
)
from appliance.models.store import ModelStore
from appliance.settings import Settings


def keygen(private_path: Path, public_path: Path) -> None:
    """Makes a signing key (ECDSA P-256): the private half readable by this user alone. Overwrites nothing."""
    key = generate_signing_key()
    _write_new(private_path, private_pem(key), 0o600)
    _write_new(public_path, public_pem(key.public_key()), 0o644)


def sign(model_path: Path, key_path: Path, bundle_path: Path) -> None:
    """Writes an OpenSSF Model Signing bundle for one GGUF file."""
    key = load_signing_key(key_path.read_bytes())
    with model_path.open("rb") as file:
        bundle = sign_model(file.fileno(), path=model_path.name, key=key)
    _write_new(bundle_path, bundle, 0o644)


def import_model(config: Settings, model_path: Path, bundle_path: Path, name: str) -> str:
    """Verifies and imports. Returns a line that says what was imported."""
    with ModelStore.open(config.models_dir) as store, model_path.open("rb") as file:
        model = store.import_model(file.fileno(), name, bundle_path.read_bytes(), TrustedKeys.load(config.trust_dir))
    return f"{model.name}  {model.digest}  signed by {model.signer.name}"


def listing(config: Settings) -> list[str]:
    """One line for each model in the store, verified now or refused with the reason."""
    lines = []
    trusted = TrustedKeys.load(config.trust_dir)
    with ModelStore.open(config.models_dir) as store:
        for name in store.entries():
            try:
                model = store.verify(name, trusted)
                lines.append(f"{name}  {model.digest}  {model.size_bytes} bytes  signed by {model.signer.name}")
            except (Refused, Fault) as error:
                lines.append(f"{name}  REFUSED  {error}")
    return lines


def remove(config: Settings, name: str) -> None:
    with ModelStore.open(config.models_dir) as store:
        store.remove(name)


def trust(config: Settings, public_path: Path, signer: str) -> Path:
    """Adds a public key to the trusted ones under the signer's name. Overwrites nothing."""
    target = config.trust_dir / f"{signer}.pem"
    _write_new(target, public_path.read_bytes(), 0o644)
    TrustedKeys.load(config.trust_dir)
    return target


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
