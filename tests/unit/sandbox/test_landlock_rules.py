"""What Landlock is told: each rule names rights that this kernel has and that fit what stands at the path."""

import os
from pathlib import Path
from struct import unpack

import pytest

from appliance.sandbox import landlock_read
from appliance.sandbox.layers import ruleset_attributes
from appliance.sandbox.syscalls import X86_64

READ_FILE, READ_DIRECTORY, TRUNCATE, REFER = 1 << 2, 1 << 3, 1 << 14, 1 << 13


class Kernel:
    """Takes notes of a ruleset as a kernel of this ABI would see it."""

    def __init__(self, abi: int) -> None:
        self.abi = abi
        self.handled = b""
        self.rights: list[int] = []
        self.restricted = False

    def syscall(self, number: int, *arguments: object) -> int:
        if number == X86_64["landlock_create_ruleset"] and arguments[0] is None:
            return self.abi
        if number == X86_64["landlock_create_ruleset"]:
            assert isinstance(arguments[0], bytes)
            self.handled = arguments[0]
            return os.open("/", os.O_PATH)
        if number == X86_64["landlock_restrict_self"]:
            self.restricted = True
            return 0
        assert isinstance(arguments[2], bytes)
        self.rights.append(unpack("<Qi", arguments[2])[0])
        return 0


@pytest.fixture(params=[1, 2, 3, 4, 6, 7])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel(request.param)
    monkeypatch.setattr(landlock_read.libc, "syscall", one.syscall)
    return one


def test_no_rule_names_a_right_that_the_kernel_lacks(kernel: Kernel, tmp_path: Path) -> None:
    landlock_read.landlock_files(readable=["/usr"], writable=[str(tmp_path)])
    (handled,) = unpack("<Q", kernel.handled[:8])
    reading, changing = kernel.rights
    assert reading == READ_FILE | READ_DIRECTORY
    assert changing & reading == reading
    assert changing & ~handled == 0
    assert bool(changing & TRUNCATE) == (kernel.abi >= 3)
    assert not changing & REFER
    assert kernel.restricted


def test_all_that_is_handled_and_not_named_is_forbidden(kernel: Kernel, tmp_path: Path) -> None:
    """TCP and the scopes too, wherever the kernel has them."""
    landlock_read.landlock_files(readable=[], writable=[])
    assert kernel.handled == ruleset_attributes(kernel.abi)
    assert kernel.rights == []


def test_file_gets_no_right_of_a_directory(kernel: Kernel, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.touch()
    landlock_read.landlock_files(readable=[str(one)], writable=[str(one)])
    assert kernel.rights[0] == READ_FILE
    assert not kernel.rights[1] & READ_DIRECTORY


def test_path_that_is_not_there_gives_no_right_and_no_way_out(kernel: Kernel, tmp_path: Path) -> None:
    landlock_read.landlock_files(readable=[str(tmp_path / "absent")], writable=[str(tmp_path / "absent")])
    assert kernel.rights == []
    assert kernel.restricted
