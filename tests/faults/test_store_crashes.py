"""Fail, or die at, each system call of an import in turn: the store stays sound, and what is visible verifies."""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest
from appliance.models import descriptor
from appliance.models.store import ModelStore
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, shards, signed, signed_statement, statement_of

OLD = small_model_bytes("old")
NEW = small_model_bytes("new", fill=b"\x07")
OLD_BUNDLE, NEW_BUNDLE = signed(OLD), signed(NEW)
KEPT = small_model_bytes("kept")
LARGER = small_model_bytes("larger", n_bytes=8192)
LARGER_BUNDLE = signed(LARGER)
SHARDED_BUNDLE = signed_statement(statement_of(shards("model.gguf", NEW, 1000), method="shards", shard_size=1000))
NAME_OF = {Digest.of(OLD): "old", Digest.of(NEW): "new", Digest.of(LARGER): "larger"}

CALLS = ("open", "write", "readv", "pread", "preadv", "fchmod", "fsync", "link", "rename", "unlink", "fstat", "read")
MUTATING = ("write", "fchmod", "fsync", "link", "rename", "unlink")

Strike = Callable[[], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: thousands of syncs on a busy disk take minutes and prove no more."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@contextmanager
def striking(strike: Strike, at: int, calls: tuple[str, ...], *, after: bool = False) -> Iterator[Callable[[], int]]:
    """Runs ``strike`` at the ``at``-th of ``calls`` (before it, or after it was done); yields the number of calls."""
    count = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and not after:
                strike()
            try:
                return original(*args, **kwargs)
            finally:
                if count == at and after:
                    strike()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, wrap(getattr(os, name)))
        patch.setattr(descriptor, "CHUNK_BYTES", 128)
        yield lambda: count


def put(store: ModelStore, data: bytes, bundle: bytes, name: str = "demo") -> None:
    fd = memory_file(data)
    try:
        store.import_model(fd, name, bundle, TRUSTED)
    finally:
        os.close(fd)


def fresh_store(root: Path) -> ModelStore:
    store = ModelStore.open(root)
    put(store, KEPT, signed(KEPT), "kept")
    put(store, OLD, OLD_BUNDLE)
    return store


def assert_sound(store: ModelStore) -> None:
    """Every visible model verifies, each blob has the digest of its name, nothing that is needed is missing."""
    assert set(store.entries()) >= {"kept"}
    for name in store.entries():
        assert store.verify(name, TRUSTED).digest in {Digest.of(data) for data in (OLD, NEW, KEPT, LARGER)}
    assert [line for line in store.check() if "missing" in line] == []


def calls_of(root: Path, action: Callable[[ModelStore], None], calls: tuple[str, ...]) -> int:
    with fresh_store(root) as store, striking(lambda: None, 0, calls) as count:
        action(store)
        return count()


def replace(store: ModelStore) -> None:
    put(store, NEW, NEW_BUNDLE)


def remove(store: ModelStore) -> None:
    store.remove("demo")


def killed_at(
    store: ModelStore, action: Callable[[ModelStore], None], at: int, calls: tuple[str, ...], *, after: bool
) -> bool:
    """Runs ``action`` in a child that is killed at a call. False when the child got through before."""
    child = os.fork()
    if child == 0:
        try:
            with striking(lambda: os.kill(os.getpid(), signal.SIGKILL), at, calls, after=after):
                action(store)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def first(store: ModelStore) -> None:
    put(store, NEW, NEW_BUNDLE, "first")


def sharded(store: ModelStore) -> None:
    put(store, NEW, SHARDED_BUNDLE)


def larger(store: ModelStore) -> None:
    put(store, LARGER, LARGER_BUNDLE)


def twin(store: ModelStore) -> None:
    """The bytes of a model that is there, under another name."""
    put(store, OLD, OLD_BUNDLE, "twin")


def heal(store: ModelStore) -> None:
    """The blob lies damaged; importing it again replaces it."""
    path = Path(f"/proc/self/fd/{store._blobs}") / Digest.of(OLD).hex
    if path.exists():  # a kill between taking the damaged one away and linking the sound one leaves none
        path.chmod(0o600)
        path.write_bytes(b"damaged")
        path.chmod(0o400)
    put(store, OLD, OLD_BUNDLE)


def litter(store: ModelStore) -> None:
    """What imports that were killed leave behind, and a blob that no entry points to."""
    for directory in (store._blobs, store._bundles, store._index):
        for name in (Digest.of(b"stray").hex, ".incoming-0123456789abcdef", ".incoming-fedcba9876543210"):
            path = Path(f"/proc/self/fd/{directory}") / name
            path.write_bytes(b"stray")


def collect(store: ModelStore) -> None:
    litter(store)
    store.collect_garbage(now_seconds=0)


def load(store: ModelStore) -> None:
    for mode in ("sealed-memfd", "ro-store"):
        store.open_verified("demo", TRUSTED, seal_mode=mode).close()


KILLED = {
    replace: MUTATING,
    first: MUTATING,
    sharded: MUTATING,
    larger: MUTATING,
    twin: MUTATING,
    heal: MUTATING,
    remove: MUTATING,
    collect: CALLS,
    load: CALLS,
}


def demo_after(store: ModelStore) -> str:
    """Which model ``demo`` is, as it verifies; ``none`` when it is not there; ``damaged`` when it is refused."""
    try:
        return NAME_OF[store.verify("demo", TRUSTED).digest]
    except Refused as refusal:
        return "none" if refusal.reason is Reason.MODEL_NOT_FOUND else "damaged"


@pytest.mark.timeout(300)
def test_process_killed_at_any_of_two_hundred_steps_leaves_a_sound_store(folder: Path) -> None:
    """Never a model whose bytes are not the signed ones, and never a complete import lost: from the step that makes
    the new model visible on, no later kill shows the old one again."""
    points_of: dict[str, int] = {}
    for action, calls in KILLED.items():
        for after in (False, True):
            points = calls_of(folder / f"{action.__name__}-{after}-count", action, calls)
            seen = [
                killed(folder / f"{action.__name__}-{after}-{at}", action, calls, at, after)
                for at in range(1, points + 1)
            ]
            assert len([1 for one, next_one in pairwise(seen) if one != next_one]) <= 1, seen
            assert action is heal or "damaged" not in seen
            points_of[action.__name__] = points_of.get(action.__name__, 0) + points
    print(f"{sum(points_of.values())} kill -9 points: {points_of}")
    assert sum(points_of.values()) >= 200


def killed(root: Path, action: Callable[[ModelStore], None], calls: tuple[str, ...], at: int, after: bool) -> str:
    """One kill: what the store then holds, how it goes on, and what ``demo`` was in between."""
    with fresh_store(root) as store:
        assert killed_at(store, action, at, calls, after=after)
    with ModelStore.open(root) as store:
        found = demo_after(store)
        if found != "damaged":
            assert_sound(store)
        with suppress(Refused):  # a killed removal may have removed it
            action(store)
        assert_sound(store)
    shutil.rmtree(root)
    return found


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("action", [replace, remove, collect])
def test_call_that_fails_is_a_fault_and_leaves_a_sound_store(
    folder: Path, action: Callable[[ModelStore], None], error: int
) -> None:
    def strike() -> None:
        raise OSError(error, "struck")

    points = calls_of(folder / "count", action, CALLS)
    for at in range(1, points + 1):
        with fresh_store(folder / f"{error}-{at}") as store:
            with striking(strike, at, CALLS), pytest.raises(Fault, match=errno.errorcode[error]):
                action(store)
            assert_sound(store)
            with suppress(Refused):
                action(store)
            assert_sound(store)


@pytest.mark.parametrize("mode", ["sealed-memfd", "ro-store"])
def test_call_that_fails_while_opening_leaves_nothing_open(folder: Path, mode: Any) -> None:
    def strike() -> None:
        raise OSError(errno.EIO, "struck")

    def load_it(store: ModelStore) -> None:
        store.open_verified("demo", TRUSTED, seal_mode=mode).close()

    points = calls_of(folder / "count", load_it, CALLS)
    with fresh_store(folder / "store") as store:
        before = len(os.listdir("/proc/self/fd"))
        for at in range(1, points + 1):
            with striking(strike, at, CALLS), pytest.raises(Fault, match="EIO"):
                load_it(store)
        assert len(os.listdir("/proc/self/fd")) == before
        assert_sound(store)


def test_whatever_a_killed_process_left_is_collected(folder: Path) -> None:
    """After each kill and one collection the store holds what it would hold if nobody had been killed."""
    for action in (replace, remove):
        for at in range(1, calls_of(folder / f"{action.__name__}-count", action, MUTATING) + 1):
            with fresh_store(folder / f"{action.__name__}-{at}") as store:
                assert killed_at(store, action, at, MUTATING, after=True)
                assert store.collect_garbage(now_seconds=0).left == ()
                assert store.check() == ()
                assert_sound(store)


@contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of ``n_bytes``; skips where we may not mount one."""
    path.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size={n_bytes},mode=700 tmpfs '{path}' 2>/dev/null"):
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        yield path
    finally:
        os.system(f"umount '{path}'")


def test_full_disk_is_a_fault_and_leaves_the_former_model(tmp_path: Path) -> None:
    large = small_model_bytes("large", n_bytes=4 * 1024 * 1024)
    with small_disk(tmp_path / "disk", 1024 * 1024) as disk, fresh_store(disk / "store") as store:
        with pytest.raises(Fault, match="ENOSPC"):
            put(store, large, signed(large))
        assert_sound(store)
        assert store.verify("demo", TRUSTED).digest == Digest.of(OLD)
        assert store.check() == ()
        replace(store)
        assert store.verify("demo", TRUSTED).digest == Digest.of(NEW)


@pytest.mark.parametrize(("resource", "step"), [("size", 4096), ("nr_inodes", 1)])
def test_disk_that_is_full_at_any_step_of_an_import_loses_nothing_and_keeps_nothing(
    tmp_path: Path, resource: str, step: int
) -> None:
    """The disk grows by one page, or one file, until the import fits."""
    with small_disk(tmp_path / "disk", 1024 * 1024) as disk, fresh_store(disk / "store") as store:

        def used() -> int:
            status = os.statvfs(disk)
            return (
                status.f_files - status.f_ffree
                if resource == "nr_inodes"
                else 4096 * (status.f_blocks - status.f_bfree)
            )

        before, failures = used(), 0
        limit = before
        while True:
            assert os.system(f"mount -o remount,{resource}={limit} '{disk}'") == 0
            try:
                put(store, LARGER, LARGER_BUNDLE)
            except Fault as fault:
                assert "ENOSPC" in fault.detail
            else:
                break
            failures += 1
            limit += step
            assert demo_after(store) == "old"
            assert_sound(store)
            store.collect_garbage(now_seconds=0)
            assert store.check() == ()
            assert used() == before
        assert demo_after(store) == "larger"
        assert failures >= 3


def test_collection_of_a_store_that_cannot_be_written_is_a_fault_and_shows_what_it_would_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024 * 1024) as disk:
        with fresh_store(disk / "store") as store:
            litter(store)
        os.system(f"mount -o remount,ro '{disk}'")
        with ModelStore.open(disk / "store") as store:
            assert len(store.collect_garbage(now_seconds=0, dry_run=True).garbage) == 8
            with pytest.raises(Fault, match="EROFS"):
                store.collect_garbage(now_seconds=0)
            assert_sound(store)


def test_read_only_file_system_serves_and_refuses_to_import(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024 * 1024) as disk:
        fresh_store(disk / "store").close()
        os.system(f"mount -o remount,ro '{disk}'")
        with ModelStore.open(disk / "store") as store:
            assert store.verify("demo", TRUSTED).digest == Digest.of(OLD)
            with pytest.raises(Fault, match="EROFS"):
                replace(store)
            with pytest.raises(Fault, match="EROFS"):
                remove(store)
