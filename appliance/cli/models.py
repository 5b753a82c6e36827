"""``paddock models``: sign, import, list and remove models, and keep their store.

Trusts: the operator, for the keys in ``trust/`` and the private key that signs.
Promises: a model is listed as verified only after its bytes were hashed against a trusted signature.
Not here: the rules of signatures and of the store (``models``).
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from appliance.cli import status
from appliance.core.catalogue import decode_catalogue, encode_catalogue
from appliance.core.catalogue_root import Root, RootKey
from appliance.core.gguf import GgufInvalid
from appliance.core.manifest import SignatureRefused
from appliance.core.memory import plan, spelt, why_unfit
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import VerifiedModel
from appliance.model_store import open_store
from appliance.models.catalogue import IGNORED, CatalogueKeeper, cosign_catalogue, sign_catalogue
from appliance.models.keys import load_public_key, read_pems
from appliance.models.oms import (
    SHARD_BYTES,
    TrustedKeys,
    generate_signing_key,
    load_signing_key,
    private_pem,
    public_pem,
    sign_model,
    verify_bundle,
)
from appliance.models.roots import sign_root
from appliance.models.trust import Trust
from appliance.settings import Settings
from appliance.validator.reading import read_facts
from appliance.warden.memory import copied_types, host_bytes


def keygen(private_path: Path, public_path: Path) -> str:
    """Makes a signing key (ECDSA P-256): the private half readable by this user alone. Overwrites nothing."""
    for path in (private_path, public_path):
        if path.exists():  # asked of both before one is written: half a pair is of no use
            raise _exists_already(path)
    key = generate_signing_key()
    _write_new(private_path, private_pem(key), 0o600)
    _write_new(public_path, public_pem(key.public_key()), 0o644)
    return f"wrote {private_path} (keep it secret) and {public_path}"


def sign(
    model_path: Path, key_path: Path, bundle_path: Path, *, chain_path: Path | None = None, in_shards: bool = False
) -> str:
    """Writes an OpenSSF Model Signing bundle for one GGUF file, which must be one that could be imported.

    ``chain_path``: PEM certificates, leaf first, for certificate mode. ``in_shards``: of 10^9 bytes, which are verified
    in parallel. Not the default: the reference implementation (1.1.1) does not verify the specification's shards.
    """
    key = load_signing_key(key_path.read_bytes())
    with model_path.open("rb") as file:
        try:
            read_facts(file.fileno())
        except GgufInvalid as error:
            raise Refused(Reason.MODEL_NOT_VERIFIED, f"{model_path} would not be imported: {error}") from error
        bundle = sign_model(
            file.fileno(),
            path=model_path.name,
            key=key,
            chain=_chain(chain_path),
            shard_bytes=SHARD_BYTES if in_shards else None,
        )
    _write_new(bundle_path, bundle, 0o644)
    return f"wrote {bundle_path}"


def _chain(path: Path | None) -> list[x509.Certificate]:
    if path is None:
        return []
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise Fault(f"{path} holds no PEM certificates") from error


def import_model(config: Settings, source: Path, bundle_paths: Sequence[Path], name: str) -> str:
    """Verifies and imports. Returns a line that says what was imported. A running appliance sees it within seconds.

    ``source`` is a GGUF file, or a directory with exactly one; its signatures stand beside it unless they are named,
    one for each signer.
    """
    if not source.exists():
        raise Fault(f"{source} does not exist")
    model_path = only_model(source) if source.is_dir() else source
    for bundle_path in bundle_paths or [beside(model_path)]:
        if not bundle_path.exists():
            raise Fault(f"{model_path} has no signature: there is no {bundle_path} (paddock models sign, or --bundle)")
    trusted = trust_now(config)
    bundles = [path.read_bytes() for path in bundle_paths] or _trusted_among(all_beside(model_path), trusted)
    with open_store(config) as store, model_path.open("rb") as file:
        model = store.import_model(file.fileno(), name, bundles, trusted)
    return f"{model.name}  {model.digest}  {described(config, model)}  signed by {signer_names(model)}"


def described(config: Settings, model: VerifiedModel) -> str:
    """What was imported: an adapter, or a model and what it will take."""
    facts = model.facts
    return _memory(config, model) if facts.adapter is None else status.described(facts.architecture, facts.adapter)


def _memory(config: Settings, model: VerifiedModel) -> str:
    """What it will take as it would be loaded, and whether that can ever be: here the warden's word is the last, since
    its budget rests on what is free when it starts."""
    options = config.load_options(model.name)
    planned = plan(
        model.facts,
        context_tokens=options.context_tokens,
        slots=options.slots,
        threads=config.models.threads or 1,
        kv_type=options.kv_type,
        speculation=options.speculation,
        copied_types=copied_types(),
    )
    budget_bytes = config.models.memory_bytes or host_bytes()
    unfit = why_unfit(model.facts, planned, kv_type=options.kv_type, budget_bytes=budget_bytes)
    return f"cannot be loaded here: {unfit}" if unfit else f"needs {spelt(planned)}"


def _trusted_among(paths: Sequence[Path], trusted: Trust) -> list[bytes]:
    """Those that found themselves beside a model need not all be by signers of ours. If none is, the first says why."""
    bundles = [path.read_bytes() for path in paths]
    return [bundle for bundle in bundles if _is_by_somebody_trusted(bundle, trusted)] or bundles[:1]


def _is_by_somebody_trusted(bundle: bytes, trusted: Trust) -> bool:
    try:
        verify_bundle(bundle, trusted)
    except SignatureRefused:
        return False
    return True


def trust_now(config: Settings) -> Trust:
    """Whom the operator trusts, read anew."""
    return Trust.load(config.trust_dir, now_seconds=int(time.time()))


def signer_names(model: VerifiedModel) -> str:
    return " and ".join(signer.name for signer in (model.signer, *model.cosigners))


def only_model(directory: Path) -> Path:
    """The one GGUF file of a directory, links and devices not counted. Raises ``Fault`` unless there is exactly one."""
    found = sorted(
        path for path in directory.iterdir() if path.suffix == ".gguf" and path.is_file() and not path.is_symlink()
    )
    if len(found) != 1:
        raise Fault(f"{directory} holds {len(found)} GGUF files where one is expected")
    return found[0]


def beside(model: Path, number: int = 1) -> Path:
    """Where the signature of a model file stands, by custom; and those of further signers, counted from 2."""
    return model.with_name(f"{model.name}.sig" if number == 1 else f"{model.name}.{number}.sig")


def all_beside(model: Path) -> list[Path]:
    """The first signature's place in any case, and those after it that are there."""
    found = [beside(model)]
    while (next_one := beside(model, len(found) + 1)).exists():
        found.append(next_one)
    return found


def listing(config: Settings) -> tuple[list[str], bool]:
    """One line for each model in the store, verified now or refused with the reason; and whether all verified."""
    lines = []
    good = True
    trusted = trust_now(config)
    with open_store(config) as store:
        for name in store.entries():
            try:
                model = store.verify(name, trusted)
                adapter = "  a LoRA adapter" if model.is_adapter else ""
                size = f"{model.size_bytes} bytes{adapter}"
                lines.append(f"{name}  {model.digest}  {size}  signed by {signer_names(model)}")
            except (Refused, Fault) as error:
                lines.append(f"{name}  REFUSED  {error}")
                good = False
    return lines, good


def remove(config: Settings, name: str) -> str:
    """Removes a model. A running appliance ends its runner within seconds."""
    with open_store(config) as store:
        store.remove(name)
    return f"removed {name}"


def collect_garbage(config: Settings, *, dry_run: bool) -> list[str]:
    """Deletes what nothing needs, or says what that would be: a line for each file, and one for all of them."""
    with open_store(config) as store:
        found = store.collect_garbage(now_seconds=int(time.time()), dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    n_bytes = sum(one.size_bytes for one in found.garbage)
    return [
        *(f"{verb} {one.place}  {one.size_bytes} bytes  {one.kind}" for one in found.garbage),
        *(f"left {line}" for line in found.left),
        f"{verb} {len(found.garbage)} files, {n_bytes} bytes",
    ]


def check(config: Settings) -> tuple[str, ...]:
    """What should not be in the store, or should and is not. Reads no blob: ``list`` verifies those."""
    with open_store(config) as store:
        return store.check()


def trust(config: Settings, public_path: Path, signer: str) -> str:
    """Adds a public key to the trusted ones under the signer's name. Overwrites nothing; the same key twice is fine.

    Raises ``Fault``, before anything is written, for what would leave the appliance with trusted keys that it refuses.
    """
    pem = _public_half(public_path, signer)
    target = config.trust_dir / f"{signer}.pem"
    trusted = read_pems(config.trust_dir)
    TrustedKeys({name: other for name, other in trusted.items() if name != signer} | {signer: pem})
    if signer not in trusted or public_pem(load_public_key(signer, trusted[signer])) != pem:
        _write_new(target, pem, 0o644)
    return f"signatures of {signer} count from now on ({target})"


def _public_half(path: Path, name: str) -> bytes:
    """The public key alone: a file that holds one may hold the private key as well, which must not be passed on."""
    return public_pem(load_public_key(name, path.read_bytes()))


def catalogue_sign(document_path: Path, key_paths: Sequence[Path], envelope_path: Path) -> str:
    """Signs a catalogue (JSON: version, expires_at_seconds, models) with each key. Overwrites nothing."""
    keys = [load_signing_key(path.read_bytes()) for path in key_paths]
    catalogue = decode_catalogue(document_path.read_bytes())
    _write_new(envelope_path, sign_catalogue(encode_catalogue(catalogue), keys), 0o644)
    return f"wrote {envelope_path}: version {catalogue.version}, {len(catalogue.models)} models"


def catalogue_cosign(envelope_path: Path, key_path: Path, target_path: Path) -> str:
    """Adds a signature to an envelope, in a new file."""
    key = load_signing_key(key_path.read_bytes())
    _write_new(target_path, cosign_catalogue(envelope_path.read_bytes(), key), 0o644)
    return f"wrote {target_path}"


def catalogue_root(
    envelope_path: Path,
    key_paths: Sequence[Path],
    trusted_paths: Sequence[Path],
    *,
    version: int,
    required: int,
    days: int,
) -> str:
    """Hands the catalogue over to other keys, each named as its file; old and new keys sign. Overwrites nothing."""
    root = Root(
        version=version,
        expires_at_seconds=int(time.time()) + days * 24 * 3600,
        required=required,
        keys=tuple(RootKey(name=path.stem, pem=_public_half(path, path.stem).decode()) for path in trusted_paths),
    )
    keys = [load_signing_key(path.read_bytes()) for path in key_paths]
    _write_new(envelope_path, sign_root(root, keys), 0o644)
    return f"wrote {envelope_path}: root {version}, {required} of {len(root.keys)} keys"


def catalogue_show(config: Settings) -> list[str]:
    """The catalogue that holds now, one line for each model. Raises ``Refused`` as a load would."""
    now_seconds = int(time.time())
    keeper = CatalogueKeeper(config.trust_dir, config.models_dir)
    catalogue, root = keeper.in_force(now_seconds=now_seconds)
    if catalogue is None:
        line = "no catalogue: every model whose signature is trusted may be loaded (see trust/catalogue-keys)"
        return [line, *([f"warning: {IGNORED}"] if keeper.is_ignored() else [])]
    lines = [f"version {catalogue.version}, for {catalogue.expires_at_seconds - now_seconds} seconds more"]
    if root is not None:
        names = ", ".join(key.name for key in root.keys)
        lines.append(
            f"signed under root {root.version} ({root.required} of {names}),"
            f" for {root.expires_at_seconds - now_seconds} seconds more"
        )
    for entry in catalogue.models:
        expired = "  EXPIRED" if now_seconds >= entry.expires_at_seconds else ""
        lines.append(
            f"{entry.name}  version {entry.version}  {entry.digest}  signed by {entry.signer}"
            f"  at least {entry.minimum_seal}{expired}"
        )
    return lines


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """With exactly this mode, whatever the umask: what another user of the appliance is to read, it can read."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise _exists_already(path) from None
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(data)


def _exists_already(path: Path) -> Fault:
    return Fault(f"{path} exists already and is not overwritten")
