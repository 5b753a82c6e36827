"""A collection deletes what nothing needs, and never anything else: not what is named, made, fetched or loaded."""

import errno
import fcntl
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models import store as store_module
from appliance.models.collect import PARTIALS_KEPT_SECONDS, Collection
from appliance.models.files import Incoming
from appliance.models.store import ModelStore
from appliance.models.transfer.partial import Partial
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, signed, tree

MODEL = small_model_bytes("demo")
BUNDLE = signed(MODEL)
DIGEST = Digest.of(MODEL)
STRAY = Digest.of(b"stray")
NOW = 2_000_000_000
PLACES = ("blobs/sha256", "bundles/sha256", "models", "catalogue")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[ModelStore]:
    with ModelStore.open(root) as opened:
        yield opened


def put(store: ModelStore, name: str = "demo", data: bytes = MODEL, bundle: bytes = BUNDLE) -> None:
    fd = memory_file(data)
    try:
        store.import_model(fd, name, bundle, TRUSTED)
    finally:
        os.close(fd)


def gc(store: ModelStore, now: int = NOW, *, dry_run: bool = False) -> Collection:
    return store.collect_garbage(now_seconds=now, dry_run=dry_run)


def drop(path: Path, data: bytes = b"stray", mode: int = 0o444, age_seconds: int = 0) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, (NOW - age_seconds, NOW - age_seconds))
    return path


def places(found: Collection) -> list[str]:
    return [one.place for one in found.garbage]


# --- what goes --------------------------------------------------------------------------------------------------------


def litter(root: Path) -> set[str]:
    """One of everything that a store leaves behind when its processes die."""
    made = [drop(root / "blobs/sha256" / STRAY.hex), drop(root / "bundles/sha256" / STRAY.hex)]
    made += [drop(root / place / f".incoming-{number:016x}", mode=0o400) for number, place in enumerate(PLACES)]
    made.append(drop(root / "incoming" / f"{STRAY.hex}.part", mode=0o600, age_seconds=PARTIALS_KEPT_SECONDS))
    return {str(path.relative_to(root)) for path in made}


def test_everything_that_nothing_needs_is_deleted_and_nothing_else(root: Path, store: ModelStore) -> None:
    put(store)
    kept, garbage = tree(root), litter(root)
    would = gc(store, dry_run=True)
    assert (set(places(would)), tree(root)) == (garbage, kept | garbage)
    assert gc(store) == would
    assert (would.left, sum(one.size_bytes for one in would.garbage)) == ((), 5 * len(garbage))
    assert tree(root) == kept
    assert store.check() == ()
    assert store.verify("demo", TRUSTED).digest == DIGEST
    assert gc(store) == Collection(garbage=(), left=())


def test_empty_store_has_no_garbage(root: Path, store: ModelStore) -> None:
    assert gc(store) == Collection(garbage=(), left=())
    assert not (root / "incoming").exists()


@pytest.mark.parametrize("helpless", [False, True])
def test_import_whose_last_step_failed_leaves_nothing_or_garbage(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, helpless: bool
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        if helpless:  # from here on nothing can be deleted either
            monkeypatch.setattr(os, "unlink", fail)
        raise OSError(errno.EIO, "broken")

    put(store, "kept", other := small_model_bytes("other"), signed(other))
    before = tree(root)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(Fault, match="EIO"):
        put(store)
    monkeypatch.undo()
    assert len(places(gc(store))) == (3 if helpless else 0)  # the blob, the bundle and the entry's temporary file
    assert tree(root) == before
    assert store.verify("kept", TRUSTED).digest == Digest.of(other)


# --- what stays -------------------------------------------------------------------------------------------------------


def as_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def as_dangling_link(path: Path) -> None:
    path.symlink_to("absent")


def as_directory(path: Path) -> None:
    path.mkdir()


def as_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def as_hard_link(path: Path) -> None:
    path.hardlink_to(drop(path.parents[3] / "elsewhere"))


def as_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/{path.name[:40]}")
        finally:
            os.close(here)
    (path.parent / path.name[:40]).rename(path)


def as_somebody_elses(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    os.chown(drop(path), 65_534, 65_534)


KINDS = [as_link, as_dangling_link, as_directory, as_fifo, as_hard_link, as_socket, as_somebody_elses]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [f"blobs/sha256/{STRAY.hex}", "bundles/sha256/.incoming-0123456789abcdef", f"incoming/{STRAY.hex}.part"]
)
def test_file_of_an_odd_kind_is_named_and_left(
    root: Path, store: ModelStore, kind: Callable[[Path], None], place: str
) -> None:
    put(store)
    (root / "incoming").mkdir(mode=0o700)
    kind(root / place)
    assert gc(store) == Collection(garbage=(), left=(f"{place}: not the store's",))
    assert os.path.lexists(root / place)


FOREIGN = [
    "notes.txt", "blobs/notes", "blobs/sha512", f"blobs/sha256/{STRAY.hex}.bak", f"blobs/sha256/{STRAY.hex[:-1]}",
    f"blobs/sha256/{STRAY.hex.upper()}", "bundles/sha256/.incoming-12", "models/README", "models/demo.json~",
    "catalogue/old", f"incoming/{STRAY.hex}", "incoming/x.part",
]  # fmt: skip


@pytest.mark.parametrize("place", FOREIGN)
def test_foreign_file_is_named_and_left(root: Path, store: ModelStore, place: str) -> None:
    put(store)
    drop(root / place, age_seconds=10**9)
    before = tree(root)
    assert gc(store) == Collection(garbage=(), left=(f"{place}: not the store's",))
    assert tree(root) == before


def test_name_of_a_foreign_file_writes_nothing_to_the_terminal(root: Path, store: ModelStore) -> None:
    drop(root / "models" / "\x1b[2J\n\udcff")
    assert gc(store).left == ("models/?[2J??: not the store's",)
    assert store.check() == ("models/?[2J??: not an index entry",)


def spoil(entry: Path) -> None:
    drop(entry, b"{")


def replace_by_directory(entry: Path) -> None:
    entry.mkdir()


def rename_other(entry: Path) -> None:
    (entry.parent / "twin.json").rename(entry)


@pytest.mark.parametrize("damage", [spoil, replace_by_directory, rename_other])
@pytest.mark.parametrize("name", ["demo.json", "New Grammar.json"])
def test_no_blob_is_deleted_while_an_entry_cannot_be_read(
    root: Path, store: ModelStore, damage: Callable[[Path], None], name: str
) -> None:
    """It might be the one that points to it."""
    put(store)
    put(store, "twin")
    (root / "models/demo.json").unlink()
    damage(root / "models" / name)
    garbage = litter(root)
    found = gc(store)
    assert f"models/{name}: cannot be read; until it is removed, no blob and no bundle is" in found.left
    assert f"blobs/sha256/{STRAY.hex}: an entry that cannot be read may point to it" in found.left
    assert set(places(found)) == {place for place in garbage if STRAY.hex not in place or "incoming" in place}
    assert (root / "blobs/sha256" / DIGEST.hex).exists()


@pytest.mark.parametrize("name", ["demo", "New Grammar", "OLD"])
def test_entry_that_cannot_be_read_is_named_and_can_be_removed(root: Path, store: ModelStore, name: str) -> None:
    put(store, "twin")
    drop(root / "models" / f"{name}.json", b"{}")
    drop(root / "blobs/sha256" / STRAY.hex)
    assert f"models/{name}.json: not an index entry" in store.check()
    store.remove("twin")
    assert (root / "blobs/sha256" / DIGEST.hex).exists()  # the other might point to it
    store.remove(name)
    assert set(places(gc(store))) >= {f"blobs/sha256/{STRAY.hex}", f"blobs/sha256/{DIGEST.hex}"}
    assert store.check() == ()


@pytest.mark.parametrize("name", ["", "../blobs/x", "/etc/x", "x\0", "nothing", "."])
def test_nothing_outside_is_removed_by_name(root: Path, store: ModelStore, name: str) -> None:
    drop(root / "blobs" / "x.json")
    before = tree(root)
    with pytest.raises(Refused):
        store.remove(name)
    assert tree(root) == before


def test_check_finds_no_fault_with_an_import_in_progress(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with what has a temporary name nor between a blob and its entry, which it waits for."""
    found: list[tuple[str, ...]] = []
    with ModelStore.open(root) as other:
        with Incoming(store._blobs, named=True) as incoming:
            assert other.check() == ()
            os.fchmod(incoming.fd, 0o444)
        checking = threading.Thread(target=lambda: found.append(other.check()))
        real, locking = ModelStore._put_entry, threading.Event()
        flock = fcntl.flock

        def put_entry(self: ModelStore, entry: store_module.IndexEntry) -> None:
            checking.start()
            assert locking.wait(20)
            assert found == []
            real(self, entry)

        def watched(fd: int, how: int) -> None:
            if threading.current_thread() is checking:
                locking.set()
            flock(fd, how)

        monkeypatch.setattr(ModelStore, "_put_entry", put_entry)
        monkeypatch.setattr(fcntl, "flock", watched)
        put(store)
        checking.join(timeout=20)
    assert found == [()]
    drop(root / "blobs/sha256" / f".incoming-{7:016x}")
    assert store.check() == (f"blobs/.incoming-{7:016x}: nothing points to it",)


# --- what is being made, fetched or loaded ----------------------------------------------------------------------------


@contextmanager
def half_imported(store: ModelStore, data: bytes, bundle: bytes, name: str) -> Iterator[None]:
    """An import of which one half has been written; it ends after the block."""
    read_end, write_end = os.pipe()
    half, failures = len(data) // 2, []
    written, there = threading.Event(), os.write

    def watched(fd: int, piece: bytes) -> int:
        done = there(fd, piece)
        written.set()
        return done

    def run() -> None:
        try:
            store.import_model(read_end, name, bundle, TRUSTED)
        except BaseException as error:
            failures.append(error)

    with pytest.MonkeyPatch.context() as patched:
        there(write_end, data[:half])
        patched.setattr(os, "write", watched)
        worker = threading.Thread(target=run)
        worker.start()
        assert written.wait(30)
    try:
        yield
    finally:
        os.write(write_end, data[half:])
        os.close(write_end)
        worker.join(30)
        os.close(read_end)
    assert not worker.is_alive()
    assert failures == []


@pytest.fixture
def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def without_tmpfile(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real_open(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", without_tmpfile)


def test_import_under_way_has_nothing_to_take(root: Path, store: ModelStore) -> None:
    with half_imported(store, MODEL, BUNDLE, "demo"):
        assert gc(store) == Collection(garbage=(), left=())
    assert store.verify("demo", TRUSTED).digest == DIGEST


@pytest.mark.parametrize("step", ["_put_bundle", "_put_entry"])
def test_collection_waits_between_a_blob_and_its_entry(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original, found = getattr(store, step), []
    collector = threading.Thread(target=lambda: found.append(gc(store)))

    def collect_now(*args: object) -> None:
        assert (root / "blobs/sha256" / DIGEST.hex).exists()
        other = os.open(root, os.O_RDONLY)
        with pytest.raises(BlockingIOError):  # what the collector takes first
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        collector.start()
        original(*args)

    monkeypatch.setattr(store, step, collect_now)
    put(store)
    collector.join(30)
    assert found == [Collection(garbage=(), left=())]
    assert store.verify("demo", TRUSTED).digest == DIGEST


@pytest.mark.usefixtures("without_nameless_files")
def test_temporary_file_of_an_import_under_way_is_left(root: Path, store: ModelStore) -> None:
    drop(root / "blobs/sha256/.incoming-0123456789abcdef", mode=0o400)
    with half_imported(store, MODEL, BUNDLE, "demo"):
        found = gc(store)
        assert places(found) == ["blobs/sha256/.incoming-0123456789abcdef"]
        (line,) = found.left
        assert line.endswith(": in use")
    assert store.verify("demo", TRUSTED).digest == DIGEST
    assert gc(store) == Collection(garbage=(), left=())


def test_temporary_file_that_was_taken_before_it_was_claimed_is_made_anew(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between a file's making and its claim is the collector's only chance."""
    real_flock, taken = fcntl.flock, []

    def collect_first(fd: int, how: int) -> None:
        if not taken:
            taken.append(fd)
            monkeypatch.setattr(fcntl, "flock", real_flock)
            assert len(places(gc(store))) == 1
        real_flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", collect_first)
    with Incoming(store._blobs, named=True) as incoming:
        assert taken
        incoming.rename("kept")
    assert (root / "blobs/sha256/kept").exists()


def test_claim_outlives_the_descriptor_that_wrote(store: ModelStore) -> None:
    """As where the file is made read-only before it has its name."""
    with Incoming(store._blobs, named=True) as incoming:
        reading = os.open(f"/proc/self/fd/{incoming.fd}", os.O_RDONLY)
        os.close(incoming.fd)
        incoming.fd = reading
        (line,) = gc(store).left
        assert line.endswith(": in use")
    assert gc(store) == Collection(garbage=(), left=())


def test_download_under_way_is_left_and_a_young_one_too(root: Path, store: ModelStore) -> None:
    part = drop(root / "incoming" / f"{STRAY.hex}.part", mode=0o600, age_seconds=PARTIALS_KEPT_SECONDS - 1)
    assert gc(store).left == (f"incoming/{part.name}: the beginning of a download, 5 bytes; kept for a week",)
    with Partial(root, STRAY):
        assert gc(store, NOW + 10**8).left == (f"incoming/{part.name}: in use",)
    assert gc(store, 0).garbage == ()  # a clock that went backwards
    assert places(gc(store, NOW + 10**8)) == [f"incoming/{part.name}"]


def test_download_that_was_taken_before_it_was_claimed_is_made_anew(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(root / "incoming" / f"{STRAY.hex}.part", mode=0o600)
    real_flock = fcntl.flock

    def collect_first(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real_flock)
        assert len(places(gc(store, NOW + 10**8))) == 1
        real_flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", collect_first)
    with Partial(root, STRAY) as partial:
        assert os.fstat(partial.fd).st_nlink == 1
        os.write(partial.fd, b"x")
    assert (root / "incoming" / f"{STRAY.hex}.part").read_bytes() == b"x"


@pytest.mark.parametrize("step", ["sealed_copy", "observe_signed", "read_facts"])
@pytest.mark.parametrize("mode", ["sealed-memfd", "ro-store"])
def test_model_that_is_being_loaded_lives_on(root: Path, monkeypatch: pytest.MonkeyPatch, step: str, mode: str) -> None:
    """Its entry goes in the middle of the load, and a collection comes."""
    with ModelStore.open(root) as other:
        put(other)
        original = getattr(store_module, step)

        def interrupt(*args: object, **kwargs: object) -> object:
            (root / "models/demo.json").unlink(missing_ok=True)
            gc(other)
            return original(*args, **kwargs)

        monkeypatch.setattr(store_module, step, interrupt)
        with (
            ModelStore.open(root, facts_of=store_module.read_facts) as store,
            store.open_verified("demo", TRUSTED, seal_mode=mode) as opened,  # type: ignore[arg-type]
        ):
            if (mode, step) != ("ro-store", "sealed_copy"):
                assert tree(root) == set()
            assert os.pread(opened.file, 2**24, 0) == MODEL


# --- at the same time -------------------------------------------------------------------------------------------------


def import_and_verify(root: Path, name: str, rounds: int) -> None:
    """The entry exists from its first import on, so that the model must verify whenever it is looked at."""
    with ModelStore.open(root) as store:
        for _ in range(rounds):
            put(store, name)
            assert store.verify(name, TRUSTED).digest == DIGEST


def import_and_remove(root: Path, rounds: int) -> None:
    """The same blob under a name of its own that comes and goes: left alone, its files go with it."""
    with ModelStore.open(root) as store:
        for _ in range(rounds):
            put(store, f"passing-{os.getpid()}")
            store.remove(f"passing-{os.getpid()}")


def collect_until(root: Path, done: Callable[[], bool]) -> int:
    rounds = 0
    with ModelStore.open(root) as store:
        while not done():
            litter(root)
            gc(store)
            rounds += 1
    return rounds


@pytest.mark.parametrize("named", [False, True], ids=["nameless", "named"])
def test_collections_between_imports_of_one_blob_by_threads_lose_nothing(
    root: Path, request: pytest.FixtureRequest, named: bool
) -> None:
    if named:
        request.getfixturevalue("without_nameless_files")
    ModelStore.open(root).close()
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            import_and_verify(root, name, 15)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"m{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    assert collect_until(root, lambda: not any(thread.is_alive() for thread in threads)) > 0
    assert failures == []
    with ModelStore.open(root) as store:
        gc(store, NOW + 10**8)
        assert store.check() == ()
        assert store.entries() == ("m0", "m1", "m2")
        assert len(tree(root)) == 5


def test_collections_between_imports_of_one_blob_by_processes_lose_nothing(root: Path) -> None:
    ModelStore.open(root).close()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=import_and_verify, args=(root, f"m{number}", 15)) for number in range(2)]
    workers += [context.Process(target=import_and_remove, args=(root, 15)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert collect_until(root, lambda: not any(worker.is_alive() for worker in workers)) > 0
    finally:
        for worker in workers:
            worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with ModelStore.open(root) as store:
        gc(store, NOW + 10**8)
        assert store.check() == ()
        assert store.entries() == ("m0", "m1")


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def paddock(tmp_path: Path, root: Path) -> Callable[..., int]:
    root.symlink_to(tmp_path / "state" / "models")
    (tmp_path / "state" / "models").mkdir(parents=True, mode=0o700)
    settings = tmp_path / "paddock.toml"
    settings.write_text(f'state_dir = "{tmp_path / "state"}"\nruntime_dir = "{tmp_path / "run"}"\n')
    return lambda *words: main(["models", *words, "--config", str(settings)])


def test_operator_sees_what_goes_before_it_goes(
    root: Path, paddock: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert paddock("check") == 0
    litter(root)
    drop(root / "notes")
    assert paddock("check") == 1
    capsys.readouterr()
    assert paddock("gc", "--dry-run") == 0
    would = capsys.readouterr().out
    assert (root / "blobs/sha256" / STRAY.hex).exists()
    assert paddock("gc") == 0
    assert capsys.readouterr().out == would.replace("would remove", "removed")
    assert f"would remove blobs/sha256/{STRAY.hex}  5 bytes  unreferenced\n" in would
    assert "left notes: not the store's\n" in would
    assert would.endswith("would remove 6 files, 30 bytes\n")  # the download is young by today's clock
    assert paddock("check") == 0


def test_model_that_was_collected_under_a_reader_is_refused_and_not_misread(root: Path, store: ModelStore) -> None:
    put(store)
    entry = (root / "models/demo.json").read_bytes()
    (root / "models/demo.json").unlink()
    gc(store)
    drop(root / "models/demo.json", entry)
    with pytest.raises(Refused, match="unsigned"):
        store.open_verified("demo", TRUSTED)
