"""``paddock models pull``, ``push`` and ``export``: signed models between stores, registries and directories.

Trusts: the operator at the terminal; the keys in ``trust/``.
Promises: what is pulled is imported only by the ordinary verified import; what is pushed or exported was verified now.
Not here: talking to a registry (``models.transfer``, in a process of its own).
"""

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from appliance.cli import puller
from appliance.cli.models import beside, signer_names, trust_now
from appliance.cli.progress import Bar
from appliance.core.manifest import WHOLE, SignatureRefused, SignedStatement, enough_signers
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.model_store import open_store
from appliance.models.descriptor import copy_and_observe
from appliance.models.files import not_verified, write_all
from appliance.models.oms import TrustedKeys, verify_bundle
from appliance.models.store import check_name
from appliance.models.transfer import jobs
from appliance.models.transfer.manifest import MAX_BUNDLES
from appliance.models.transfer.origin import Origin, parse_url
from appliance.models.transfer.partial import Partial
from appliance.models.transfer.reference import Reference, parse_reference
from appliance.models.transfer.registry import Credentials
from appliance.models.trust import Trust, trust_of
from appliance.settings import Settings

MAX_SMALL_FILE_BYTES: Final = 1024 * 1024

_Filled = TypeVar("_Filled")


def access(
    config: Settings, *, ca: Path | None, credentials: Path | None, auth_origins: tuple[str, ...]
) -> jobs.Access:
    """The operator's files and origins, read and checked. Raises ``Fault``, ``ValueError`` or ``OSError``."""
    return jobs.Access(
        ca_pem=None if ca is None else _small_text(ca),
        credentials=None if credentials is None else _credentials(credentials),
        auth_origins=tuple(_origin(text) for text in auth_origins),
        allow_degraded=config.sandbox.allow_degraded,
    )


def pull(config: Settings, text: str, name: str, how: jobs.Access) -> str:
    """Signature first, then bytes, then the import. Raises ``Refused`` or ``Fault``."""
    check_name(name)
    reference = parse_reference(text, has_own_ca=how.ca_pem is not None)
    trusted = trust_now(config)
    place = jobs.Place.of(reference)
    found = puller.run(jobs.Resolve(place=place, access=how))
    if not isinstance(found, jobs.Found):
        raise Fault("the transfer process answered another question")
    bundles = acceptable_bundles(found.unverified_bundles, found.model_digest, trusted)
    with open_store(config) as store, Partial(config.models_dir, found.model_digest) as partial:
        partial.require_room(found.model_bytes)
        fetch = jobs.Fetch(
            place=place, access=how, digest=found.model_digest, size_bytes=found.model_bytes, fd=partial.fd
        )
        _with_bar(f"pulling {name}", found.model_bytes, fetch)
        os.lseek(partial.fd, 0, os.SEEK_SET)
        model = store.import_model(partial.fd, name, bundles, trusted)
        partial.remove()
    return f"{model.name}  {model.digest}  signed by {signer_names(model)}"


def push(config: Settings, name: str, text: str, how: jobs.Access) -> str:
    """Verifies, then uploads model and signature. Raises ``Refused`` or ``Fault``."""
    reference = parse_reference(text, has_own_ca=how.ca_pem is not None)
    if isinstance(reference.target, Digest):
        raise Fault("a push needs a tag")
    trusted = trust_now(config)
    with open_store(config) as store, store.open_verified(name, trusted) as opened:
        job = jobs.Push(
            place=jobs.Place.of(reference),
            access=how,
            name=name,
            digest=opened.model.digest,
            size_bytes=opened.model.size_bytes,
            fd=opened.file,
            bundles=_few(store.bundles(opened.model)),
        )
        done = _with_bar(f"pushing {name}", opened.model.size_bytes, job)
    if not isinstance(done, jobs.Done) or done.manifest_digest is None:
        raise Fault("the transfer process answered another question")
    return f"{_pinned(reference, done.manifest_digest)}  (tag {reference.target})"


def export(config: Settings, name: str, directory: Path) -> str:
    """Writes model and signatures into a new directory, which has them all or does not exist.

    Raises ``Refused``, ``Fault`` or ``OSError``.
    """
    trusted = trust_now(config)
    file_name = name.replace(":", "-") + ".gguf"
    if directory.exists() and any(directory.iterdir()):
        raise Fault(f"{directory} is not empty")
    aside = directory.with_name(f".{directory.name}-{secrets.token_hex(8)}")
    with (
        open_store(config) as store,
        store.open_verified(name, trusted, seal_mode="ro-store") as opened,
    ):
        aside.mkdir(mode=0o755)
        try:
            os.lseek(opened.file, 0, os.SEEK_SET)
            written = _write(aside / file_name, lambda fd: copy_and_observe(opened.file, fd).digest)
            if written != opened.model.digest:
                raise Fault("the model changed in the store while it was copied")
            for number, bundle in enumerate(store.bundles(opened.model), start=1):
                _write_bytes(beside(aside / file_name, number), bundle)
            _sync(aside)
            aside.rename(directory)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    _sync(directory.parent)
    return f"wrote {directory / file_name} and its signature"


def acceptable_bundles(
    unverified_bundles: tuple[bytes, ...], model: Digest, trusted: TrustedKeys | Trust
) -> tuple[bytes, ...]:
    """The first bundles by trusted signers that can be about this model, as many as the operator requires signers.

    Asked before the model is fetched, so that nothing large is fetched in vain; the import asks again. Raises
    ``Refused(MODEL_NOT_VERIFIED)``.
    """
    trust = trust_of(trusted)
    refusal = SignatureRefused("unsigned", "the registry has no signature for this model")
    missing: SignatureRefused | None = None
    bundles: list[bytes] = []
    signed: list[SignedStatement] = []
    for bundle in unverified_bundles:
        try:
            one = verify_bundle(bundle, trust)
            if not _may_list(one, model):
                raise SignatureRefused("digest-mismatch", "the signature is for other files")
            if any(one.signer == other.signer for other in signed):
                continue
            bundles.append(bundle)
            signed.append(one)
        except SignatureRefused as error:
            refusal = error
            continue
        try:
            enough_signers(tuple(signed), trust.policy)
        except SignatureRefused as error:
            missing = error
        else:
            return tuple(bundles)
    refusal = missing or refusal
    raise not_verified(refusal.reason, refusal.detail)


def _few(bundles: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if len(bundles) > MAX_BUNDLES:
        raise Fault(f"the model has {len(bundles)} signatures; a registry takes {MAX_BUNDLES}: export it instead")
    return bundles


def _may_list(signed: SignedStatement, model: Digest) -> bool:
    """Of a file that was signed in shards, or by another hash, nothing can be said before its bytes are here."""
    statement = signed.statement
    return statement.form != WHOLE or any(resource.hash == model.hex for resource in statement.resources)


def _with_bar(title: str, total_bytes: int, job: jobs.Fetch | jobs.Push) -> jobs.Found | jobs.Done:
    bar = Bar(title, total_bytes, sys.stderr)
    try:
        return puller.run(job, on_progress=bar.show)
    finally:
        bar.end()


def _pinned(reference: Reference, digest: Digest) -> Reference:
    return Reference(origin=reference.origin, repository=reference.repository, target=digest)


def _write(path: Path, fill: Callable[[int], _Filled]) -> _Filled:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        filled = fill(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    return filled


def _write_bytes(path: Path, data: bytes) -> None:
    _write(path, lambda fd: write_all(fd, data))


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _credentials(path: Path) -> Credentials:
    """``user:secret`` in a file that only its owner can read."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Fault(f"{path} holds a secret and can be read by others: chmod 600 it")
    user, colon, password = _small_text(path).strip().partition(":")
    if not colon or not user or not (user + password).isprintable():
        raise Fault(f"{path} is not one line of the form user:secret")
    return Credentials(user=user, password=password)


def _origin(text: str) -> Origin:
    url = parse_url(text)
    if url.target != "/":
        raise ValueError("an origin is a scheme, a host and perhaps a port")
    return url.origin


def _small_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_SMALL_FILE_BYTES + 1)
    if len(data) > MAX_SMALL_FILE_BYTES:
        raise Fault(f"{path} is too large")
    return data.decode("utf-8")
