"""Whoever changes the store's files while they are used gets refusals, or bytes that were signed; never others.

``test_store`` changes one thing at one step; here somebody changes things all the time, from outside, or mounts over
them.
"""

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.core.refusals import Fault, PaddockError, Refused
from appliance.core.values import Digest, SealMode
from appliance.models import descriptor
from appliance.models.store import ModelStore
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, signed

MODEL = small_model_bytes("demo")
EVIL = small_model_bytes("evil")
DIGEST = Digest.of(MODEL)
MODES: list[SealMode] = ["sealed-memfd", "ro-store"]
CODES = ("digest-mismatch", "file-unsafe", "blob-missing", "gguf-truncated")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[ModelStore]:
    with ModelStore.open(root) as opened:
        fd = memory_file(MODEL)
        opened.import_model(fd, "demo", signed(MODEL), TRUSTED)
        os.close(fd)
        yield opened


@pytest.fixture
def blob(root: Path) -> Path:
    return root / "blobs" / "sha256" / DIGEST.hex


def file_of(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o444)
    return path


def rename_over(blob: Path) -> None:
    for data in (EVIL, MODEL):
        file_of(blob.with_name("next"), data).replace(blob)


def swap_for_link(blob: Path) -> None:
    target = file_of(blob.with_name("real"), MODEL)
    blob.with_name("next").symlink_to(target)
    blob.with_name("next").replace(blob)
    target.replace(blob)


def swap_for_link_upwards(blob: Path) -> None:
    blob.with_name("next").symlink_to("../../blobs/sha256/..")
    blob.with_name("next").replace(blob)
    file_of(blob.with_name("next"), MODEL).replace(blob)


def add_and_take_name(blob: Path) -> None:
    blob.with_name("twin").hardlink_to(blob)
    blob.with_name("twin").unlink()


def write_in_place(blob: Path) -> None:
    """Same inode, same size, same times."""
    times = blob.stat()
    for data in (EVIL, MODEL):
        blob.chmod(0o644)
        with blob.open("r+b") as file:
            file.write(data)
        blob.chmod(0o444)
        os.utime(blob, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate_and_restore(blob: Path) -> None:
    blob.chmod(0o644)
    os.truncate(blob, 100)
    blob.write_bytes(MODEL)
    blob.chmod(0o444)


def swap_directory(blob: Path) -> None:
    elsewhere = blob.parents[3] / "elsewhere"
    blob.parent.rename(elsewhere)
    with suppress(FileExistsError):  # a store that was opened in this moment has made an empty one
        blob.parent.symlink_to(elsewhere)
        blob.parent.unlink()
    elsewhere.rename(blob.parent)


SWAPS = [rename_over, swap_for_link, swap_for_link_upwards, add_and_take_name, write_in_place, truncate_and_restore,
         swap_directory]  # fmt: skip


@pytest.mark.parametrize("swap", SWAPS)
def test_restless_file_is_refused_or_is_the_signed_one(
    store: ModelStore, root: Path, blob: Path, swap: Callable[[Path], None]
) -> None:
    """Sealed memory, since of a file that somebody writes to all the time nobody can say anything for long."""
    assert len(EVIL) == len(MODEL)
    done, codes, loaded = threading.Event(), set(), 0

    def disturb() -> None:
        while not done.is_set():
            swap(blob)

    worker = threading.Thread(target=disturb)
    worker.start()
    try:
        for _ in range(60):
            try:
                with ModelStore.open(root) as fresh:
                    opened = (store, fresh)[loaded % 2].open_verified("demo", TRUSTED, seal_mode="sealed-memfd")
            except PaddockError as error:
                codes.add(error.detail.split(":")[0])
                continue
            with opened:
                assert os.pread(opened.file, 2**24, 0) == MODEL
            loaded += 1
    finally:
        done.set()
        worker.join(30)
    assert codes <= {*CODES, "the model store cannot be opened"}
    assert store.verify("demo", TRUSTED).digest == DIGEST


def test_write_into_what_is_not_hashed_yet_is_refused(
    store: ModelStore, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Straight from the store: the first piece has been hashed when the last byte changes."""
    monkeypatch.setattr(descriptor, "CHUNK_BYTES", 1024)
    real_update = descriptor.Hashing.update

    def write_and_update(hashing: descriptor.Hashing, piece: memoryview) -> None:
        real_update(hashing, piece)
        blob.chmod(0o644)
        with blob.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        blob.chmod(0o444)

    monkeypatch.setattr(descriptor.Hashing, "update", write_and_update)
    with pytest.raises(Refused, match="digest-mismatch"):
        store.open_verified("demo", TRUSTED, seal_mode="ro-store")


def as_nobody(action: Callable[[], object]) -> str:
    """What an action raises in a process of another user; empty if nothing."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "died"
        try:
            os.setgroups([])
            os.setresgid(65_534, 65_534, 65_534)
            os.setresuid(65_534, 65_534, 65_534)
            action()
            said = ""
        except BaseException as error:
            said = type(error).__name__
        finally:
            os.write(write_end, said.encode())
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as answer:
        return answer.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_other_user_with_the_descriptor_changes_nothing(store: ModelStore, blob: Path) -> None:
    """What a runner has of a model that was not copied: the descriptor, and with it ``/proc/self/fd``."""
    with store.open_verified("demo", TRUSTED, seal_mode="ro-store") as opened:
        again = f"/proc/self/fd/{opened.file}"
        for attempt in (
            lambda: os.write(opened.file, b"x"),
            lambda: os.ftruncate(opened.file, 0),
            lambda: os.fchmod(opened.file, 0o666),
            lambda: os.open(again, os.O_RDWR),
            lambda: os.open(again, os.O_WRONLY | os.O_TRUNC),
            lambda: os.open(blob, os.O_RDWR),
            lambda: os.unlink(blob),
            lambda: os.rename(blob, blob.with_name("x")),
            lambda: mmap.mmap(opened.file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
        ):
            assert as_nobody(attempt) in {"OSError", "PermissionError"}
        assert as_nobody(lambda: os.pread(opened.file, 1, 0)) == ""
        assert os.pread(opened.file, 2**24, 0) == MODEL


@pytest.mark.parametrize("mode", MODES)
def test_file_cut_after_it_was_mapped_kills_its_reader_alone_or_nobody(
    store: ModelStore, blob: Path, mode: SealMode
) -> None:
    """A reader of sealed memory never notices. One of the store's own file gets SIGBUS; nobody reads other bytes."""
    with store.open_verified("demo", TRUSTED, seal_mode=mode) as opened:
        child = os.fork()
        if child == 0:
            status = 2
            try:
                view = mmap.mmap(opened.file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
                blob.chmod(0o644)
                os.truncate(blob, 0)
                status = 0 if view[:] == MODEL else 1
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
    if mode == "sealed-memfd":
        assert os.waitstatus_to_exitcode(status) == 0
    else:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGBUS
    blob.chmod(0o444)
    with pytest.raises(Refused, match="digest-mismatch"):
        store.open_verified("demo", TRUSTED, seal_mode=mode)


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    if os.geteuid() != 0 or os.system(f"mount --bind '{source}' '{target}' 2>/dev/null"):
        pytest.skip("mounting needs root and the right to mount")
    try:
        yield
    finally:
        os.system(f"umount '{target}'")


@pytest.mark.parametrize("mode", MODES)
def test_file_mounted_over_a_blob_is_refused(store: ModelStore, blob: Path, tmp_path: Path, mode: SealMode) -> None:
    with mounted(file_of(tmp_path / "evil", EVIL), blob), pytest.raises(Refused, match="digest-mismatch"):
        store.open_verified("demo", TRUSTED, seal_mode=mode)
    assert store.verify("demo", TRUSTED).digest == DIGEST


@pytest.mark.parametrize("below", [".", "blobs", "blobs/sha256"])
def test_directory_mounted_over_the_store_gives_nothing_that_was_not_signed(
    store: ModelStore, root: Path, tmp_path: Path, below: str
) -> None:
    """A store that is open goes on with its own directories; one that is opened anew believes nothing of the other."""
    other = tmp_path / "other"
    with ModelStore.open(other):
        pass
    for place in ("models", "bundles/sha256"):
        for path in (root / place).iterdir():
            file_of(other / place / path.name, path.read_bytes())
    file_of(other / "blobs" / "sha256" / DIGEST.hex, EVIL)
    with mounted(other / below, root / below):
        with ModelStore.open(root) as fresh, pytest.raises(Refused, match="digest-mismatch"):
            fresh.open_verified("demo", TRUSTED)
        with store.open_verified("demo", TRUSTED) as opened:
            assert os.pread(opened.file, 2**24, 0) == MODEL


def test_directory_that_others_can_write_mounted_over_the_store_is_a_fault(
    store: ModelStore, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    other.chmod(0o777)
    with mounted(other, root / "blobs" / "sha256"), pytest.raises(Fault, match="writable"):
        ModelStore.open(root)


@pytest.mark.parametrize("target", ["..", "../..", "../../../..", ".", "/", "/proc/self/fd/0"])
@pytest.mark.parametrize("place", ["blob", "blobs/sha256", "blobs", "models"])
def test_link_upwards_is_not_followed(store: ModelStore, root: Path, blob: Path, target: str, place: str) -> None:
    if place == "blob":
        blob.unlink()
        blob.symlink_to(target)
        with pytest.raises(Refused, match="file-unsafe"):
            store.open_verified("demo", TRUSTED)
        return
    (root / place).rename(root / "aside")
    (root / place).symlink_to(target)
    with pytest.raises(Fault, match="ELOOP"):
        ModelStore.open(root)
