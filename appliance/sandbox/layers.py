"""Every layer around a runner but the filters: one function each, each named, none with a switch.

``Stack`` applies them and keeps the account: a layer is *on*, or the host lacks it. A lacking layer is a refusal
(``LayerMissing``) unless the operator's ``allow_degraded`` names it; a layer that works is on whatever anybody allows.
The order matters and stands in two sequences: ``leave_host`` (before the process forks into its pid namespace) and
``shut_in`` (after everything has been imported).

Trusts: the kernel to do what a successful call says.
Promises: what ``Stack.on`` names is on for this process and every thread and child it will have.
Not here: seccomp (``seccomp``), descriptors and environment (``runner.main``), cgroups (the launcher's).
"""

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Final

from appliance.sandbox import libc
from appliance.sandbox.syscalls import X86_64

NO_NEW_PRIVS: Final = "no-new-privs"
USER_NAMESPACE: Final = "user-namespace"
PID_NAMESPACE: Final = "pid-namespace"
NETWORK_NAMESPACE: Final = "network-namespace"
MOUNT_NAMESPACE: Final = "mount-namespace"
IPC_NAMESPACE: Final = "ipc-namespace"
UTS_NAMESPACE: Final = "uts-namespace"
CGROUP_NAMESPACE: Final = "cgroup-namespace"
EMPTY_ROOT: Final = "empty-root"
RLIMITS: Final = "rlimits"
NO_CAPABILITIES: Final = "no-capabilities"
MDWE: Final = "mdwe"
NON_DUMPABLE: Final = "non-dumpable"
LANDLOCK: Final = "landlock"
SECCOMP_STAGE_1: Final = "seccomp-stage-1"
SECCOMP_STAGE_2: Final = "seccomp-stage-2"

NAMESPACES: Final = frozenset({
    USER_NAMESPACE, PID_NAMESPACE, NETWORK_NAMESPACE, MOUNT_NAMESPACE, IPC_NAMESPACE, UTS_NAMESPACE, CGROUP_NAMESPACE,
})  # fmt: skip

LAYERS: Final = (
    NO_NEW_PRIVS, USER_NAMESPACE, PID_NAMESPACE, NETWORK_NAMESPACE, MOUNT_NAMESPACE, IPC_NAMESPACE, UTS_NAMESPACE,
    CGROUP_NAMESPACE, EMPTY_ROOT, RLIMITS, NO_CAPABILITIES, MDWE, NON_DUMPABLE, LANDLOCK, SECCOMP_STAGE_1,
    SECCOMP_STAGE_2,
)  # fmt: skip
"""The closed list, in the order in which they are put on."""

INDISPENSABLE: Final = frozenset({NO_NEW_PRIVS, NO_CAPABILITIES, NON_DUMPABLE, SECCOMP_STAGE_1, SECCOMP_STAGE_2})
"""Every kernel we run on has these: no ``allow_degraded`` may name one."""

DEGRADABLE: Final = frozenset(LAYERS) - INDISPENSABLE


CURE: Final = "; if this host cannot have it, name it in sandbox.allow_degraded"


class LayerMissing(Exception):
    """The host lacks layers that nobody agreed to do without. ``missing`` maps each name to why. The text ends with
    what the operator can do about it, where there is anything."""

    def __init__(self, missing: dict[str, str]) -> None:
        cure = CURE if missing.keys() <= DEGRADABLE else ""
        super().__init__("; ".join(f"{name}: {why}" for name, why in missing.items()) + cure)
        self.missing = missing


class Stack:
    """The account of one process's layers."""

    def __init__(self, allow_degraded: frozenset[str]) -> None:
        """Raises ``ValueError`` when a name is not one that may be missing."""
        if unknown := allow_degraded - DEGRADABLE:
            raise ValueError(f"not a layer that may be missing: {', '.join(sorted(unknown))}")
        self._allow_degraded = allow_degraded
        self._on: list[str] = []
        self._missing: dict[str, str] = {}

    @property
    def on(self) -> tuple[str, ...]:
        return tuple(self._on)

    @property
    def degraded(self) -> tuple[str, ...]:
        return tuple(self._missing)

    def apply(self, name: str, action: Callable[[], None]) -> None:
        """Puts one layer on. If the host refuses it, that is noted; ``require`` judges, so that an operator reads all
        of what is missing at once. A layer that is accounted for already (``given``) stays as it is."""
        if name in self._on or name in self._missing:
            return
        try:
            action()
        except OSError as error:
            self._missing[name] = str(error)
        else:
            self._on.append(name)

    def require(self) -> None:
        """Raises ``LayerMissing`` unless everything that is missing was agreed to. Comes before any stranger's byte."""
        refused = {name: why for name, why in self._missing.items() if name not in self._allow_degraded}
        if refused:
            raise LayerMissing(refused)


def leave_host(stack: Stack) -> None:
    """First sequence: privileges and namespaces. Needs a process with one thread. The pid namespace takes effect for
    the next child, so the caller forks if ``PID_NAMESPACE`` is on."""
    stack.apply(NO_NEW_PRIVS, no_new_privs)
    stack.apply(USER_NAMESPACE, user_namespace)  # first, because it grants the right to make the others
    for name, flag in _NAMESPACES.items():
        stack.apply(name, lambda flag=flag: unshare(flag))  # type: ignore[misc]


def shut_in(stack: Stack) -> None:
    """Second sequence: after it the process sees no file, no network and no other process, and holds no privilege.

    Needs a process with one thread, because Landlock and capabilities are per thread; raises ``RuntimeError`` else.
    """
    if threads() != 1:
        raise RuntimeError("a thread was started before the layers that are per thread")
    stack.apply(EMPTY_ROOT, empty_root if MOUNT_NAMESPACE in stack.on else _no_mount_namespace)
    stack.apply(RLIMITS, lambda: rlimits(own_process_count=USER_NAMESPACE in stack.on))
    stack.apply(NO_CAPABILITIES, no_capabilities)
    stack.apply(MDWE, memory_deny_write_execute)
    stack.apply(LANDLOCK, landlock)
    stack.apply(NON_DUMPABLE, non_dumpable)


# --- privileges -----------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_SECUREBITS: Final = 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PR_SET_MDWE: Final = 65
_PR_MDWE_REFUSE_EXEC_GAIN: Final = 1

_SECUREBITS: Final = 0xEF
"""NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and the lock of each, and KEEP_CAPS locked off (capabilities(7))."""

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_CAP_SETPCAP: Final = 8
_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST_POSSIBLE_CAPABILITY: Final = 63
_NO_CAPABILITIES: Final = bytes(24)


def no_new_privs() -> None:
    """execve can grant nothing any more; also what lets an ordinary process install filters (prctl(2))."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def no_capabilities() -> None:
    """Empties the bounding, ambient, inheritable, permitted and effective sets, and locks the securebits; and lets go
    of the keys of the session that started this process, since to hold a keyring is a privilege too (keyrings(7)).

    A process that has none already (a unit whose own filter forbids capset) needs only no-new-privs to keep it so.
    """
    _own_session_keyring()
    if _capability_sets() == _NO_CAPABILITIES:
        return
    if _effective_capabilities() >> _CAP_SETPCAP & 1:
        for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
            if _known_capability(capability):
                libc.prctl(_PR_CAPBSET_DROP, capability)
        libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    libc.syscall(X86_64["capset"], _capability_header(), _NO_CAPABILITIES)


def _own_session_keyring() -> None:
    """An empty session keyring in place of the inherited one."""
    try:
        libc.syscall(X86_64["keyctl"], _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:  # a profile that refuses it here refuses it for good
            raise


def _known_capability(capability: int) -> bool:
    try:
        libc.prctl(_PR_CAPBSET_READ, capability)
    except OSError:  # EINVAL: this kernel ends before it
        return False
    return True


def _capability_header() -> bytes:
    return pack("<Ii", _CAPABILITY_VERSION_3, 0)


def _capability_sets() -> bytes:
    """Twice ``struct __user_cap_data_struct``, low and high words: u32 effective, permitted, inheritable."""
    sets = ctypes.create_string_buffer(len(_NO_CAPABILITIES))
    libc.syscall(X86_64["capget"], _capability_header(), sets)
    return sets.raw


def _effective_capabilities() -> int:
    sets = _capability_sets()
    return int.from_bytes(sets[12:16], "little") << 32 | int.from_bytes(sets[0:4], "little")


def non_dumpable() -> None:
    """No core file, no ptrace, and /proc/<pid> belongs to root (PR_SET_DUMPABLE)."""
    libc.prctl(_PR_SET_DUMPABLE, 0)


def memory_deny_write_execute() -> None:
    """No page may become executable again that is or was writable. Linux 6.3 (PR_SET_MDWE)."""
    libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN)


def die_with_parent() -> None:
    """SIGKILL when the *thread* that started this process ends. Changing credentials or user namespace clears it, so
    it comes after those. A parent that ended before this call shows as the end of the channel."""
    libc.prctl(_PR_SET_PDEATHSIG, 9)


def first_for_the_oom_killer() -> None:
    """Where memory runs out all the same, the kernel ends a runner and nobody else (proc_pid_oom_score_adj(5)). Raising
    the score needs no privilege; no other limit rests on it."""
    Path("/proc/self/oom_score_adj").write_text("900", "ascii")


def memory_limits(*, private_bytes: int, shared_bytes: int) -> None:
    """Hard limits on memory, for the rest of this process's life; no layer that may be missing.

    ``private_bytes`` bounds all memory that it can write (RLIMIT_DATA, which counts private mappings since Linux 4.7
    and not the model's shared one of ``shared_bytes``). The address space is bounded as well (RLIMIT_AS), since memory
    that is only read costs page tables: filling all of it with them would take hundreds of gigabytes.
    Raises ``OSError``; then the caller must end.
    """
    _limit(resource.RLIMIT_DATA, private_bytes)
    _limit(resource.RLIMIT_AS, private_bytes + shared_bytes + _ADDRESSES_WITHOUT_MEMORY_BYTES)


_ADDRESSES_WITHOUT_MEMORY_BYTES: Final = 2 * 2**30
"""For program text and for what allocators reserve and never touch."""


def rlimits(*, own_process_count: bool) -> None:
    """Hard limits: no core, no file growth, 32 descriptors, no locked memory, no message queue.

    Processes are counted per user *and* user namespace; without one of our own the count would include the user's
    other processes, so it is left alone then (the filters forbid fork in any case).
    """
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    if own_process_count:
        limits.append((resource.RLIMIT_NPROC, 288))  # 256 threads is the most a Load may ask for, and some of Python's
    for limit, value in limits:
        _limit(limit, value)


def _limit(what: int, value: int) -> None:
    """Soft and hard at once. A lower one that the host has set stays."""
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


# --- namespaces -----------------------------------------------------------------------------------------------------

_CLONE_NEWUSER: Final = 0x10000000
_NOBODYS_UID: Final = 0xFFFFFFF0
"""Above every range that is ever given to users; not the user nobody, who may have processes of its own."""
_NAMESPACES: Final = {
    PID_NAMESPACE: 0x20000000,
    NETWORK_NAMESPACE: 0x40000000,
    MOUNT_NAMESPACE: 0x00020000,
    IPC_NAMESPACE: 0x08000000,
    UTS_NAMESPACE: 0x04000000,
    CGROUP_NAMESPACE: 0x02000000,
}


def unshare(flag: int) -> None:
    """unshare(2) of one namespace."""
    libc.syscall(X86_64["unshare"], flag)


def user_namespace() -> None:
    """A user namespace in which exactly one user exists: this process's own, called nobody."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setgroups([])
        _be_counted()
    unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", "ascii")  # the kernel asks for this before gid_map
    Path("/proc/self/uid_map").write_text(f"65534 {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"65534 {gid} 1", "ascii")


def _be_counted() -> None:
    """Makes the *real* user one that nobody else is: RLIMIT_NPROC does not bind a process whose real user is the host's
    root (setrlimit(2)). The effective user stays, because what is still to be imported may lie in root's folders."""
    try:
        os.setresuid(_NOBODYS_UID, -1, -1)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not mapped here: then this is a container's root, whom the limit binds
            raise


def threads() -> int:
    """How many threads this process has."""
    return len(list(Path("/proc/self/task").iterdir()))


# --- files ----------------------------------------------------------------------------------------------------------

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2


def empty_root() -> None:
    """An empty read-only tmpfs becomes the root; the host's tree is detached from this mount namespace.

    It is mounted over ``/proc`` only because every host has that folder; it moves to ``/`` at once (pivot_root(2)).
    Where it can, the root is an empty folder of it and not the tmpfs itself, because the kernel makes no user namespace
    for a process that is chrooted (EPERM, user_namespaces(7)): a new one would bring back capabilities over whatever it
    contains. A container's filter may forbid that one call (Podman's does without CAP_SYS_CHROOT).
    """
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    mount = X86_64["mount"]
    libc.syscall(mount, b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    libc.syscall(mount, b"none", b"/proc", b"tmpfs", flags, b"size=4k,nr_inodes=2,mode=0555")
    os.chdir("/proc")
    libc.syscall(X86_64["pivot_root"], b".", b".")
    libc.syscall(X86_64["umount2"], b".", _MNT_DETACH)
    os.chdir("/")
    folder = "/nothing" if _may_chroot() else "/"
    if folder != "/":
        Path(folder).mkdir(0o555)
    libc.syscall(mount, b"none", b"/", None, _MS_REMOUNT | _MS_RDONLY | flags, None)
    if folder != "/":
        os.chroot(folder)
        os.chdir("/")
    if any(Path("/").iterdir()):
        raise OSError("the new root is not empty")


def _may_chroot() -> bool:
    try:
        os.chroot("/")  # changes nothing
    except PermissionError:
        return False
    return True


def _no_mount_namespace() -> None:
    raise OSError("without a mount namespace of its own the process would empty the host's root")


# --- Landlock -------------------------------------------------------------------------------------------------------

_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_FILE_RIGHTS_BY_ABI: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""From which ABI on how many bits of ``handled_access_fs`` exist (landlock(7))."""

_NETWORK_RIGHTS: Final = 0b11  # bind and connect TCP, from ABI 4
_SCOPES: Final = 0b11  # abstract Unix sockets and signals, from ABI 6


def landlock() -> None:
    """A ruleset that handles every right this kernel knows and grants none (landlock(7)).

    It does not cover UDP, nor TCP before ABI 4, nor signals before ABI 6: the namespaces and the filters do.
    """
    attributes = ruleset_attributes(landlock_abi())
    ruleset = libc.syscall(X86_64["landlock_create_ruleset"], attributes, len(attributes), 0)
    try:
        libc.syscall(X86_64["landlock_restrict_self"], ruleset, 0)
    finally:
        os.close(ruleset)


def landlock_abi() -> int:
    """Which version of Landlock this kernel has. Raises ``OSError`` where it has none, or does not say."""
    return libc.syscall(X86_64["landlock_create_ruleset"], None, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def ruleset_attributes(abi: int) -> bytes:
    """``struct landlock_ruleset_attr`` for an ABI: u64 fs, then u64 net from 4 on, then u64 scoped from 6 on."""
    file_bits = max(bits for since, bits in _FILE_RIGHTS_BY_ABI.items() if since <= abi)
    attributes = pack("<Q", (1 << file_bits) - 1)
    if abi >= 4:
        attributes += pack("<Q", _NETWORK_RIGHTS)
    if abi >= 6:
        attributes += pack("<Q", _SCOPES)
    return attributes
