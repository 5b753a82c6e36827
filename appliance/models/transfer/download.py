"""Resolving a reference, and fetching a blob into a file that may hold its beginning already.

Trusts: the descriptor it was given, to be a private regular file.
Promises: after ``fetch`` the file holds exactly the bytes of the digest; after a refusal, the beginning of them, or
    nothing when they turned out to be others.
Not here: what the bytes are (the store hashes and judges them again).
"""

import os
import re
from hashlib import sha256

from appliance.core.values import Digest, Value
from appliance.models.transfer import manifest
from appliance.models.transfer.client import CHUNK_BYTES, Progress, Response
from appliance.models.transfer.manifest import Index
from appliance.models.transfer.reference import Reference
from appliance.models.transfer.refusal import TransferRefused
from appliance.models.transfer.registry import Found, Registry

MAX_BUNDLE_BYTES = 4 * 1024 * 1024  # as in models.oms, which this process does not load


class Resolved(Value, frozen=True, kw_only=True):
    """What a reference stands for. The bundles are unverified; there may be none."""

    manifest_digest: Digest
    model_digest: Digest
    model_bytes: int
    unverified_bundles: tuple[bytes, ...]


def resolve(registry: Registry, reference: Reference) -> Resolved:
    """Reads manifest and signatures, and nothing large. Raises ``TransferRefused``."""
    found = registry.manifest(reference.target)
    if isinstance(found.document, Index):
        found = registry.manifest(manifest.only_manifest(found.document).digest)
    if isinstance(found.document, Index):
        raise TransferRefused("index-ambiguous", "an index inside an index")
    selection = manifest.select(found.document)
    if selection.bundle is not None:
        bundles: tuple[bytes, ...] = (registry.small_blob(selection.bundle, MAX_BUNDLE_BYTES),)
    else:
        bundles = _referring_bundles(registry, found)
    return Resolved(
        manifest_digest=found.digest,
        model_digest=selection.model.digest,
        model_bytes=selection.model.size_bytes,
        unverified_bundles=bundles,
    )


def _referring_bundles(registry: Registry, found: Found) -> tuple[bytes, ...]:
    index = registry.referrers(found.digest)
    bundles = []
    for entry in manifest.bundle_referrers(index) if index else ():
        referrer = registry.manifest(entry.digest).document
        if isinstance(referrer, Index):
            raise TransferRefused("referrer-malformed", "a referrer is an index")
        bundles.append(registry.small_blob(manifest.bundle_of(referrer, found.digest), MAX_BUNDLE_BYTES))
    return tuple(bundles)


def fetch(registry: Registry, digest: Digest, size_bytes: int, fd: int, progress: Progress) -> None:
    """Fills the file. What it holds already is hashed anew, and the rest asked for. Raises ``TransferRefused``."""
    held = os.fstat(fd).st_size
    if held > size_bytes:
        os.ftruncate(fd, 0)
        held = 0
    hashing = sha256()
    for position in range(0, held, CHUNK_BYTES):
        piece = os.pread(fd, min(CHUNK_BYTES, held - position), position)
        hashing.update(piece)
        progress(len(piece))
    if held < size_bytes:
        with registry.blob(digest, start=held) as answer:
            if not _continues(answer, held, size_bytes):
                hashing = sha256()
                progress(-held)
                held = 0
                os.ftruncate(fd, 0)
            for piece in answer.blob(size_bytes - held):
                hashing.update(piece)
                _write_at(fd, piece, held)
                held += len(piece)
                progress(len(piece))
    if hashing.hexdigest() != digest.hex:
        os.ftruncate(fd, 0)
        raise TransferRefused("digest-mismatch", "the bytes are not those of the digest; they were thrown away")


def _continues(answer: Response, held: int, size_bytes: int) -> bool:
    """Whether the answer is the rest, and not the whole. Raises ``TransferRefused`` for any other part."""
    if answer.status == 200:
        return held == 0
    matched = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", answer.header("Content-Range") or "")
    if matched is None or [int(number) for number in matched.groups()] != [held, size_bytes - 1, size_bytes]:
        raise TransferRefused("range-mismatch", "the server sends another part than was asked for")
    return True


def _write_at(fd: int, piece: bytes, position: int) -> None:
    view = memoryview(piece)
    while view:
        n_written = os.pwrite(fd, view, position)
        view = view[n_written:]
        position += n_written
