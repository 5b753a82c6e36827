"""What ``test_verity.py`` looks at, done inside a guest whose ``/dev/vda`` is ext4 with fs-verity.

Each check gives what happened; the test says what should have. Prints one JSON object.
"""

import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

from appliance.core.refusals import PaddockError
from appliance.core.values import Digest
from appliance.models import verity
from appliance.models.store import ModelStore
from appliance.validator.reading import read_facts
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, signed

DISK: Final = Path("/disk")
DEVICE: Final = Path("/dev/vda")
BYTES: Final = bytes(number * 7 % 251 for number in range(600_001))
MODEL: Final = small_model_bytes("demo", n_bytes=1_000_000)
OTHER: Final = small_model_bytes("demo", n_bytes=1_000_000, fill=b"\x02")
BLOCK: Final = 4096
SHA512: Final = 2


def said(action: Callable[[], object]) -> str:
    """How an action ended: an error's name, a refusal's detail, or what it gave."""
    try:
        result = action()
    except PaddockError as error:
        return f"{type(error).__name__}: {error.detail}"
    except OSError as error:
        return os.strerror(error.errno or 0)
    return str(result)


def with_verity(path: Path, data: bytes) -> int:
    """A file with fs-verity, and a descriptor of it."""
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    verity.enable(fd)
    return fd


def forget_cached_pages() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def change_below(path: Path, offset: int) -> None:
    """Changes one byte of a file on the device, where the file system does not see it."""
    os.sync()
    with path.open("rb") as file:
        answer = fcntl.ioctl(file, 1, struct.pack("i", offset // BLOCK))  # FIBMAP
    place = struct.unpack("i", answer)[0] * BLOCK + offset % BLOCK
    device = os.open(DEVICE, os.O_RDWR)
    old = os.pread(device, 1, place)
    os.pwrite(device, bytes([old[0] ^ 1]), place)
    os.fsync(device)
    os.close(device)
    forget_cached_pages()


def mapped_reader(fd: int, offset: int) -> str:
    """What becomes of a process, such as a runner, that maps the file and touches one byte."""
    child = os.fork()
    if not child:
        os._exit(mmap.mmap(fd, 0, prot=mmap.PROT_READ)[offset] and 0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"


def put(store: ModelStore, data: bytes = MODEL) -> str:
    fd = memory_file(data)
    try:
        return said(lambda: store.import_model(fd, "demo", signed(data), TRUSTED).digest)
    finally:
        os.close(fd)


def load(store: ModelStore) -> str:
    def opened() -> str:
        with store.open_verified("demo", TRUSTED, seal_mode="verity") as model:
            return f"{model.seal_mode} {model.model.digest}"

    return said(opened)


def hashings(store: ModelStore) -> tuple[str, int]:
    """A load, and how many times it hashed the model."""
    with mock.patch.object(verity, "observe_signed", wraps=verity.observe_signed) as counted:
        return load(store), counted.call_count


def blob(root: Path, digest: Digest) -> Path:
    return root / "blobs/sha256" / digest.hex


def replace(root: Path, data: bytes, *, sealed: bool) -> None:
    """Puts another file where the model's is, as somebody could who may write in the store."""
    other = root.with_name("other")
    if sealed:
        os.close(with_verity(other, data))
    else:
        other.write_bytes(data)
    other.chmod(0o444)
    other.rename(blob(root, Digest.of(MODEL)))


# --- the checks -------------------------------------------------------------------------------------------------------


def file_is_measured() -> list[str]:
    sizes = (0, 1, BLOCK, BLOCK + 1, 128 * BLOCK, len(BYTES))
    found = []
    for size in sizes:
        fd = with_verity(DISK / f"measured-{size}", BYTES[:size])
        found.append(verity.measure(fd).hex())
        os.close(fd)
    return found


def file_cannot_be_changed() -> list[str]:
    path = DISK / "fixed"
    fd = with_verity(path, BYTES)
    path.chmod(0o666)
    return [
        said(lambda: os.open(path, os.O_RDWR)),
        said(lambda: os.open(path, os.O_WRONLY | os.O_APPEND)),
        said(lambda: os.truncate(path, 1)),
        said(lambda: path.write_bytes(b"")),
        said(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR)),
        said(lambda: mmap.mmap(fd, 0, prot=mmap.PROT_WRITE)),
    ]


def block_was_changed_below() -> dict[str, object]:
    path = DISK / "changed"
    fd = with_verity(path, BYTES)
    before = verity.measure(fd)
    change_below(path, 100 * BLOCK + 5)
    return {
        "read": said(lambda: os.pread(fd, BLOCK, 100 * BLOCK)),
        "mapped": mapped_reader(fd, 100 * BLOCK),
        "elsewhere": os.pread(fd, BLOCK, 99 * BLOCK) == BYTES[99 * BLOCK : 100 * BLOCK],
        "measured the same": verity.measure(fd) == before,
    }


def model_is_imported_and_loaded() -> dict[str, object]:
    with ModelStore.open(DISK / "store", with_verity=True) as store:
        found: dict[str, object] = {"import": put(store), "first": hashings(store), "second": hashings(store)}
        path = blob(DISK / "store", Digest.of(MODEL))
        found |= {"check": store.check(), "mode": oct(path.stat().st_mode), "write": said(lambda: path.open("r+b"))}
    with ModelStore.open(DISK / "store") as store:
        return found | {"another process": hashings(store)}


def model_was_replaced() -> dict[str, object]:
    root = DISK / "replaced"
    found: dict[str, object] = {}
    with ModelStore.open(root, with_verity=True) as store:
        found["before"] = put(store), load(store)
        replace(root, MODEL, sealed=False)
        found["same bytes without verity"] = load(store)
        replace(root, OTHER, sealed=True)
        found["other bytes with verity"] = load(store)
        replace(root, OTHER, sealed=False)
        found["other bytes without verity"] = load(store)
        replace(root, MODEL, sealed=True)
        found["same bytes with verity"] = hashings(store)
        with mock.patch.object(verity, "_ENABLE_ARGUMENT", struct.pack("=III116x", 1, SHA512, BLOCK)):
            replace(root, MODEL, sealed=True)
        found["same bytes with another hash"] = load(store)
    return found


def model_was_changed_below() -> dict[str, object]:
    root = DISK / "struck"
    path = blob(root, Digest.of(MODEL))
    offset = len(MODEL) - 5000
    with ModelStore.open(root, with_verity=True) as store:
        found: dict[str, object] = {"before": (put(store), load(store))}
        change_below(path, offset)
        with store.open_verified("demo", TRUSTED, seal_mode="verity") as opened:
            found["a runner of a known model"] = mapped_reader(opened.file, offset)
        change_below(path, 0)
        found["header of a known model"] = load(store)
    with ModelStore.open(root, with_verity=True) as store:
        found["unknown model"] = load(store)
        found["imported again"] = put(store), load(store)
    return found


def model_was_imported_without_verity() -> dict[str, object]:
    root = DISK / "plain"
    with ModelStore.open(root) as store:
        found: dict[str, object] = {"import": put(store), "load": load(store)}
    with ModelStore.open(root, with_verity=True) as store:
        return found | {"imported again": put(store), "load again": load(store)}


def somebody_may_still_write() -> dict[str, object]:
    root = DISK / "busy"
    kept: list[int] = []

    def facts_and_a_writer(fd: int) -> Any:
        kept.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
        return read_facts(fd)

    with ModelStore.open(root, with_verity=True, facts_of=facts_and_a_writer) as store:
        return {"import": put(store), "entries": store.entries(), "check": store.check()}


def file_system_without_verity() -> dict[str, object]:
    with ModelStore.open(Path("/dev/shm/store")) as store:
        found: dict[str, object] = {"import": put(store), "load": load(store)}
    with ModelStore.open(Path("/dev/shm/store"), with_verity=True) as store:
        return found | {"import with verity": put(store)}


def ordinary_user() -> str:
    home = DISK / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)
    reading, writing = os.pipe()
    if not os.fork():
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        with ModelStore.open(home / "store", with_verity=True) as store:
            os.write(writing, f"{put(store)} {load(store)}".encode())
        os._exit(0)
    os.close(writing)
    os.wait()
    return os.read(reading, 4096).decode()


def seconds_to_load() -> list[float]:
    """Of 8 MB, first and again: for people to look at."""
    data = small_model_bytes("large", n_bytes=8_000_000)
    with ModelStore.open(DISK / "timed", with_verity=True) as store:
        put(store, data)
        took = []
        for _ in range(2):
            began = time.perf_counter()
            load(store)
            took.append(round(time.perf_counter() - began, 4))
    return took


CHECKS: Final[tuple[Callable[[], object], ...]] = (
    file_is_measured,
    file_cannot_be_changed,
    block_was_changed_below,
    model_is_imported_and_loaded,
    model_was_replaced,
    model_was_changed_below,
    model_was_imported_without_verity,
    somebody_may_still_write,
    file_system_without_verity,
    ordinary_user,
    seconds_to_load,
)


def main() -> None:
    DISK.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(str(DEVICE).encode(), str(DISK).encode(), b"ext4", 0, None):
        raise OSError(ctypes.get_errno(), "mounting the disk")
    DISK.chmod(0o755)
    print(json.dumps({check.__name__: check() for check in CHECKS}))
