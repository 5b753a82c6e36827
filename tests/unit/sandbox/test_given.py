"""What a runner in a unit takes as evidence, on made-up texts of /proc: each lie of a weakened unit is seen as one."""

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from appliance.sandbox import given, layers
from appliance.sandbox.given import NotGiven

STATUS = """\
Name:\tpython3
Uid:\t61820\t61820\t61820\t61820
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t39
"""
PRIVATE_USERS = "         0          0          1\n     61820      61820          1\n"
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0
"""
NET_UNIX = "Num       RefCount Protocol Flags    Type St Inode Path\n"
MOUNTINFO = """\
185 133 0:43 /paddock/runner-root / ro,nosuid,nodev,noexec shared:31 master:6 - tmpfs tmpfs rw,size=4936820k,mode=755
186 185 0:59 / /dev ro,nosuid,noexec shared:32 - tmpfs tmpfs rw,size=4096k,nr_inodes=65536,mode=755
189 186 0:58 / /dev/mqueue rw,nosuid,nodev,noexec,relatime shared:35 - mqueue mqueue rw
193 185 0:60 / /proc rw,nosuid,nodev,noexec,relatime shared:39 - proc proc rw,hidepid=invisible,subset=pid
199 185 0:45 /lib/paddock /usr/lib/paddock ro,nosuid,relatime shared:45 master:11 - ext4 /dev/vda rw,discard
"""
FOLDERS = {
    "/": frozenset({"dev", "lib", "lib64", "proc", "usr"}),
    "/usr/lib": frozenset({"paddock", "python3.11", "x86_64-linux-gnu"}),
}
FIRST_IPC, FIRST_UTS = 4026531839, 4026531838


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the unit, whose filter refuses every family."""

    def refused(*_arguments: int) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(given.socket, "socket", refused)


def test_what_the_unit_gives_is_seen() -> None:
    given.no_new_privs(STATUS)
    given.no_capabilities(STATUS)
    given.user_namespace(PRIVATE_USERS, PRIVATE_USERS, 61820)
    given.network_namespace(NET_DEV, NET_UNIX)
    given.mount_namespace(MOUNTINFO)
    given.ipc_namespace(4026532395, MOUNTINFO)
    given.uts_namespace(4026532397)
    given.empty_root(FOLDERS, MOUNTINFO)
    given.pid_namespace(1)  # systemd 257 and later
    given.cgroup_namespace("0::/\n")


@pytest.mark.parametrize("line", [line for line in STATUS.splitlines() if line.startswith(("NoNew", "Seccomp:"))])
def test_unit_without_privileges_given_up_is_seen(line: str) -> None:
    name = line.split(":", maxsplit=1)[0]
    for lie in (STATUS.replace(line, f"{name}:\t0"), STATUS.replace(line, "")):
        with pytest.raises(NotGiven, match=r"NoNewPrivileges=|SystemCallFilter="):
            given.no_new_privs(lie)


@pytest.mark.parametrize("kind", ["Inh", "Prm", "Eff", "Bnd", "Amb"])
def test_one_capability_in_any_set_is_seen(kind: str) -> None:
    for lie in (STATUS.replace(f"Cap{kind}:\t0000", f"Cap{kind}:\t8000"), STATUS.replace(f"Cap{kind}:", "X:")):
        with pytest.raises(NotGiven, match=kind):
            given.no_capabilities(lie)


@pytest.mark.parametrize(
    ("users", "groups", "uid"),
    [
        ("0 0 4294967295\n", PRIVATE_USERS, 61820),
        (PRIVATE_USERS, "0 0 4294967295\n", 61820),
        ("0 100000 65536\n", "0 100000 65536\n", 61820),  # a container's, in which the unit has none of its own
        ("", "", 61820),
        (PRIVATE_USERS, PRIVATE_USERS, 0),
    ],
)
def test_users_of_the_host_are_seen(users: str, groups: str, uid: int) -> None:
    with pytest.raises(NotGiven):
        given.user_namespace(users, groups, uid)


def test_another_interface_or_socket_is_seen() -> None:
    with pytest.raises(NotGiven, match="eth0"):
        given.network_namespace(NET_DEV + "  eth0:       0       0\n", NET_UNIX)
    with pytest.raises(NotGiven, match="none"):
        given.network_namespace("", NET_UNIX)
    with pytest.raises(NotGiven, match="1 sockets"):
        given.network_namespace(NET_DEV, NET_UNIX + "0: 00000002 00000000 00010000 0001 01 16 /run/dbus\n")


REAL_SOCKET, REAL_SCANDIR = socket.socket, os.scandir


@pytest.mark.parametrize("family", range(46))
def test_socket_of_any_one_family_that_can_be_made_is_seen(family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that lets one family through leaves the answer to the kernel, which may have no module for it yet."""

    def filtered(asked: int, kind: int) -> socket.socket:
        if asked != family:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return REAL_SOCKET(asked, kind)

    monkeypatch.setattr(given.socket, "socket", filtered)
    with pytest.raises(NotGiven, match=f"family {family} can be made"):
        given.network_namespace(NET_DEV, NET_UNIX)


def test_socket_that_fails_for_want_of_a_right_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(given.socket, "socket", forbidden)
    with pytest.raises(NotGiven, match="another reason"):
        given.network_namespace(NET_DEV, NET_UNIX)


@pytest.mark.parametrize(
    "lie",
    [
        MOUNTINFO + "258 234 0:46 / /run rw,nosuid,nodev shared:54 master:6 - tmpfs tmpfs rw,mode=755\n",
        MOUNTINFO.replace(" / ro,nosuid,nodev,noexec", " / rw,nosuid,nodev,noexec"),
        MOUNTINFO.replace("/usr/lib/paddock ro,", "/usr/lib/paddock rw,"),
        "\n".join(MOUNTINFO.splitlines()[1:]),  # a mere chroot: its root is no mount
        "",
    ],
)
def test_root_that_is_no_mount_or_can_be_written_is_seen(lie: str) -> None:
    with pytest.raises(NotGiven):
        given.mount_namespace(lie)


@pytest.mark.parametrize(
    ("number", "mountinfo"),
    [
        (FIRST_IPC, MOUNTINFO),
        (4026532395, MOUNTINFO.replace("shared:35 -", "shared:35 master:13 -")),
        (4026532395, MOUNTINFO.replace("mqueue mqueue", "tmpfs tmpfs")),
    ],
)
def test_message_queues_of_the_host_are_seen(number: int, mountinfo: str) -> None:
    with pytest.raises(NotGiven, match="PrivateIPC="):
        given.ipc_namespace(number, mountinfo)


def test_host_name_of_the_machine_is_seen() -> None:
    with pytest.raises(NotGiven, match="ProtectHostname="):
        given.uts_namespace(FIRST_UTS)


def test_what_systemd_does_not_give_is_not_claimed() -> None:
    with pytest.raises(NotGiven, match="257"):
        given.pid_namespace(51)
    with pytest.raises(NotGiven, match="257"):
        given.cgroup_namespace("0::/system.slice/system-paddock\\x2drunner.slice/paddock-runner@0-1-0.service\n")
    with pytest.raises(NotGiven, match="257"):  # the hybrid hierarchy, where all but one are at their root
        given.cgroup_namespace("2:pids:/\n1:name=systemd:/system.slice/a.service\n0::/\n")


@pytest.mark.parametrize(
    ("path", "name"), [("/", "etc"), ("/", "home"), ("/dev", "sda"), ("/usr/lib", "ssl"), ("/tmp", "socket")]
)
def test_anything_else_in_sight_is_seen(path: str, name: str) -> None:
    with pytest.raises(NotGiven, match=f"{path} shows {name}"):
        given.empty_root(FOLDERS | {path: FOLDERS.get(path, frozenset()) | {name}}, MOUNTINFO)


@pytest.mark.parametrize("shown", [".", "inner"])
def test_folder_that_hides_its_names_but_opens_by_name_is_seen(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can list it, root aside, who is not asked here: the kernel's two answers are made up."""
    folder = tmp_path / shown
    folder.mkdir(exist_ok=True)

    def may_list(path: str) -> "os._ScandirIterator[str]":
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return REAL_SCANDIR(path)

    monkeypatch.setattr(given.os, "scandir", may_list)
    monkeypatch.setattr(given, "_CONTENTS", {str(tmp_path): frozenset()})
    with pytest.raises(NotGiven, match="cannot be listed and yet"):
        given._folders()
    monkeypatch.setattr(given.os, "access", lambda _path, _mode: False)
    assert given._folders() == {str(tmp_path): frozenset()}


@pytest.mark.parametrize("option", ["hidepid=invisible", "subset=pid"])
def test_processes_in_sight_are_seen(option: str) -> None:
    with pytest.raises(NotGiven, match="/proc shows"):
        given.empty_root(FOLDERS, MOUNTINFO.replace(option, "gid=5"))
    with pytest.raises(NotGiven, match="/proc shows"):  # the second one mounted over it, or beside it
        given.empty_root(FOLDERS, MOUNTINFO + "300 185 0:61 / /proc rw - proc proc rw\n")


def test_no_proc_is_no_evidence() -> None:
    with pytest.raises(NotGiven, match="/proc"):
        given.empty_root(FOLDERS, MOUNTINFO.replace("- proc proc", "- tmpfs proc"))


def test_unit_binds_nothing_that_the_runner_does_not_expect() -> None:
    unit = (Path(__file__).parents[3] / "systemd" / "paddock-runner@.service").read_text(encoding="utf-8")
    bound = " ".join(re.findall(r"^BindReadOnlyPaths=(.*)$", unit, re.MULTILINE)).split()
    for path in (Path(pair.rpartition(":")[2]) for pair in bound):
        assert path.name in given._CONTENTS[str(path.parent)]


def test_only_what_was_seen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, outside of any unit: whatever a command line says, most is missing, and none twice."""
    monkeypatch.setattr(layers, "memory_deny_write_execute", lambda: None)  # or it stays on for the other tests
    stack = layers.Stack(given.NOT_GIVEN)
    given.account(stack)
    given.account(stack)
    assert len(stack.on) + len(stack.degraded) == len({*stack.on, *stack.degraded}) == 11
    assert {layers.MOUNT_NAMESPACE, layers.EMPTY_ROOT, layers.CGROUP_NAMESPACE} <= {*stack.degraded}
    with pytest.raises(layers.LayerMissing, match="empty-root: / shows"):
        stack.require()


def test_memory_that_the_units_filter_leaves_executable_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.3 only the unit's filter can refuse it, and here is none."""

    def old_kernel() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(layers, "memory_deny_write_execute", old_kernel)
    with pytest.raises(NotGiven, match="MemoryDenyWriteExecute="):
        given.memory_deny_write_execute()
