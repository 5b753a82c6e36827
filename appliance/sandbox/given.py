"""What ``paddock-runner@.service`` put around a runner, found by looking.

Under systemd a runner makes no namespace: its unit does. A unit can be edited, and a setting can silently lose to
another, so nothing is believed of it. Each layer has evidence of its own in what this process sees of itself; one
without is missing, as if the host lacked it. A drop-in can take a layer away, but cannot make this module name it.

Two layers are not the unit's to give: before systemd 257 there is no pid namespace (``PrivatePIDs=``) and no cgroup
namespace (``ProtectControlGroups=private``) for a service. In the place of the first stand a user that nobody else is,
a ``/proc`` that shows no process of another user (looked at here, as part of the empty root), and the filters. Other
processes' control groups are out of sight with ``/sys``.

Trusts: the kernel's ``/proc``, which systemd mounted before this program ran.
Promises: ``account`` names as on only what was seen. What it sees of the UTS namespace is the least: it is not the one
    that the machine began with; in a container that does not say that it is no other unit's.
Not here: the layers that a runner puts on itself (``layers``, ``seccomp``); the unit (``systemd/``).
"""

import errno
import mmap
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from appliance.sandbox import layers
from appliance.sandbox.layers import Stack
from appliance.sandbox.procfs import mounts, status_fields

NOT_GIVEN: Final = frozenset({layers.PID_NAMESPACE, layers.CGROUP_NAMESPACE})
"""What systemd does not give to a service before 257: missing, said so, and allowed for this launcher."""


class NotGiven(OSError):
    """There is no evidence of a layer. The text says what was seen instead."""


def account(stack: Stack) -> None:
    """Looks for each layer that the unit owes. To be called once, by a process with one thread, while it has files."""
    stack.apply(layers.NO_NEW_PRIVS, lambda: no_new_privs(_read("status")))
    stack.apply(layers.USER_NAMESPACE, lambda: user_namespace(_read("uid_map"), _read("gid_map"), os.getuid()))
    stack.apply(layers.PID_NAMESPACE, lambda: pid_namespace(os.getpid()))
    stack.apply(layers.NETWORK_NAMESPACE, lambda: network_namespace(_read("net/dev"), _read("net/unix")))
    stack.apply(layers.MOUNT_NAMESPACE, lambda: mount_namespace(_read("mountinfo")))
    stack.apply(layers.IPC_NAMESPACE, lambda: ipc_namespace(_number("ipc"), _read("mountinfo")))
    stack.apply(layers.UTS_NAMESPACE, lambda: uts_namespace(_number("uts")))
    stack.apply(layers.CGROUP_NAMESPACE, lambda: cgroup_namespace(_read("cgroup")))
    stack.apply(layers.EMPTY_ROOT, lambda: empty_root(_folders(), _read("mountinfo")))
    stack.apply(layers.NO_CAPABILITIES, lambda: no_capabilities(_read("status")))
    stack.apply(layers.MDWE, memory_deny_write_execute)


def _read(name: str) -> str:
    return (Path("/proc/self") / name).read_text("utf-8", "surrogateescape")


def _number(namespace: str) -> int:
    """From ``ipc:[4026531839]`` (namespaces(7))."""
    return int(str(Path(f"/proc/self/ns/{namespace}").readlink()).partition("[")[2].rstrip("]"))


# --- privileges -----------------------------------------------------------------------------------------------------


def no_new_privs(status: str) -> None:
    """The unit set no-new-privs, and a filter of its own (``SystemCallFilter=``), before this program ran."""
    seen = status_fields(status)
    if seen.get("NoNewPrivs") != "1":
        raise NotGiven("the unit does not set NoNewPrivileges=")
    if seen.get("Seccomp") != "2":
        raise NotGiven("the unit has no SystemCallFilter=")


def no_capabilities(status: str) -> None:
    """All five sets are empty, the bounding set too (capabilities(7))."""
    seen = status_fields(status)
    held = [kind for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb") if seen.get(f"Cap{kind}") != "0" * 16]
    if held:
        raise NotGiven(f"the unit leaves capabilities: {', '.join(held)}")


def user_namespace(uid_map: str, gid_map: str, uid: int) -> None:
    """At most two users exist here: root, who is nobody here, and this process's own (``PrivateUsers=``)."""
    if uid == 0:
        raise NotGiven("the unit runs as root")
    for kind, table in (("users", uid_map), ("groups", gid_map)):
        mapped = sum(int(line.split()[2]) for line in table.splitlines())
        if not 1 <= mapped <= 2:
            raise NotGiven(f"{mapped} {kind} exist here (PrivateUsers=)")


def memory_deny_write_execute() -> None:
    """The kernel's own (Linux 6.3), or before that what the unit's filter refuses when it is tried."""
    try:
        layers.memory_deny_write_execute()
    except OSError:
        try:
            mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        except PermissionError:
            return
        raise NotGiven("memory can be both writable and executable (MemoryDenyWriteExecute=)") from None


# --- namespaces -----------------------------------------------------------------------------------------------------

_FIRST_IPC: Final = 0xEFFFFFFF
_FIRST_UTS: Final = 0xEFFFFFFE
"""The numbers of the namespaces that the kernel starts with (``include/linux/proc_ns.h``)."""


def pid_namespace(pid: int) -> None:
    """The first process of a service is number 1 in a namespace that was made for it."""
    if pid != 1:
        raise NotGiven("systemd before 257 has none for a service")


def network_namespace(net_dev: str, net_unix: str) -> None:
    """No interface but ``lo``, and nobody's socket: a namespace that another process uses has some, systemd's has
    dozens. And no socket can be made, of whatever family (``RestrictAddressFamilies=none``)."""
    interfaces = {line.partition(":")[0].strip() for line in net_dev.splitlines()[2:]}
    if interfaces != {"lo"}:
        raise NotGiven(f"there are the interfaces {', '.join(sorted(interfaces)) or '(none)'} (PrivateNetwork=)")
    if others := net_unix.splitlines()[1:]:
        raise NotGiven(f"there are {len(others)} sockets of others (PrivateNetwork=)")
    for family in _FAMILIES:
        _require_no_socket(family)


_FAMILIES: Final = range(64)
"""Linux 6.18 has 46 (``AF_MAX`` in ``include/linux/socket.h``). Some, as AF_VSOCK, no network namespace holds."""

_NO_FLAG: Final = 0x10
"""No flag of socket(2). The kernel objects to it before it looks at the family, or loads a module for one."""


def _require_no_socket(family: int) -> None:
    """A filter answers before the kernel does, which never says EAFNOSUPPORT to a flag that there is not."""
    try:
        socket.socket(family, socket.SOCK_DGRAM | _NO_FLAG).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return
        if error.errno != errno.EINVAL:
            raise NotGiven(f"making a socket fails for another reason: {error.strerror}") from error
    raise NotGiven(f"a socket of family {family} can be made (RestrictAddressFamilies=)")


def mount_namespace(mountinfo: str) -> None:
    """The root is a mount, and nothing that is mounted here can be written but what a process is made of itself.

    The service manager's namespace always has more: its ``/run`` and ``/tmp`` cannot be read-only.
    """
    seen = mounts(mountinfo)
    if "/" not in {mount.point for mount in seen}:
        raise NotGiven("the root is not a mount (RootDirectory=, ProtectSystem=)")
    writable = [mount.point for mount in seen if not mount.read_only and mount.kind not in _WRITABLE_KINDS]
    if writable:
        raise NotGiven(f"these can be written: {', '.join(sorted(writable)[:5])} (RootDirectory=, ProtectSystem=)")


def ipc_namespace(number: int, mountinfo: str) -> None:
    """Not the machine's first, and ``/dev/mqueue`` was mounted for this unit (``PrivateIPC=``); else it is a copy of
    the service manager's, which mountinfo names as its master (mount_namespaces(7))."""
    queues = [mount for mount in mounts(mountinfo) if mount.kind == "mqueue"]
    if number == _FIRST_IPC or not queues or any(mount.is_a_copy for mount in queues):
        raise NotGiven("it is the service manager's (PrivateIPC=)")


def uts_namespace(number: int) -> None:
    """Not the machine's first (``ProtectHostname=``)."""
    if number == _FIRST_UTS:
        raise NotGiven("it is the machine's (ProtectHostname=)")


def cgroup_namespace(cgroup: str) -> None:
    """In one of its own a process is at the root of every hierarchy (cgroup_namespaces(7))."""
    paths = {line.split(":", 2)[2] for line in cgroup.splitlines()}
    if paths != {"/"}:
        raise NotGiven("systemd before 257 has none for a service")


# --- files ----------------------------------------------------------------------------------------------------------

_WRITABLE_KINDS: Final = frozenset({"proc", "devpts", "mqueue"})
_CONTENTS: Final[Mapping[str, frozenset[str]]] = {
    "/": frozenset({"dev", "lib", "lib64", "proc", "usr"}),
    "/dev": frozenset({"full", "null", "ptmx", "random", "tty", "urandom", "zero"}),
    "/lib": frozenset({"x86_64-linux-gnu"}),
    "/lib64": frozenset({"ld-linux-x86-64.so.2"}),
    "/usr": frozenset({"bin", "lib"}),
    "/usr/bin": frozenset({"python3.11"}),
    "/usr/lib": frozenset({"paddock", "python3.11", "x86_64-linux-gnu"}),
}
"""All that a runner is shown: the devices of ``PrivateDevices=`` and what the unit binds. What else stands there must
be an empty or closed folder, or a link."""


def empty_root(folders: Mapping[str, frozenset[str]], mountinfo: str) -> None:
    """Nothing of the host is in sight but Python and the engine, read-only (``RootDirectory=``), and no process of
    another user (``ProtectProc=invisible``, ``ProcSubset=pid``). ``folders`` maps a path to its visible contents."""
    for path, names in sorted(folders.items()):
        if unknown := names - _CONTENTS.get(path, frozenset()):
            raise NotGiven(f"{path} shows {', '.join(sorted(unknown)[:5])} (RootDirectory=, BindReadOnlyPaths=)")
    shown = [mount.options for mount in mounts(mountinfo) if mount.kind == "proc"]
    if not shown or not all(options & {"hidepid=invisible", "hidepid=2"} for options in shown):
        raise NotGiven("/proc shows the processes of others (ProtectProc=)")
    if not all("subset=pid" in options for options in shown):
        raise NotGiven("/proc shows more than processes (ProcSubset=)")


def _folders() -> dict[str, frozenset[str]]:
    """What stands in the folders whose contents are known, but for what shows nothing."""
    return {
        path: frozenset(entry.name for entry in _entries(path) if entry.name in known or not _is_void(entry))
        for path, known in _CONTENTS.items()
    }


def _entries(path: str) -> list["os.DirEntry[str]"]:
    """None of a closed folder. Raises ``NotGiven`` for one that hides its names but opens what is asked for by name."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except PermissionError:
        if os.access(path, os.X_OK):
            raise NotGiven(f"{path} cannot be listed and yet be gone through (InaccessiblePaths=)") from None
        return []


def _is_void(entry: "os.DirEntry[str]") -> bool:
    """A link leads only to what is judged where it lies; a folder that holds nothing, or is closed, shows nothing,
    however deep."""
    if entry.is_symlink():
        return True
    return entry.is_dir(follow_symlinks=False) and all(_is_void(inner) for inner in _entries(entry.path))
