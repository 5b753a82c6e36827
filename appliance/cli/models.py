"""``paddock models``: sign, import, list and remove models.

Trusts: the operator, for the keys in ``trust/`` and the private key that signs.
Promises: a model is listed as verified only after its bytes were hashed against a trusted signature.
Not here: the rules of signatures and of the store (``models``).
"""

import os
from pathlib import Path

from appliance.core.gguf import GgufInvalid
from appliance.core.refusals import Fault, Reason, Refused
from appliance.model_store import open_store
from appliance.models.oms import (
    TrustedKeys,
    generate_signing_key,
    load_signing_key,
    private_pem,
    public_pem,
    sign_model,
)
from appliance.settings import Settings
from appliance.validator.reading import read_facts


def keygen(private_path: Path, public_path: Path) -> str:
    """Makes a signing key (ECDSA P-256): the private half readable by this user alone. Overwrites nothing."""
    key = generate_signing_key()
    _write_new(private_path, private_pem(key), 0o600)
    _write_new(public_path, public_pem(key.public_key()), 0o644)
    return f"wrote {private_path} (keep it secret) and {public_path}"


def sign(model_path: Path, key_path: Path, bundle_path: Path) -> str:
    """Writes an OpenSSF Model Signing bundle for one GGUF file, which must be one that could be imported."""
    key = load_signing_key(key_path.read_bytes())
    with model_path.open("rb") as file:
        try:
            read_facts(file.fileno())
        except GgufInvalid as error:
            raise Refused(Reason.MODEL_NOT_VERIFIED, f"{model_path} would not be imported: {error}") from error
        bundle = sign_model(file.fileno(), path=model_path.name, key=key)
    _write_new(bundle_path, bundle, 0o644)
    return f"wrote {bundle_path}"


def import_model(config: Settings, source: Path, bundle_path: Path | None, name: str) -> str:
    """Verifies and imports. Returns a line that says what was imported. A running appliance sees it within seconds.

    ``source`` is a GGUF file, or a directory with exactly one; its signature stands beside it unless it is named.
    """
    model_path = only_model(source) if source.is_dir() else source
    bundle_path = bundle_path or beside(model_path)
    if not bundle_path.exists():
        raise Fault(f"{model_path} has no signature: there is no {bundle_path} (paddock models sign, or --bundle)")
    with open_store(config) as store, model_path.open("rb") as file:
        model = store.import_model(file.fileno(), name, bundle_path.read_bytes(), TrustedKeys.load(config.trust_dir))
    return f"{model.name}  {model.digest}  signed by {model.signer.name}"


def only_model(directory: Path) -> Path:
    """The one GGUF file of a directory, links and devices not counted. Raises ``Fault`` unless there is exactly one."""
    found = sorted(
        path for path in directory.iterdir() if path.suffix == ".gguf" and path.is_file() and not path.is_symlink()
    )
    if len(found) != 1:
        raise Fault(f"{directory} holds {len(found)} GGUF files where one is expected")
    return found[0]


def beside(model: Path) -> Path:
    """Where the signature of a model file stands, by custom."""
    return model.with_name(model.name + ".sig")


def listing(config: Settings) -> tuple[list[str], bool]:
    """One line for each model in the store, verified now or refused with the reason; and whether all verified."""
    lines = []
    good = True
    trusted = TrustedKeys.load(config.trust_dir)
    with open_store(config) as store:
        for name in store.entries():
            try:
                model = store.verify(name, trusted)
                lines.append(f"{name}  {model.digest}  {model.size_bytes} bytes  signed by {model.signer.name}")
            except (Refused, Fault) as error:
                lines.append(f"{name}  REFUSED  {error}")
                good = False
    return lines, good


def remove(config: Settings, name: str) -> str:
    """Removes a model. A running appliance ends its runner within seconds."""
    with open_store(config) as store:
        store.remove(name)
    return f"removed {name}"


def trust(config: Settings, public_path: Path, signer: str) -> str:
    """Adds a public key to the trusted ones under the signer's name. Overwrites nothing; the same key twice is fine."""
    pem = public_path.read_bytes()
    TrustedKeys({signer: pem})  # judged before anything is written: the name becomes a file's, the bytes a key
    target = config.trust_dir / f"{signer}.pem"
    if not (target.exists() and target.read_bytes() == pem):
        _write_new(target, pem, 0o644)
    return f"signatures of {signer} count from now on ({target})"


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
