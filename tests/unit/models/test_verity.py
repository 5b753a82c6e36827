"""Where fs-verity is not there, a model is refused and told why; what was learnt is not believed of other bytes.

The real thing needs a kernel that has it: ``tests/integration/models/test_verity.py``.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.manifest import WHOLE, Form, Statement
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.models import verity
from appliance.models.descriptor import Wholes
from appliance.models.store import ModelStore
from appliance.models.verity import Receipts
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, signed, tree

MODEL = small_model_bytes("demo")
MEMORY = Path("/dev/shm")


def refusal_of(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
    return caught.value.detail


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(MODEL)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def memory() -> Iterator[int]:
    """A file in memory: the kernel's own, and without fs-verity on every host."""
    fd = memory_file(MODEL)
    yield fd
    os.close(fd)


def put(store: ModelStore) -> None:
    fd = memory_file(MODEL)
    try:
        store.import_model(fd, "demo", signed(MODEL), TRUSTED)
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(MODEL)
    finally:
        os.close(fd)


def test_ordinary_file_is_refused(file: int) -> None:
    """As this host really answers, with or without fs-verity."""
    detail = refusal_of(lambda: verity.measure(file))
    assert detail.startswith(("seal-mode-unsupported: fs-verity needs", "verity-missing: "))
    assert not verity.is_enabled(file)


@pytest.mark.parametrize("ask", [verity.measure, verity.enable, verity.check_supported])
def test_file_system_that_has_none_is_named(memory: int, ask: Callable[[int], object]) -> None:
    assert refusal_of(lambda: ask(memory)).startswith("seal-mode-unsupported: fs-verity needs one of btrfs, ext4, f2fs")


def test_answer_of_a_file_system_that_is_not_the_kernels_is_not_asked_for(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in user space could say what it likes of its files."""
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, *_arguments: asked.append(fd))
    assert refusal_of(lambda: verity.measure(memory)).startswith("seal-mode-unsupported")
    assert asked == []


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOPKG, errno.EINVAL])
def test_what_the_kernel_answers_is_told(file: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(number, os.strerror(number))

    def answer(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "ioctl", answer)
    monkeypatch.setattr(verity, "_file_system_of", lambda _fd: "ext4")
    detail = refusal_of(lambda: verity.measure(file))
    assert detail.startswith("seal-mode-unsupported: fs-verity needs a kernel with CONFIG_FS_VERITY")
    assert detail.endswith(f"says: {os.strerror(number)}")


def test_model_without_verity_is_not_opened_as_if_it_had_it(tmp_path: Path) -> None:
    with ModelStore.open(tmp_path / "store") as store:
        put(store)
        before = len(os.listdir("/proc/self/fd"))
        detail = refusal_of(lambda: store.open_verified("demo", TRUSTED, seal_mode="verity"))
        assert detail.startswith(("seal-mode-unsupported", "verity-missing"))
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="there is no file system in memory")
def test_import_that_cannot_be_sealed_reads_nothing_and_leaves_nothing() -> None:
    root = MEMORY / f"paddock-test-{os.getpid()}"
    fd = memory_file(MODEL)
    try:
        with ModelStore.open(root, with_verity=True) as store:
            detail = refusal_of(lambda: store.import_model(fd, "demo", signed(MODEL), TRUSTED))
        assert detail == "seal-mode-unsupported: fs-verity needs one of btrfs, ext4, f2fs, and the store is on tmpfs"
        assert tree(root) == set()
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
        os.system(f"rm -r '{root}'")


# --- receipts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often bytes were hashed, where a file's measurement is what the test says."""
    calls: list[int] = []
    real = verity.observe_signed

    def hashing(*arguments: object) -> object:
        calls.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(verity, "observe_signed", hashing)
    monkeypatch.setattr(verity, "measure", lambda fd: Digest.of(os.pread(fd, 2**20, 0)).hex.encode())
    return calls


def statement(form: Form) -> Statement:
    return Statement(form=form, resources=())


def test_known_measurement_is_not_hashed_again(memory: int, counted: list[int]) -> None:
    receipts = Receipts()
    first = receipts.observe(memory, [statement(WHOLE)], Wholes())
    assert receipts.observe(memory, [statement(WHOLE)], Wholes()) == first
    assert first.digest == Digest.of(MODEL)
    assert len(counted) == 1


def test_receipt_is_not_believed_of_another_measurement(memory: int, counted: list[int]) -> None:
    receipts = Receipts()
    receipts.observe(memory, [statement(WHOLE)], Wholes())
    os.pwrite(memory, b"other", 100)
    assert receipts.observe(memory, [statement(WHOLE)], Wholes()).digest != Digest.of(MODEL)
    assert len(counted) == 2


def test_receipt_says_nothing_of_shards_that_were_not_hashed(memory: int, counted: list[int]) -> None:
    receipts, shards = Receipts(), Form("sha256", 1000)
    receipts.observe(memory, [statement(WHOLE)], Wholes())
    assert shards in receipts.observe(memory, [statement(WHOLE), statement(shards)], Wholes()).hashes
    receipts.observe(memory, [statement(shards)], Wholes())
    receipts.observe(memory, [statement(WHOLE)], Wholes())
    assert len(counted) == 2


def test_memory_of_receipts_is_bounded(memory: int, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Receipts, "MAX", 2)
    receipts = Receipts()
    for number in (1, 2, 3, 3, 2):
        os.pwrite(memory, bytes([number]), 0)
        receipts.observe(memory, [statement(WHOLE)], Wholes())
    assert len(counted) == 4
