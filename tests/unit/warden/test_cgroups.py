"""Control groups for runners: what is not ours stays untouched, and no runner is in a group without limits.

The tree is a folder of plain files here; ``tests/integration/test_control_groups.py`` asks the kernel.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from appliance import assemble
from appliance.core.refusals import Fault, Misconfigured
from appliance.settings import Settings
from appliance.warden import cgroups
from appliance.warden.cgroups import NotDelegated, RunnerGroups, Seen, own_path, require_ours, strangers

SELF = os.getpid()
SOUND = Seen(
    path=Path("/sys/fs/cgroup/app.slice/paddock.service"),
    is_host_root=False,
    is_namespace_root=False,
    is_marked=True,
    is_own=False,
    is_writable=True,
    controllers=frozenset({"cpu", "memory", "pids"}),
    parents={10: 1, 11: 10, 12: 10, 13: 11},
)


def changed(**fields: object) -> Seen:
    return Seen(**{**SOUND.__dict__, **fields})  # type: ignore[arg-type]


# --- what is ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        ("is_marked", SOUND.path),
        ("is_own", Path("/sys/fs/cgroup/alice")),
        ("is_namespace_root", Path("/sys/fs/cgroup")),
    ],
)
def test_delegated_cgroup_is_ours(owner: str, path: Path) -> None:
    require_ours(changed(**{"is_marked": False, owner: True, "path": path}), pid=11)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"is_host_root": True}, "root of the host's tree"),
        ({"is_host_root": True, "is_namespace_root": True}, "root of the host's tree"),
        ({"is_marked": False}, "not delegated"),
        ({"is_marked": False, "is_own": True}, "not delegated"),
        ({"is_writable": False}, "cannot be written to"),
        ({"controllers": frozenset({"memory"})}, "no controller pids"),
        ({"controllers": frozenset({"pids", "hugetlb"})}, "no controller memory"),
        ({"controllers": frozenset()}, "no controller memory, pids"),
        ({"parents": {10: 1, 11: 10, 99: 1}}, "holds 1 processes that are not ours"),
        ({"parents": {11: 10, 12: 10, 9: 8}}, "holds 2 processes that are not ours"),
        ({"parents": {10: 1, 11: 10, 0: 0}}, "holds 1 processes that are not ours"),
    ],
)
def test_cgroup_that_is_not_ours_is_left_alone(fields: dict[str, object], why: str) -> None:
    with pytest.raises(NotDelegated, match=why):
        require_ours(changed(**fields), pid=11)


def test_shell_that_started_us_in_its_terminal_is_a_stranger() -> None:
    """A desktop puts a terminal, its shell and all they start into one cgroup of the user's: not ours to divide."""
    assert strangers({20: 2, 21: 20, 22: 21, 23: 22}, pid=23) == {20, 21}
    assert strangers({22: 21, 23: 22, 24: 22, 25: 24}, pid=23) == frozenset()


def test_orphan_does_not_take_every_other_orphan_for_its_own() -> None:
    assert strangers({5: 1, 6: 1}, pid=5) == {6}


CGROUP2 = "30 25 0:27 {root} {point} rw,nosuid - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("cgroup", "root", "point", "path"),
    [
        ("0::/a/b\n", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/a/b"),
        ("4:memory:/x\n0::/\n", "/", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
        ("0::/docker/1/in\n", "/docker/1", "/sys/fs/cgroup", "/sys/fs/cgroup/in"),
    ],
)
def test_own_cgroup_is_found_where_it_is_mounted(cgroup: str, root: str, point: str, path: str) -> None:
    assert own_path(cgroup, CGROUP2.format(root=root, point=point)) == (Path(path), Path(point))


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [
        ("", CGROUP2.format(root="/", point="/c")),
        ("4:memory:/x\n", CGROUP2.format(root="/", point="/c")),
        ("0::/\n", ""),
        ("0::/\n", "30 25 0:27 / /c rw - cgroup cgroup rw,memory\n"),
        ("0::/../../x\n", CGROUP2.format(root="/", point="/c")),
        ("0::/b\n", CGROUP2.format(root="/a", point="/c")),
    ],
)
def test_host_without_a_tree_that_holds_us_delegates_nothing(cgroup: str, mountinfo: str) -> None:
    with pytest.raises(NotDelegated):
        own_path(cgroup, mountinfo)


# --- the tree ---------------------------------------------------------------------------------------------------------


class Tree:
    """A container's view: this process and another of its kind in the root of the namespace."""

    def __init__(self, directory: Path) -> None:
        self.top = directory / "cgroup"
        self.proc = directory / "proc"
        self.top.mkdir()
        self.write("cgroup.type", "domain")
        self.write("cgroup.controllers", "cpu memory pids")
        self.write("cgroup.subtree_control", "")
        self.write("cgroup.procs", f"{SELF}\n")
        (self.proc / "self").mkdir(parents=True)
        self.process(SELF, os.getppid())
        (self.proc / "self/mountinfo").write_text(CGROUP2.format(root="/", point=self.top))
        self.enter("/")

    def write(self, name: str, text: str) -> None:
        (self.top / name).write_text(text)

    def process(self, pid: int, parent: int) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "stat").write_text(f"{pid} (a) S 1 2) S {parent} 0 0")

    def enter(self, name: str) -> None:
        (self.proc / "self/cgroup").write_text(f"0::{name}\n")

    def find(self) -> RunnerGroups:
        return RunnerGroups.find(proc=self.proc)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_warden_moves_to_a_leaf_before_controllers_are_shared_out(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []
    write = cgroups._write

    def noted(path: Path, text: str) -> None:
        order.append((str(path.relative_to(tree.top)), text))
        write(path, text)

    monkeypatch.setattr(cgroups, "_write", noted)
    assert tree.find().base == tree.top
    assert order == [("paddock-main/cgroup.procs", str(SELF)), ("cgroup.subtree_control", "+memory +pids")]


def test_warden_that_is_started_again_finds_itself_in_its_leaf(tree: Tree) -> None:
    tree.find()
    tree.enter("/paddock-main")
    tree.write("cgroup.procs", "")
    assert tree.find().base == tree.top


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.write("cgroup.controllers", "hugetlb"),
        lambda tree: (tree.top / "cgroup.type").unlink(),
        lambda tree: tree.write("cgroup.procs", f"{SELF}\n4000000\n"),
        lambda tree: tree.write("cgroup.procs", f"{SELF}\n0\n"),
        lambda tree: (tree.top / "cgroup.controllers").unlink(),
        lambda tree: (tree.proc / "self/mountinfo").unlink(),
    ],
    ids=["no memory", "host's root", "unseen process", "process of another namespace", "no list", "no proc"],
)
def test_nothing_is_changed_where_nothing_is_ours(tree: Tree, spoil: Callable[[Tree], object]) -> None:
    spoil(tree)
    with pytest.raises(NotDelegated):
        tree.find()
    assert not (tree.top / "paddock-main").exists()
    assert (tree.top / "cgroup.subtree_control").read_text() == ""


def test_tree_that_the_kernel_will_not_divide_is_as_good_as_none(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(cgroups, "_write", refuse)
    monkeypatch.setattr(cgroups, "_BETWEEN_MOVES_SECONDS", 0)
    with pytest.raises(NotDelegated, match="cannot be divided"):
        tree.find()


def test_group_has_its_limits_before_anybody_is_in_it(tree: Tree) -> None:
    groups = tree.find()
    path = tree.top / "runner-a"
    with pytest.raises(Fault):  # a plain folder has no cgroup.procs: nobody could enter it
        groups.make("a", memory_bytes=2**30)
    found = {file.name: file.read_text() for file in path.iterdir()}
    assert found == {
        "memory.max": str(2**30 + cgroups.KERNEL_BYTES),
        "pids.max": "300",
        "memory.oom.group": "1",
        "memory.swap.max": "0",
    }


@pytest.mark.parametrize("refused", ["memory.max", "pids.max", "memory.oom.group"])
def test_runner_without_one_of_its_limits_is_not_started(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    groups = tree.find()
    write = cgroups._write

    def refuse(path: Path, text: str) -> None:
        if path.name == refused:
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    monkeypatch.setattr(cgroups, "_write", refuse)
    with pytest.raises(Fault, match="no control group for runner a"):
        groups.make("a", memory_bytes=2**30)


def test_what_a_former_warden_left_behind_is_taken_away(tree: Tree) -> None:
    groups = tree.find()
    (tree.top / "runner-former").mkdir()
    (tree.top / "other").mkdir()
    with pytest.raises(Fault):
        groups.make("a", memory_bytes=2**30)
    assert not (tree.top / "runner-former").exists()
    assert (tree.top / "other").exists()
    assert (tree.top / "paddock-main").exists()


def test_required_control_groups_that_are_absent_stop_the_warden(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> RunnerGroups:
        raise NotDelegated("nothing is")

    monkeypatch.setattr(RunnerGroups, "find", nothing)
    config = Settings(state_dir=Path("/nonexistent"), runtime_dir=Path("/nonexistent"))
    assert assemble._runner_groups(config) is None
    required = msgspec.structs.replace(config, sandbox=msgspec.structs.replace(config.sandbox, cgroup="required"))
    with pytest.raises(Misconfigured, match="nothing is"):
        assemble._runner_groups(required)
