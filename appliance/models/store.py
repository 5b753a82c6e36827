"""The model store: content-addressed files, in which a model is visible only once it has been verified.

::

    <root>/blobs/sha256/<hex>      model files, read-only
    <root>/bundles/sha256/<hex>    signature bundles, read-only
    <root>/models/<name>.json      {"name", "blob", "bundle", "cosigned"}: what makes a model visible; written last

Blobs and bundles are placed by linking a complete, synced file under its digest; an index entry by renaming one. A
crash at any moment leaves the store as it was before or as it should be afterwards, apart from files that nothing
points to (``check`` lists them, ``collect_garbage`` deletes them).

Nothing in the store is believed: each ``verify`` and ``open_verified`` checks the signature again with the keys trusted
*now*, hashes the descriptor that it hands out, and reads the GGUF header from that descriptor. A refusal is
``Refused(MODEL_NOT_VERIFIED)``, whose detail begins with a kebab-case code and a colon.

Trusts: the owner of the root directory (itself or root) and, for ``ro-store`` only, that nobody else writes below it.
Promises: the descriptor handed out holds exactly the bytes that a trusted signer signed.
Not here: who may use a model (policy); mapping it into a runner (the warden).
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from appliance.core.codec import canonical_json, json_decoder
from appliance.core.gguf import GgufInvalid
from appliance.core.manifest import SignatureRefused, SignedStatement, enough_signers, verified_model
from appliance.core.records import ModelRef
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.text import printable
from appliance.core.values import Digest, GgufFacts, SealMode, Signer, Value, VerifiedModel
from appliance.models import verity
from appliance.models.collect import Collection, Pointers, collect
from appliance.models.descriptor import Wholes, copy_and_observe, observe, observe_signed, sealed_copy
from appliance.models.files import (
    Incoming,
    check_directory,
    file_stamp,
    is_being_written,
    not_verified,
    open_directory,
    open_file,
    read_file,
    unlink_if_present,
    write_all,
)
from appliance.models.keys import TrustedKeys
from appliance.models.oms import MAX_BUNDLE_BYTES, verify_bundle
from appliance.models.trust import Trust, trust_of
from appliance.models.verity import Receipts
from appliance.validator.reading import read_facts

DEFAULT_SEALED_MAX_BYTES: Final = 4 * 1024**3
MAX_INDEX_BYTES: Final = 4096
MAX_BUNDLES: Final = 16

FactsOf = Callable[[int], GgufFacts]
"""Judges the header behind a descriptor. Raises ``GgufInvalid``, ``OSError`` or ``Fault``."""

_NAME_PATTERN: Final = r"\A[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,31})?\Z"
_NAME = re.compile(_NAME_PATTERN)
_DIRECTORIES: Final = (("", "blobs"), ("blobs", "sha256"), ("", "bundles"), ("bundles", "sha256"), ("", "models"))


class IndexEntry(Value, frozen=True, kw_only=True):
    """What ``models/<name>.json`` holds. It is a pointer, not evidence. ``cosigned`` are the other signers' bundles."""

    name: Annotated[str, Meta(pattern=_NAME_PATTERN)]
    blob: Digest
    bundle: Digest
    cosigned: Annotated[tuple[Digest, ...], Meta(max_length=MAX_BUNDLES - 1)] = ()

    def bundles(self) -> tuple[Digest, ...]:
        return (self.bundle, *self.cosigned)


_INDEX_DECODER: Final[msgspec.json.Decoder[IndexEntry]] = json_decoder(IndexEntry)


class OpenedModel(AbstractContextManager["OpenedModel"]):
    """A verified model and the descriptor that was verified. ``file`` is ours to close: use ``with``, or ``close``."""

    def __init__(self, model: VerifiedModel, file: int, seal_mode: SealMode) -> None:
        self.model = model
        self.file = file
        self.seal_mode = seal_mode

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_name(name: str) -> str:
    """A model's name: lower-case letters, digits, ``._-``, and at most one ``:tag``. ``demo`` is not ``demo:latest``.

    Raises ``Refused(FIELD_INVALID)``.
    """
    if not _NAME.fullmatch(name):
        raise Refused(Reason.FIELD_INVALID, "a model's name is like 'qwen3-4b' or 'qwen3:4b-q4', in lower case")
    return name


class ModelStore(AbstractContextManager["ModelStore"]):
    """Safe to use from several threads and processes. Made by ``open``."""

    def __init__(
        self, directories: dict[str, int], sealed_max_bytes: int, facts_of: FactsOf, with_verity: bool
    ) -> None:
        self._directories = directories
        self._blobs = directories["blobs/sha256"]
        self._bundles = directories["bundles/sha256"]
        self._index = directories["models"]
        self._sealed_max_bytes = sealed_max_bytes
        self._facts_of = facts_of
        self._with_verity = with_verity
        self._wholes = Wholes()
        self._receipts = Receipts()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        sealed_max_bytes: int = DEFAULT_SEALED_MAX_BYTES,
        facts_of: FactsOf = read_facts,
        with_verity: bool = False,
    ) -> "ModelStore":
        """Opens a store, making its directories where they are missing; a complete one may be on a read-only mount.

        Models up to ``sealed_max_bytes`` are loaded from sealed memory, larger ones from the store itself. ``facts_of``
        judges headers: in this process by default, as suits tests; an appliance gives the one that does it in a sandbox
        (``appliance.model_store``). ``with_verity`` gives each imported model fs-verity, as the seal mode needs.

        Raises ``Fault`` when a directory is a link, belongs to another user or is writable by others.
        """
        directories: dict[str, int] = {}
        try:
            with suppress(FileExistsError):
                root.mkdir(mode=0o700, parents=True)
            directories[""] = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            check_directory(directories[""])
            for parent, name in _DIRECTORIES:
                directories[f"{parent}/{name}".lstrip("/")] = open_directory(directories[parent], name)
        except BaseException as error:
            _close_all(directories)
            if isinstance(error, OSError):
                raise Fault(f"the model store cannot be opened: {_errno_name(error)}") from error
            raise
        return cls(directories, sealed_max_bytes, facts_of, with_verity)

    def close(self) -> None:
        _close_all(self._directories)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- reading ---------------------------------------------------------------------------------------------------

    def entries(self) -> tuple[str, ...]:
        """The names of all models, sorted; none of them verified. Raises ``Fault``."""
        with _port("listing models"):
            return tuple(sorted(entry.name for entry in self._readable_entries()))

    def stamp(self, name: str) -> Hashable:
        """Changes when the entry, one of its bundles or its file are replaced or touched. Raises ``Fault``."""
        with _port("looking at a model"):
            if not _NAME.fullmatch(name):
                return ()
            entry_stamp = file_stamp(self._index, f"{name}.json")
            entry: IndexEntry | None = None
            with suppress(Refused):  # a damaged entry has a stamp too, and fails when it is asked for
                entry = self._read_entry(name)
            if entry is None:
                return (entry_stamp,)
            bundle_stamps = tuple(file_stamp(self._bundles, bundle.hex) for bundle in entry.bundles())
            return entry_stamp, bundle_stamps, file_stamp(self._blobs, entry.blob.hex)

    def reference(self, name: str, trusted: TrustedKeys | Trust) -> tuple[ModelRef, tuple[Signer, ...]]:
        """What the entry and its signatures say, the bytes apart, and all who signed. Raises as ``open_verified``."""
        with _port("reading an entry"):
            trust = trust_of(trusted)
            entry = self._find(name)
            signed = tuple(self._signed(bundle, trust) for bundle in entry.bundles())
            enough_signers(signed, trust.policy)
            first = signed[0]
            reference = ModelRef(
                name=entry.name, digest=entry.blob, signer=first.signer, bundle_digest=first.bundle_digest
            )
            return reference, tuple(one.signer for one in signed)

    def verify(self, name: str, trusted: TrustedKeys | Trust) -> VerifiedModel:
        """Checks everything that ``open_verified`` checks. Raises as it does."""
        with self.open_verified(name, trusted, seal_mode="ro-store") as opened:
            return opened.model

    def open_verified(
        self, name_or_digest: str | Digest, trusted: TrustedKeys | Trust, *, seal_mode: SealMode | None = None
    ) -> OpenedModel:
        """Signature, then bytes, then header, all of one descriptor, which is handed out.

        ``seal_mode`` None chooses by size. Raises ``Refused(MODEL_NOT_FOUND)``, ``Refused(MODEL_NOT_VERIFIED)``, or
        ``Fault`` when the store cannot be read or memory is short. After any of them nothing is left open.
        """
        with _port("opening a model"):
            entry = self._find(name_or_digest)
            trust = trust_of(trusted)
            signed = tuple(self._signed(bundle, trust) for bundle in entry.bundles())
            fd = self._open_blob(entry.blob)
            try:
                mode = seal_mode or self._mode_for(os.fstat(fd).st_size)
                fd = _sealed(fd, mode)
                return OpenedModel(self._verify(fd, mode, entry, signed, trust), fd, mode)
            except BaseException:
                os.close(fd)
                raise

    def bundles(self, model: VerifiedModel) -> tuple[bytes, ...]:
        """The signatures by which a model was verified, each signer's, to go where the model goes.

        Raises as ``open_verified`` does, and ``Fault`` when the entry has become another model's meanwhile.
        """
        with _port("reading signatures"):
            entry = self._find(model.name)
            if (entry.blob, entry.bundle, len(entry.cosigned)) != (
                model.digest,
                model.bundle_digest,
                len(model.cosigners),
            ):
                raise Fault(f"{model.name} was replaced while it was read")
            return tuple(self._read_bundle(digest) for digest in entry.bundles())

    def check(self) -> tuple[str, ...]:
        """What should not be there, or should and is not, as lines for an operator. Reads no blob. Raises ``Fault``.

        What an import or a pull is writing is neither, and is not seen between its name and its entry.
        """
        with _port("checking the store"), self._lock():
            entries = self._readable_entries()
            lines = (
                *(f"models/{name}: not an index entry" for name in self._foreign_index_names()),
                *_differences("blobs", self._blobs, {entry.blob.hex for entry in entries}),
                *_differences(
                    "bundles", self._bundles, {bundle.hex for entry in entries for bundle in entry.bundles()}
                ),
            )
            return tuple(printable(line) for line in lines)

    def _find(self, name_or_digest: str | Digest) -> IndexEntry:
        if isinstance(name_or_digest, Digest):
            for entry in self._readable_entries():
                if entry.blob == name_or_digest:
                    return entry
            raise Refused(Reason.MODEL_NOT_FOUND, f"no model has the digest {name_or_digest}")
        if not _NAME.fullmatch(name_or_digest):
            raise Refused(Reason.MODEL_NOT_FOUND, "not a model's name")
        entry_or_none = self._read_entry(name_or_digest)
        if entry_or_none is None:
            raise Refused(Reason.MODEL_NOT_FOUND, f"there is no model {name_or_digest}")
        return entry_or_none

    def _read_entry(self, name: str) -> IndexEntry | None:
        try:
            data = read_file(self._index, f"{name}.json", MAX_INDEX_BYTES)
        except FileNotFoundError:
            return None
        try:
            entry = _INDEX_DECODER.decode(data)
        except msgspec.DecodeError:
            raise not_verified("index-invalid", f"the index entry of {name} is damaged") from None
        if entry.name != name:
            raise not_verified("index-invalid", f"the index entry of {name} names another model")
        return entry

    def _index_names(self) -> list[str]:
        names = os.listdir(self._index)  # noqa: PTH208 - by descriptor
        return sorted(name.removesuffix(".json") for name in names if _is_index_name(name))

    def _readable_entries(self) -> list[IndexEntry]:
        """Damaged entries are left out here, reported by ``check``, and refused when they are asked for by name."""
        entries = []
        for name in self._index_names():
            with suppress(Refused):
                if entry := self._read_entry(name):
                    entries.append(entry)
        return entries

    def _damaged(self, readable: Sequence[IndexEntry]) -> frozenset[str]:
        """Files that stand where entries do and are none. A later version may have written them, and other names."""
        sound = {f"{entry.name}.json" for entry in readable}
        names = os.listdir(self._index)  # noqa: PTH208 - by descriptor
        return frozenset(name for name in names if name.endswith(".json") and name not in sound)

    def _foreign_index_names(self) -> list[str]:
        sound = {f"{entry.name}.json" for entry in self._readable_entries()}
        return sorted(_settled_names(self._index) - sound)

    def _verify(
        self, fd: int, mode: SealMode, entry: IndexEntry, signed: tuple[SignedStatement, ...], trust: Trust
    ) -> VerifiedModel:
        """Everything that is said of a model comes from this one descriptor."""
        look = self._receipts.observe if mode == "verity" else observe_signed
        observed = look(fd, (one.statement for one in signed), self._wholes)
        if observed.digest != entry.blob:
            raise not_verified("digest-mismatch", f"the bytes are {observed.digest}, not {entry.blob}")
        facts = self._facts_of(fd)
        return verified_model(*signed, name=entry.name, observed=observed, facts=facts, policy=trust.policy)

    def _signed(self, digest: Digest, trust: Trust) -> SignedStatement:
        return verify_bundle(self._read_bundle(digest), trust)

    def _read_bundle(self, digest: Digest) -> bytes:
        try:
            bundle = read_file(self._bundles, digest.hex, MAX_BUNDLE_BYTES)
        except FileNotFoundError:
            raise not_verified("unsigned", "the model's signature bundle is not in the store") from None
        if Digest.of(bundle) != digest:
            raise not_verified("bundle-mismatch", "the signature bundle was changed")
        return bundle

    def _open_blob(self, digest: Digest) -> int:
        try:
            return open_file(self._blobs, digest.hex)
        except FileNotFoundError:
            raise not_verified("blob-missing", f"{digest} is not in the store") from None

    def _mode_for(self, size_bytes: int) -> SealMode:
        return "sealed-memfd" if size_bytes <= self._sealed_max_bytes else "ro-store"

    # --- writing ---------------------------------------------------------------------------------------------------

    def import_model(
        self, source_fd: int, name: str, bundle_bytes: bytes | Sequence[bytes], trusted: TrustedKeys | Trust
    ) -> VerifiedModel:
        """Copies, verifies and only then makes visible. An older model of this name is replaced.

        ``source_fd`` is read from where it stands to its end and not closed; it may be a pipe. ``bundle_bytes`` is one
        signer's bundle or, where the operator requires several signers, each one's; all must vouch for the model.
        Raises ``Refused(MODEL_NOT_VERIFIED | FIELD_INVALID)``, or ``Fault`` when the disk is full or fails; the store
        then holds what it held before or, if only the last sync failed, the new model.
        """
        check_name(name)
        bundles = (bundle_bytes,) if isinstance(bundle_bytes, bytes) else tuple(bundle_bytes)
        with _port(f"importing {name}"):
            if len(bundles) > MAX_BUNDLES or len(set(bundles)) < len(bundles):
                raise SignatureRefused("bundles-invalid", f"more than {MAX_BUNDLES} bundles, or one of them twice")
            trust = trust_of(trusted)
            signed = tuple(verify_bundle(bundle, trust) for bundle in bundles)
            if self._with_verity:
                verity.check_supported(self._blobs)
            # fs-verity makes a nameless file one that a crash would leak: it gets a temporary name instead.
            with Incoming(self._blobs, named=self._with_verity) as incoming:
                observed = copy_and_observe(source_fd, incoming.fd, {one.statement.form for one in signed})
                facts = self._facts_of(incoming.fd)
                model = verified_model(*signed, name=name, observed=observed, facts=facts, policy=trust.policy)
                if self._with_verity:
                    incoming.stop_writing()
                    verity.enable(incoming.fd)
                incoming.make_durable()
                cosigned = tuple(one.bundle_digest for one in signed[1:])
                entry = IndexEntry(name=name, blob=model.digest, bundle=model.bundle_digest, cosigned=cosigned)
                with self._lock():
                    try:
                        self._publish(incoming, self._blobs, model.digest, with_verity=self._with_verity)
                        for bundle, one in zip(bundles, signed, strict=True):
                            self._put_bundle(bundle, one.bundle_digest)
                        self._put_entry(entry)
                    except BaseException:
                        with suppress(OSError):  # of a full disk, a whole model; what cannot be deleted is garbage
                            self._delete_unshared(entry)
                        raise
        return model

    def remove(self, name: str) -> None:
        """Makes a model invisible, then deletes its files unless another model shares them. Open descriptors live on.

        Takes whatever ``check`` names as an entry, under a name that no model may have too: it would keep a collection
        from every blob. Such a name is looked for in the listing, so that no call ever names what is not there
        (CVE-2024-37032). Raises ``Refused(MODEL_NOT_FOUND)``, or ``Fault``.
        """
        with _port("removing a model"), self._lock():
            if not _NAME.fullmatch(name) and f"{name}.json" not in os.listdir(self._index):  # noqa: PTH208 - by descriptor
                raise Refused(Reason.MODEL_NOT_FOUND, "not a model's name")
            entry: IndexEntry | None = None
            with suppress(Refused):  # a damaged entry can be removed too; its files are then left for check to list
                entry = self._find(name)
            try:
                os.unlink(f"{name}.json", dir_fd=self._index)
            except FileNotFoundError:
                raise Refused(Reason.MODEL_NOT_FOUND, f"there is no model {name}") from None
            os.fsync(self._index)
            if entry is not None:
                self._delete_unshared(entry)

    def collect_garbage(self, *, now_seconds: int, dry_run: bool = False) -> Collection:
        """Deletes what nothing points to and nobody is at work on (``models.collect``), or only says what that is.

        Raises ``Fault``; what was deleted until then was garbage.
        """
        with _port("collecting garbage"), self._lock():
            entries = self._readable_entries()
            pointers = Pointers(
                entries=frozenset(f"{entry.name}.json" for entry in entries),
                blobs=frozenset(entry.blob.hex for entry in entries),
                bundles=frozenset(bundle.hex for entry in entries for bundle in entry.bundles()),
                damaged=self._damaged(entries),
            )
            return collect(self._directories[""], pointers, now_seconds=now_seconds, dry_run=dry_run)

    def _delete_unshared(self, entry: IndexEntry) -> None:
        others = self._readable_entries()
        if self._damaged(others):
            return  # an entry that cannot be read may share the files
        if all(other.blob != entry.blob for other in others):
            unlink_if_present(self._blobs, entry.blob.hex)
        shared = {bundle for other in others for bundle in other.bundles()}
        for bundle in entry.bundles():
            if bundle not in shared:
                unlink_if_present(self._bundles, bundle.hex)

    def _publish(self, incoming: "Incoming", directory: int, digest: Digest, *, with_verity: bool = False) -> None:
        """Puts a durable file under its digest. One that is there already stays, if it is as good."""
        if not _holds(directory, digest, with_verity=with_verity):
            unlink_if_present(directory, digest.hex)
            incoming.link(digest.hex)
        os.fsync(directory)

    def _put_bundle(self, bundle_bytes: bytes, digest: Digest) -> None:
        with Incoming(self._bundles) as incoming:
            write_all(incoming.fd, bundle_bytes)
            incoming.make_durable()
            self._publish(incoming, self._bundles, digest)

    def _put_entry(self, entry: IndexEntry) -> None:
        """The moment of visibility is the rename. The files of a model that was replaced go afterwards."""
        replaced: IndexEntry | None = None
        with suppress(Refused):
            replaced = self._read_entry(entry.name)
        with Incoming(self._index, named=True) as incoming:
            write_all(incoming.fd, canonical_json(entry))
            incoming.make_durable()
            incoming.rename(f"{entry.name}.json")
        os.fsync(self._index)
        if replaced is not None:
            self._delete_unshared(replaced)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, across threads and processes: the lock belongs to a fresh open file description."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directories[""])
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _sealed(fd: int, mode: SealMode) -> int:
    """The descriptor to verify and hand out. On success ``fd`` is closed or is the answer; otherwise it stays open."""
    if mode in {"ro-store", "verity"}:
        return fd
    sealed = sealed_copy(fd)
    os.close(fd)
    return sealed


@contextmanager
def _port(doing: str) -> Iterator[None]:
    """The only two ways out of the store: ``Refused`` and ``Fault``."""
    try:
        yield
    except (SignatureRefused, GgufInvalid) as error:
        raise not_verified(error.reason, error.detail) from None
    except OSError as error:
        raise Fault(f"{doing}: {_errno_name(error)}") from error


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _close_all(directories: dict[str, int]) -> None:
    while directories:
        _, fd = directories.popitem()
        os.close(fd)


def _holds(directory: int, digest: Digest, *, with_verity: bool) -> bool:
    """Whether a sound file with these bytes is there. One that is not sound is replaced, which heals the store."""
    try:
        fd = open_file(directory, digest.hex)
    except (FileNotFoundError, Refused):
        return False
    try:
        return observe(fd).digest == digest and (not with_verity or verity.is_enabled(fd))
    except OSError as error:
        if error.errno != errno.EIO:  # a block that the disk or fs-verity gives up
            raise
        return False
    finally:
        os.close(fd)


def _is_index_name(name: str) -> bool:
    return name.endswith(".json") and _NAME.fullmatch(name.removesuffix(".json")) is not None


def _settled_names(directory: int) -> set[str]:
    """Without the temporary files that somebody is at work on."""
    return {name for name in os.listdir(directory) if not is_being_written(directory, name)}


def _differences(folder: str, directory: int, wanted: set[str]) -> Iterator[str]:
    present = _settled_names(directory)
    yield from (f"{folder}/{name}: nothing points to it" for name in sorted(present - wanted))
    yield from (f"{folder}/{name}: missing" for name in sorted(wanted - present))
