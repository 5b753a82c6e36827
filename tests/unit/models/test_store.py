"""The store never hands out bytes that nobody signed, whatever is done to its files."""

import errno
import fcntl
import mmap
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.records import reference
from appliance.core.refusals import Fault, PaddockError, Reason, Refused
from appliance.core.values import Digest, GgufFacts
from appliance.models import descriptor
from appliance.models import store as store_module
from appliance.models.oms import TrustedKeys
from appliance.models.store import ModelStore, check_name
from appliance.models.trust import Trust
from appliance.validator.reading import read_facts
from tests.support.gguf_files import small_model_bytes
from tests.support.refusals import code_of
from tests.support.signed_models import (
    OTHER_KEY,
    TRUSTED,
    TRUSTS_OTHER,
    memory_file,
    resource,
    shards,
    signed,
    signed_statement,
    statement_of,
    tree,
)

MODEL = small_model_bytes("demo")
DIGEST = Digest.of(MODEL)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[ModelStore]:
    with ModelStore.open(root) as opened:
        yield opened


def put(store: ModelStore, data: bytes = MODEL, name: str = "demo", bundle: bytes | None = None) -> None:
    fd = memory_file(data)
    try:
        store.import_model(fd, name, signed(data) if bundle is None else bundle, TRUSTED)
    finally:
        os.close(fd)


def bytes_of(fd: int) -> bytes:
    return os.pread(fd, 2**24, 0)


def blob_of(root: Path, digest: Digest = DIGEST) -> Path:
    return root / "blobs" / "sha256" / digest.hex


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- what works -------------------------------------------------------------------------------------------------------


def test_signed_model_is_imported_and_opened(root: Path, store: ModelStore) -> None:
    put(store)
    assert store.entries() == ("demo",)
    with store.open_verified("demo", TRUSTED) as opened:
        assert opened.seal_mode == "sealed-memfd"
        assert bytes_of(opened.file) == MODEL
        assert (opened.model.name, opened.model.digest) == ("demo", DIGEST)
        assert (opened.model.size_bytes, opened.model.signer.name) == (len(MODEL), "acme")
        assert opened.model.facts.architecture == "llama"
    assert store.verify("demo", TRUSTED) == opened.model
    assert store.check() == ()
    assert stat.S_IMODE(blob_of(root).stat().st_mode) == 0o444
    assert blob_of(root).stat().st_nlink == 1


def test_demo_model_is_imported(store: ModelStore) -> None:
    data = (Path(store_module.__file__).parents[1] / "data" / "paddock-demo.gguf").read_bytes()
    put(store, data)
    assert store.verify("demo", TRUSTED).facts.name == "paddock-demo"


def test_model_is_found_by_its_digest(store: ModelStore) -> None:
    put(store)
    with store.open_verified(DIGEST, TRUSTED) as opened:
        assert opened.model.name == "demo"


def test_large_model_is_opened_from_the_store(root: Path) -> None:
    with ModelStore.open(root, sealed_max_bytes=len(MODEL) - 1) as store:
        put(store)
        with store.open_verified("demo", TRUSTED) as opened:
            assert opened.seal_mode == "ro-store"
            assert bytes_of(opened.file) == MODEL
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(opened.file, b"x")


def test_store_is_opened_again(root: Path) -> None:
    with ModelStore.open(root) as store:
        put(store)
    with ModelStore.open(root) as store:
        assert store.verify("demo", TRUSTED).digest == DIGEST


def test_model_is_imported_from_a_pipe(store: ModelStore) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        writer = threading.Thread(target=lambda: (pipe.write(MODEL), pipe.close()))
        writer.start()
        try:
            store.import_model(read_end, "demo", signed(MODEL), TRUSTED)
        finally:
            os.close(read_end)
            writer.join(timeout=10)
    assert store.verify("demo", TRUSTED).digest == DIGEST


def test_sharded_signature_is_accepted(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "CHUNK_BYTES", 700)
    resources = sorted(shards("m.gguf", MODEL, 999), key=lambda item: str(item["name"]))
    put(store, bundle=signed_statement(statement_of(resources, method="shards", shard_size=999)))
    with store.open_verified("demo", TRUSTED) as opened:
        assert bytes_of(opened.file) == MODEL


def test_model_listed_among_others_is_accepted(store: ModelStore) -> None:
    resources = [resource("README.md", b"hello"), resource("model.gguf", MODEL)]
    put(store, bundle=signed_statement(statement_of(resources)))
    assert store.verify("demo", TRUSTED).digest == DIGEST


def test_nothing_is_left_open(store: ModelStore) -> None:
    put(store)
    before = open_descriptors()
    for _ in range(3):
        put(store)
        store.verify("demo", TRUSTED)
        store.open_verified("demo", TRUSTED).close()
        code_of(lambda: store.open_verified("demo", TRUSTS_OTHER))
        code_of(lambda: store.open_verified("demo", TRUSTED, seal_mode="verity"))
    assert open_descriptors() == before


# --- what is not imported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "bundle", "code"),
    [
        (MODEL, b"", "unsigned"),
        (MODEL, b"{}", "bundle-malformed"),
        (MODEL, signed(MODEL, OTHER_KEY), "signer-unknown"),
        (MODEL, signed(MODEL + b"x"), "digest-mismatch"),
        (MODEL[:-100], signed(MODEL), "gguf-truncated"),
        (MODEL + b"x", signed(MODEL + b"x"), "gguf-trailing-bytes"),
        (b"", signed(b""), "gguf-truncated"),
        (b"not a model" * 10, signed(b"not a model" * 10), "gguf-magic"),
        (MODEL, signed_statement(statement_of([resource("m", MODEL)], hash_type="blake3")), "hash-unsupported"),
    ],
)
def test_model_that_does_not_verify_leaves_no_trace(
    root: Path, store: ModelStore, data: bytes, bundle: bytes, code: str
) -> None:
    assert code_of(lambda: put(store, data, bundle=bundle)) == code
    assert store.entries() == ()
    assert tree(root) == set()


def test_failed_import_leaves_the_former_model(store: ModelStore) -> None:
    put(store)
    code_of(lambda: put(store, small_model_bytes("other"), bundle=signed(MODEL)))
    assert store.verify("demo", TRUSTED).digest == DIGEST
    assert store.check() == ()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../demo", "a/b", "/a", "Demo", "-a", "_a", ".a", "a b", "a\n", "a\0", "a:", "a::b", "a:b:c", "é",
     "x" * 65, "a:" + "x" * 33, "sha256:" + "0" * 64, "a%2fb"],
)  # fmt: skip
def test_odd_name_is_refused_everywhere(root: Path, store: ModelStore, name: str) -> None:
    with pytest.raises(Refused) as caught:
        put(store, name=name)
    assert caught.value.reason is Reason.FIELD_INVALID
    for action in (store.remove, lambda name: store.verify(name, TRUSTED)):
        with pytest.raises(Refused) as caught:
            action(name)
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert tree(root) == set()


@pytest.mark.parametrize("name", ["a", "0", "qwen3-4b", "qwen2.5:7b-q4_k_m", "a..b", "x" * 64 + ":" + "y" * 32])
def test_plain_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


def test_unknown_model_is_not_found(store: ModelStore) -> None:
    for wanted in ("demo", DIGEST):
        with pytest.raises(Refused) as caught:
            store.open_verified(wanted, TRUSTED)
        assert caught.value.reason is Reason.MODEL_NOT_FOUND


# --- keys and bundles at load -----------------------------------------------------------------------------------------


def test_key_that_is_no_longer_trusted_is_refused(store: ModelStore) -> None:
    put(store)
    assert code_of(lambda: store.verify("demo", TrustedKeys({}))) == "signer-unknown"
    assert code_of(lambda: store.open_verified("demo", TRUSTS_OTHER)) == "signer-unknown"


def test_model_whose_bundle_is_gone_is_refused(root: Path, store: ModelStore) -> None:
    put(store)
    only(root / "bundles" / "sha256").unlink()
    assert code_of(lambda: store.verify("demo", TRUSTED)) == "unsigned"
    assert [line.split(": ")[1] for line in store.check()] == ["missing"]


def test_bundle_that_was_changed_is_refused(root: Path, store: ModelStore) -> None:
    put(store)
    bundle = only(root / "bundles" / "sha256")
    bundle.chmod(0o644)
    bundle.write_bytes(signed(MODEL))
    bundle.chmod(0o444)
    assert code_of(lambda: store.verify("demo", TRUSTED)) == "bundle-mismatch"


def test_index_that_points_at_another_model_is_refused(root: Path, store: ModelStore) -> None:
    """Both blobs are signed; an index entry that mixes one with the other's bundle gives neither."""
    put(store)
    put(store, small_model_bytes("other"), "other")
    first, second = (root / "models" / f"{name}.json" for name in ("demo", "other"))
    mixed = first.read_text().replace(DIGEST.hex, Digest.of(small_model_bytes("other")).hex)
    first.unlink()
    first.write_text(mixed)
    first.chmod(0o444)
    assert code_of(lambda: store.open_verified("demo", TRUSTED)) == "digest-mismatch"
    first.unlink()
    second.rename(first)
    assert code_of(lambda: store.open_verified("demo", TRUSTED)) == "index-invalid"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name":"demo"}', "x" * 10_000, '{"name":"demo","blob":"../../x"}'])
def test_damaged_index_entry_is_refused_and_can_be_removed(root: Path, store: ModelStore, text: str) -> None:
    put(store)
    put(store, name="twin")
    entry = root / "models" / "demo.json"
    entry.unlink()
    entry.write_text(text)
    entry.chmod(0o444)
    assert code_of(lambda: store.verify("demo", TRUSTED)) == "index-invalid"
    assert store.entries() == ("twin",)
    assert store.check()[0] == "models/demo.json: not an index entry"
    store.remove("demo")
    assert store.verify("twin", TRUSTED).digest == DIGEST


# --- races and odd files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 100, len(MODEL) // 2, len(MODEL) - 1])
def test_changed_byte_is_refused(root: Path, store: ModelStore, position: int) -> None:
    put(store)
    blob = blob_of(root)
    changed = bytearray(MODEL)
    changed[position] ^= 1
    times = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(changed)
    blob.chmod(0o444)
    os.utime(blob, ns=(times.st_atime_ns, times.st_mtime_ns))  # no time stamp is believed
    for mode in ("sealed-memfd", "ro-store"):
        assert code_of(lambda mode=mode: store.open_verified("demo", TRUSTED, seal_mode=mode)) == "digest-mismatch"
    assert code_of(lambda: store.verify("demo", TRUSTED)) == "digest-mismatch"


def test_imported_again_over_a_damaged_file_it_is_healed(root: Path, store: ModelStore) -> None:
    put(store)
    blob_of(root).chmod(0o644)
    blob_of(root).write_bytes(b"damaged")
    put(store)
    assert store.verify("demo", TRUSTED).digest == DIGEST


def as_link(blob: Path, real: Path) -> None:
    blob.symlink_to(real)


def as_hard_link(blob: Path, real: Path) -> None:
    real.chmod(0o444)
    blob.hardlink_to(real)


def as_fifo(blob: Path, _: Path) -> None:
    os.mkfifo(blob, 0o444)


def as_directory(blob: Path, _: Path) -> None:
    blob.mkdir()


def as_socket(blob: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        old = Path.cwd()
        os.chdir(blob.parent)  # a socket's address is at most 108 bytes
        try:
            listener.bind(blob.name)
        finally:
            os.chdir(old)


def as_writable(blob: Path, _: Path) -> None:
    blob.write_bytes(MODEL)
    blob.chmod(0o644)


def as_device(blob: Path, _: Path) -> None:
    try:
        os.mknod(blob, 0o444 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs root")


def as_somebody_elses(blob: Path, _: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    blob.write_bytes(MODEL)
    blob.chmod(0o444)
    os.chown(blob, 65_534, 65_534)


@pytest.mark.parametrize(
    "kind",
    [as_link, as_hard_link, as_fifo, as_directory, as_socket, as_writable, as_device, as_somebody_elses],
)
@pytest.mark.parametrize("which", ["blobs", "bundles"])
def test_file_of_an_odd_kind_is_refused(
    root: Path, store: ModelStore, tmp_path: Path, kind: Callable[[Path, Path], None], which: str
) -> None:
    """Also where its bytes would be the right ones."""
    put(store)
    victim = only(root / which / "sha256")
    real = tmp_path / "real"
    real.write_bytes(victim.read_bytes())
    victim.unlink()
    kind(victim, real)
    assert code_of(lambda: store.open_verified("demo", TRUSTED)) == "file-unsafe"


def test_directory_swapped_for_a_link_is_not_followed(root: Path, store: ModelStore, tmp_path: Path) -> None:
    put(store)
    elsewhere = tmp_path / "elsewhere"
    (root / "blobs").rename(elsewhere)
    (root / "blobs").symlink_to(elsewhere)
    assert store.verify("demo", TRUSTED).digest == DIGEST  # by the descriptors it opened at its start
    with pytest.raises(Fault, match="ELOOP"):
        ModelStore.open(root)


def test_root_that_is_a_link_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Fault):
        ModelStore.open(tmp_path / "link")


@pytest.mark.parametrize("where", [".", "blobs", "blobs/sha256", "bundles/sha256", "models"])
def test_directory_that_others_can_write_is_a_fault(root: Path, where: str) -> None:
    ModelStore.open(root).close()
    (root / where).chmod(0o777)
    before = open_descriptors()
    with pytest.raises(Fault, match="writable"):
        ModelStore.open(root)
    assert open_descriptors() == before


def during(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    """Runs ``action`` once, just before the store takes the step ``name``."""
    original = getattr(store_module, name)
    pending = [action]

    def step(*args: object, **kwargs: object) -> object:
        if pending:
            pending.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(store_module, name, step)


def overwrite(blob: Path, data: bytes) -> None:
    """In place, through a path: the open descriptor sees it."""
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(data)
    blob.chmod(0o444)


@pytest.mark.parametrize("step", ["sealed_copy", "observe", "read_facts"])
@pytest.mark.parametrize("mode", ["sealed-memfd", "ro-store"])
def test_file_renamed_over_while_it_is_read_changes_nothing(
    root: Path, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, mode: str
) -> None:
    put(store)
    evil = tmp_path / "evil"
    evil.write_bytes(small_model_bytes("evil"))
    evil.chmod(0o444)
    during(monkeypatch, step, lambda: evil.rename(blob_of(root)))
    with store.open_verified("demo", TRUSTED, seal_mode=mode) as opened:
        assert bytes_of(opened.file) == MODEL


@pytest.mark.parametrize("step", ["sealed_copy", "observe", "read_facts"])
def test_file_written_while_it_is_sealed_is_refused_or_harmless(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    put(store)
    during(monkeypatch, step, lambda: overwrite(blob_of(root), small_model_bytes("evil")))
    if step == "sealed_copy":
        assert code_of(lambda: store.open_verified("demo", TRUSTED)) == "digest-mismatch"
    else:
        with store.open_verified("demo", TRUSTED) as opened:
            assert bytes_of(opened.file) == MODEL


def test_file_cut_while_its_header_is_read_is_refused(root: Path, store: ModelStore) -> None:
    def cut_and_read(fd: int) -> GgufFacts:
        blob_of(root).chmod(0o644)
        os.truncate(blob_of(root), 100)
        return read_facts(fd)

    put(store)
    with ModelStore.open(root, facts_of=cut_and_read) as reading:
        assert code_of(lambda: reading.open_verified("demo", TRUSTED, seal_mode="ro-store")) == "gguf-truncated"


def test_sealed_model_cannot_be_changed_any_more(root: Path, store: ModelStore) -> None:
    put(store)
    with store.open_verified("demo", TRUSTED) as opened:
        overwrite(blob_of(root), b"x" * 100)
        for attempt in (
            lambda: os.write(opened.file, b"x"),
            lambda: os.pwrite(opened.file, b"x", 0),
            lambda: os.ftruncate(opened.file, 0),
            lambda: os.ftruncate(opened.file, 2 * len(MODEL)),
            lambda: os.posix_fallocate(opened.file, 0, 2 * len(MODEL)),
            lambda: mmap.mmap(opened.file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
            lambda: fcntl.fcntl(opened.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
            lambda: os.write(os.open(f"/proc/self/fd/{opened.file}", os.O_RDWR), b"x"),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno in {errno.EPERM, errno.EACCES}
        assert bytes_of(opened.file) == MODEL


# --- replacing and removing -------------------------------------------------------------------------------------------


def test_replaced_model_leaves_nothing_behind(root: Path, store: ModelStore) -> None:
    put(store)
    other = small_model_bytes("newer")
    put(store, other)
    assert store.verify("demo", TRUSTED).digest == Digest.of(other)
    assert not blob_of(root).exists()
    assert len(tree(root)) == 3


def test_removed_model_is_gone_and_an_open_one_lives_on(root: Path, store: ModelStore) -> None:
    put(store)
    with store.open_verified("demo", TRUSTED, seal_mode="ro-store") as opened:
        store.remove("demo")
        assert bytes_of(opened.file) == MODEL
    assert tree(root) == set()
    with pytest.raises(Refused) as caught:
        store.remove("demo")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_shared_file_stays_until_its_last_model_is_removed(root: Path, store: ModelStore) -> None:
    put(store)
    put(store, name="twin")
    store.remove("demo")
    assert store.verify("twin", TRUSTED).digest == DIGEST
    store.remove("twin")
    assert tree(root) == set()


def test_leftovers_are_listed(root: Path, store: ModelStore) -> None:
    put(store)
    (root / "blobs" / "sha256" / ".incoming-1").touch()
    (root / "models" / "junk").touch()
    blob_of(root).unlink()
    assert store.check() == (
        "models/junk: not an index entry",
        "blobs/.incoming-1: nothing points to it",
        f"blobs/{DIGEST.hex}: missing",
    )
    assert code_of(lambda: store.verify("demo", TRUSTED)) == "blob-missing"


def test_parallel_imports_and_removals_leave_a_sound_store(root: Path) -> None:
    """Two descriptors of one store, four threads, two names that share a model."""
    failures: list[BaseException] = []

    def work(store: ModelStore, name: str) -> None:
        for round_ in range(12):
            try:
                put(store, name=name)
                store.verify(name, TRUSTED)
                if round_ % 3 == 2:
                    store.remove(name)
            except Refused:
                pass  # another thread removed it
            except BaseException as error:
                failures.append(error)

    with ModelStore.open(root) as one, ModelStore.open(root) as two:
        threads = [
            threading.Thread(target=work, args=(store, name)) for store in (one, two) for name in ("demo", "twin")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert failures == []
        for name in one.entries():
            assert one.verify(name, TRUSTED).digest == DIGEST
        assert [line for line in one.check() if "missing" in line or "incoming" in line] == []


def test_file_system_without_nameless_files_is_served(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def without_tmpfile(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real_open(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", without_tmpfile)
    put(store)
    put(store)
    code_of(lambda: put(store, bundle=signed(MODEL + b"x")))
    assert store.verify("demo", TRUSTED).digest == DIGEST
    assert store.check() == ()
    assert len(tree(root)) == 3
    assert blob_of(root).stat().st_nlink == 1


def test_kernel_without_openat2_is_a_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr("appliance.models.files.open_beneath", absent)
    with pytest.raises(Fault, match="ENOSYS"):
        ModelStore.open(root)


def test_short_memory_is_a_fault(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)

    def no_memory(*_: object) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(os, "memfd_create", no_memory)
    before = open_descriptors()
    with pytest.raises(Fault, match="ENOMEM"):
        store.open_verified("demo", TRUSTED)
    assert open_descriptors() == before


def test_refusals_name_no_path(root: Path, store: ModelStore) -> None:
    put(store)
    blob_of(root).unlink()
    with pytest.raises(PaddockError) as caught:
        store.verify("demo", TRUSTED)
    assert str(root) not in str(caught.value)


# --- the cheap look ---------------------------------------------------------------------------------------------------


def test_reference_says_what_the_verified_model_says_without_its_bytes(root: Path, store: ModelStore) -> None:
    put(store)
    assert store.reference("demo", TRUSTED)[0] == reference(store.verify("demo", TRUSTED))
    blob = blob_of(root)
    blob.chmod(0o600)
    blob.write_bytes(b"")
    assert store.reference("demo", TRUSTED)[0].digest == DIGEST  # of its bytes it says nothing


def test_reference_does_not_outlive_the_trust_in_its_signer(store: ModelStore) -> None:
    put(store)
    assert code_of(lambda: store.reference("demo", TRUSTS_OTHER)) == "signer-unknown"
    assert code_of(lambda: store.reference("demo", TrustedKeys({}))) == "signer-unknown"
    store.remove("demo")
    with pytest.raises(Refused) as caught:
        store.reference("demo", TRUSTED)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_stamp_stays_while_nothing_changes_and_differs_when_anything_does(root: Path, store: ModelStore) -> None:
    absent = store.stamp("demo")
    put(store)
    stamps = [absent, store.stamp("demo")]
    assert store.stamp("demo") == stamps[-1]
    for folder in (root / "blobs" / "sha256", root / "bundles" / "sha256", root / "models"):
        os.utime(only(folder), ns=(1, len(stamps)))
        stamps.append(store.stamp("demo"))
    only(root / "models").chmod(0o600)
    only(root / "models").write_text("{")
    stamps.append(store.stamp("demo"))
    assert len(set(stamps)) == len(stamps)
    assert store.stamp("../../etc/passwd") == ()


def test_stamp_of_the_trusted_keys_changes_with_them(tmp_path: Path) -> None:
    stamps = [Trust.stamp(tmp_path)]
    (tmp_path / "a.pem").write_text("x")
    stamps.append(Trust.stamp(tmp_path))
    assert Trust.stamp(tmp_path) == stamps[-1]
    os.utime(tmp_path / "a.pem", ns=(1, 1))
    stamps.append(Trust.stamp(tmp_path))
    (tmp_path / "a.pem").unlink()
    stamps.append(Trust.stamp(tmp_path))
    assert len(set(stamps)) == len(stamps)
    with pytest.raises(Fault):
        Trust.stamp(tmp_path / "absent")
