"""fs-verity for real, in a guest with Debian's own kernel: nothing that was not verified is ever read.

All checks run in one guest (``tests.support.verity_checks``), since it is the booting that takes time.
"""

import json
import os
import shutil
import struct
import subprocess
from hashlib import sha256
from typing import Any

import pytest

from appliance.core.values import Digest
from tests.support import guest
from tests.support.verity_checks import BLOCK, BYTES, MODEL, OTHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DIGEST = str(Digest.of(MODEL))
LOADED = f"verity {DIGEST}"
MISSING = "Refused: verity-missing: the file was stored without fs-verity: import the model again"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lacking = guest.missing() or (None if shutil.which("mkfs.ext4") else "there is no mkfs.ext4")
    if lacking:
        pytest.skip(lacking)
    place = tmp_path_factory.mktemp("guest")
    disk = place / "disk"
    disk.touch()
    os.truncate(disk, 64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "verity", "-b", str(BLOCK), disk], check=True, timeout=30)
    script = "from tests.support import verity_checks\nverity_checks.main()\n"
    ended = guest.run(script, place, disks=[disk], modules=["sha512_generic"], timeout_seconds=220)
    assert ended.status == 0, ended.output
    seen: dict[str, Any] = json.loads(ended.output)
    return seen


def measurement(data: bytes) -> str:
    """Of a file, by Linux, Documentation/filesystems/fsverity.rst: Merkle tree, then the descriptor's SHA-256."""
    level = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    while len(level) > 1:
        hashes = b"".join(sha256(block.ljust(BLOCK, b"\0")).digest() for block in level)
        level = [hashes[start : start + BLOCK] for start in range(0, len(hashes), BLOCK)]
    root = sha256(level[0].ljust(BLOCK, b"\0")).digest() if level else bytes(32)
    return sha256(struct.pack("<BBBBIQ64s32x144x", 1, 1, 12, 0, 0, len(data), root)).hexdigest()


def test_measurement_is_that_of_the_bytes(found: dict[str, Any]) -> None:
    sizes = (0, 1, BLOCK, BLOCK + 1, 128 * BLOCK, len(BYTES))
    assert found["file_is_measured"] == [measurement(BYTES[:size]) for size in sizes]


def test_sealed_file_is_not_changed_even_by_root(found: dict[str, Any]) -> None:
    said = found["file_cannot_be_changed"]
    assert said == ["Operation not permitted"] * 5 + ["Permission denied"]


def test_block_changed_below_the_file_system_is_never_read(found: dict[str, Any]) -> None:
    seen = found["block_was_changed_below"]
    assert seen == {"read": "Input/output error", "mapped": "SIGBUS", "elsewhere": True, "measured the same": True}


def test_sealed_model_is_hashed_once_by_each_process(found: dict[str, Any]) -> None:
    seen = found["model_is_imported_and_loaded"]
    assert (seen["import"], seen["first"], seen["second"]) == (DIGEST, [LOADED, 1], [LOADED, 0])
    assert seen["another process"] == [LOADED, 1]
    assert (seen["check"], seen["mode"], seen["write"]) == ([], "0o100444", "Operation not permitted")


def test_replaced_file_is_not_loaded(found: dict[str, Any]) -> None:
    seen = found["model_was_replaced"]
    assert seen["before"] == [DIGEST, LOADED]
    assert seen["same bytes without verity"] == seen["other bytes without verity"] == MISSING
    assert (
        seen["other bytes with verity"] == f"Refused: digest-mismatch: the bytes are {Digest.of(OTHER)}, not {DIGEST}"
    )
    assert seen["same bytes with another hash"] == MISSING


def test_same_bytes_are_known_wherever_they_lie(found: dict[str, Any]) -> None:
    assert found["model_was_replaced"]["same bytes with verity"] == [LOADED, 0]


def test_model_changed_below_the_file_system_reaches_no_runner(found: dict[str, Any]) -> None:
    seen = found["model_was_changed_below"]
    assert seen["before"] == [DIGEST, LOADED]
    assert seen["a runner of a known model"] == "SIGBUS"
    assert seen["header of a known model"] == "Fault: opening a model: EIO"
    assert seen["unknown model"] == "Fault: opening a model: EIO"


def test_importing_again_heals_a_changed_model(found: dict[str, Any]) -> None:
    assert found["model_was_changed_below"]["imported again"] == [DIGEST, LOADED]


def test_model_imported_without_verity_is_refused_until_imported_again(found: dict[str, Any]) -> None:
    seen = found["model_was_imported_without_verity"]
    assert (seen["import"], seen["load"]) == (DIGEST, MISSING)
    assert (seen["imported again"], seen["load again"]) == (DIGEST, LOADED)


def test_file_that_somebody_may_still_write_is_not_imported(found: dict[str, Any]) -> None:
    seen = found["somebody_may_still_write"]
    assert seen == {"import": "Fault: importing demo: ETXTBSY", "entries": [], "check": []}


def test_file_system_without_verity_is_named(found: dict[str, Any]) -> None:
    seen = found["file_system_without_verity"]
    needed = "Refused: seal-mode-unsupported: fs-verity needs one of btrfs, ext4, f2fs, and the store is on tmpfs"
    assert seen == {"import": DIGEST, "load": needed, "import with verity": needed}


def test_ordinary_user_needs_no_privilege(found: dict[str, Any]) -> None:
    assert found["ordinary_user"] == f"{DIGEST} {LOADED}"
