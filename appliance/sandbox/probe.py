"""What a compromised runner would try, tried from inside the live runner: raw system calls, by number.

Most attempts end the process, and that is the answer. The rest is told in words: ``errno ENOENT`` or ``returned 5``.
``python -m appliance.sandbox.probe`` is the second line of defence on its own: it puts on every layer *except* the
filters, makes the attempts of ``WITHOUT_FILTERS`` and prints what the kernel answered, as one JSON object.

Trusts: nothing; it is the attacker's part.
Promises: an attempt does no harm when it succeeds (it names no existing target, or leaves at once).
Not here: what the answers should have been (``cli.sandbox_probe``).
"""

import ctypes
import errno
import json
import os
import signal
from collections.abc import Callable
from struct import pack, unpack_from
from typing import Final

from appliance.sandbox import layers, libc
from appliance.sandbox.syscalls import X86_64

_FILE: Final = b"/etc/passwd"
_HERE: Final = -100 & 0xFFFFFFFFFFFFFFFF  # AT_FDCWD
_X32_BIT: Final = 0x40000000
_PAGE: Final = 4096
_READ, _WRITE, _EXEC = 1, 2, 4
_PRIVATE, _FIXED, _ANONYMOUS = 0x02, 0x10, 0x20
_HIGH_WORD: Final = 1 << 32
_INET: Final = pack("<HHI", 2, 0x0900, 0x0100007F) + bytes(8)  # AF_INET, port 9, 127.0.0.1
_ABSTRACT: Final = pack("<H", 1) + b"\0paddock-probe"
_BUFFER: Final = ctypes.create_string_buffer(8)
_VECTOR: Final = pack("<QQ", ctypes.addressof(_BUFFER), 8)  # struct iovec

Attempt = Callable[[], int]


def attempt(name: str) -> str:
    """Makes one attempt. Returns ``errno NAME``, ``returned N`` or ``unknown``, if the process still is there."""
    action = ATTEMPTS.get(name)
    if action is None:
        return "unknown"
    try:
        return f"returned {action()}"
    except OSError as error:
        return f"errno {errno.errorcode.get(error.errno or 0, str(error.errno))}"


def _call(name: str, *arguments: libc.Argument) -> Attempt:
    return lambda: libc.syscall(X86_64[name], *arguments)


def _call_number(number: int) -> Attempt:
    return lambda: libc.syscall(number)


def _child(name: str, *arguments: libc.Argument) -> Attempt:
    """A call that makes a process: a child that does come into being leaves at once."""

    def action() -> int:
        if (child := libc.syscall(X86_64[name], *arguments)) == 0:
            os._exit(0)
        return child

    return action


def _talk(family: int, kind: int, call: str, address: bytes) -> Attempt:
    """A socket and one use of it."""

    def action() -> int:
        descriptor = libc.syscall(X86_64["socket"], family, kind, 0)
        try:
            if call == "sendto":
                return libc.syscall(X86_64[call], descriptor, b"probe", 5, 0, address, len(address))
            return libc.syscall(X86_64[call], descriptor, address, len(address))
        finally:
            os.close(descriptor)

    return action


# --- memory ---------------------------------------------------------------------------------------------------------


def _map(protection: int, flags: int = _PRIVATE | _ANONYMOUS, address: int = 0) -> int:
    return libc.syscall(X86_64["mmap"], address, _PAGE, protection, flags, -1 & 0xFFFFFFFFFFFFFFFF, 0)


def _protect(protection: int) -> Attempt:
    return lambda: libc.syscall(X86_64["mprotect"], _map(_READ | _WRITE), _PAGE, protection)


def _map_over_libc() -> int:
    """Replaces the page of an exported libc function; nothing may call it afterwards, so it is one nobody calls."""
    address = ctypes.cast(ctypes.CDLL(None).l64a, ctypes.c_void_p).value or 0
    return _map(_READ, _PRIVATE | _ANONYMOUS | _FIXED, address & -_PAGE)


def _remap_fixed() -> int:
    source, target = _map(_READ), _map(_READ)
    return libc.syscall(X86_64["mremap"], source, _PAGE, _PAGE, 3, target)  # MREMAP_MAYMOVE | MREMAP_FIXED


def _abort() -> int:
    ctypes.CDLL(None).abort()
    return 0


# --- the other doors of the same kernel -----------------------------------------------------------------------------


def _int80() -> int:
    """The 32-bit entry: jumps to the bytes ``int 0x80`` wherever libc's code happens to contain them."""
    return int(ctypes.CFUNCTYPE(ctypes.c_long)(_find_in_libc(b"\xcd\x80"))())


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _find_in_libc(needle: bytes) -> int:
    """An address in an executable segment of libc. Raises ``OSError`` when it holds no such bytes."""
    library, info = ctypes.CDLL(None), _DlInfo()
    library.dladdr(ctypes.cast(library.l64a, ctypes.c_void_p), ctypes.byref(info))
    base = info.base or 0
    header = ctypes.string_at(base, 64)
    table, entry_size, entries = *unpack_from("<Q", header, 32), *unpack_from("<HH", header, 54)
    for index in range(entries):
        entry = ctypes.string_at(base + table + index * entry_size, 56)
        kind, flags, _, start, _, size = unpack_from("<IIQQQQ", entry)
        if kind == 1 and flags & 1:  # PT_LOAD, PF_X
            position = ctypes.string_at(base + start, size).find(needle)
            if position >= 0:
                return int(base + start + position)
    raise OSError(errno.ENOENT, "libc does not contain these bytes")


ATTEMPTS: Final[dict[str, Attempt]] = {
    # files
    "open": _call("open", _FILE, 0, 0),
    "openat": _call("openat", _HERE, _FILE, 0, 0),
    "openat2": _call("openat2", _HERE, _FILE, bytes(24), 24),
    "creat": _call("creat", b"/probe", 0o600),
    "stat": _call("stat", _FILE, ctypes.create_string_buffer(256)),
    "readlink": _call("readlink", b"/proc/self/exe", ctypes.create_string_buffer(64), 64),
    "chdir": _call("chdir", b"/proc"),
    "getdents64": _call("getdents64", 0, ctypes.create_string_buffer(512), 512),
    "open_by_handle_at": _call("open_by_handle_at", _HERE, bytes(16), 0),
    "open proc mem": _call("openat", _HERE, b"/proc/self/mem", 2, 0),
    "open proc environ": _call("openat", _HERE, b"/proc/1/environ", 0, 0),
    "open dev mem": _call("openat", _HERE, b"/dev/mem", 0, 0),
    "open sys": _call("openat", _HERE, b"/sys/kernel", 0, 0),
    "memfd_create": _call("memfd_create", b"probe", 0),
    "memfd_secret": _call("memfd_secret", 0),
    "ftruncate": _call("ftruncate", 0, 0),
    "fallocate": _call("fallocate", 0, 3, 0, _PAGE),
    # the network, and passing descriptors
    "socket": _call("socket", 2, 1, 0),
    "socket udp": _call("socket", 2, 2, 0),
    "socket netlink": _call("socket", 16, 3, 0),
    "socket vsock": _call("socket", 40, 1, 0),
    "socketpair": _call("socketpair", 1, 1, 0, ctypes.create_string_buffer(8)),
    "connect": _call("connect", 3, _INET, len(_INET)),
    "bind": _call("bind", 3, _ABSTRACT, len(_ABSTRACT)),
    "sendmsg": _call("sendmsg", 3, bytes(56), 0),
    "recvmsg": _call("recvmsg", 3, ctypes.create_string_buffer(56), 0),
    "tcp connect": _talk(2, 1, "connect", _INET),
    "udp send": _talk(2, 2, "sendto", _INET),
    "abstract connect": _talk(1, 1, "connect", _ABSTRACT),
    # processes
    "execve": _call("execve", b"/bin/sh", None, None),
    "execveat": _call("execveat", _HERE, b"/bin/sh", None, None, 0),
    "fork": _child("fork"),
    "vfork": _child("clone", 0x11 | 0x4000, 0, 0, 0, 0),  # vfork's flags but CLONE_VM: a child may not share our stack
    "clone process": _child("clone", signal.SIGCHLD, 0, 0, 0, 0),
    "clone namespace": _child("clone", signal.SIGCHLD | 0x10000000, 0, 0, 0, 0),
    "clone3": _child("clone3", pack("<Q", 0) * 4 + pack("<Q", signal.SIGCHLD) + bytes(48), 88),
    "ptrace": _call("ptrace", 16, 2, 0, 0),  # PTRACE_ATTACH
    "kill others": _call("kill", -1 & 0xFFFFFFFFFFFFFFFF, 0),
    "tkill": _call("tkill", 2, 0),
    "tgkill others": _call("tgkill", 2, 2, 0),
    "rt_sigqueueinfo": _call("rt_sigqueueinfo", 2, 0, bytes(128)),
    "process_vm_readv": _call("process_vm_readv", 2, _VECTOR, 1, _VECTOR, 1, 0),
    "process_vm_writev": _call("process_vm_writev", 2, _VECTOR, 1, _VECTOR, 1, 0),
    "pidfd_open": _call("pidfd_open", 2, 0),
    "pidfd_getfd": _call("pidfd_getfd", 0, 0, 0),
    # privileges and the kernel's larger surfaces
    "unshare": _call("unshare", 0x10000000),
    "setns": _call("setns", 0, 0),
    "mount": _call("mount", b"none", b"/", b"tmpfs", 0, None),
    "pivot_root": _call("pivot_root", b"/", b"/"),
    "chroot": _call("chroot", b"/"),
    "setuid": _call("setuid", 0),
    "sethostname": _call("sethostname", b"probe", 5),
    "capset": _call("capset", pack("<Ii", 0x20080522, 0), b"\xff" * 24),
    "prctl": _call("prctl", 4, 1, 0, 0, 0),  # PR_SET_DUMPABLE
    "prlimit64": _call("prlimit64", 0, 7, pack("<QQ", 64, 64), None),  # RLIMIT_NOFILE
    "seccomp": _call("seccomp", 0, 0, None),
    "ioctl": _call("ioctl", 0, 0x5412, b"x"),  # TIOCSTI
    "io_uring_setup": _call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
    "bpf": _call("bpf", 0, bytes(120), 120),
    "perf_event_open": _call("perf_event_open", bytes(120), 0, -1 & 0xFFFFFFFFFFFFFFFF, -1 & 0xFFFFFFFFFFFFFFFF, 0),
    "userfaultfd": _call("userfaultfd", 0),
    "keyctl": _call("keyctl", 0, 0, 0, 0, 0),
    "modify_ldt": _call("modify_ldt", 0, ctypes.create_string_buffer(16), 16),
    "init_module": _call("init_module", None, 0, b""),
    "unknown number": _call_number(0x3FFFFFFF),
    "x32": _call_number(X86_64["getpid"] | _X32_BIT),
    "int80": _int80,
    # memory
    "mmap exec": lambda: _map(_READ | _EXEC),
    "mmap write exec": lambda: _map(_READ | _WRITE | _EXEC),
    "mmap high word": lambda: _map(_READ | _HIGH_WORD),
    "mmap over libc": _map_over_libc,
    "mprotect exec": _protect(_READ | _EXEC),
    "mprotect high word": _protect(_READ | _HIGH_WORD),
    "mremap fixed": _remap_fixed,
    "shmat exec": _call("shmat", 0, None, 0o100000),  # SHM_EXEC
    # threads, once serving
    "clone thread": _child("clone", 0x3D0F00, 0, 0, 0, 0),
    # no attempt to get out: what llama.cpp does on a failed assertion must end the process, pid 1 or not
    "abort": _abort,
    # controls, which are allowed: without them a runner that dies of anything at all would look well guarded
    "clock_gettime": _call("clock_gettime", 1, ctypes.create_string_buffer(16)),
    "mmap plain": lambda: _map(_READ | _WRITE) * 0,
    "mprotect plain": _protect(_READ),
}
"""Every attempt by name."""

CONTROLS: Final = {"clock_gettime": "returned 0", "mmap plain": "returned 0", "mprotect plain": "returned 0"}
"""The allowed ones and their answers."""

ESSENTIAL: Final = ("open", "socket", "execve", "fork", "ptrace")
"""The five that the demo shows."""

WITHOUT_FILTERS: Final = (
    "open", "openat", "openat2", "creat", "stat", "open proc mem", "open proc environ", "open dev mem", "open sys",
    "tcp connect", "udp send", "abstract connect", "execve", "ptrace", "kill others", "process_vm_readv", "pidfd_open",
    "unshare", "clone namespace", "mount", "pivot_root", "chroot", "sethostname", "capset", "mmap write exec",
    "mprotect exec",
)  # fmt: skip
"""What the other layers must refuse by themselves."""


def main() -> None:
    """Every layer but the filters, then the attempts. Prints ``{"on": [...], "degraded": [...], "answers": {...}}``."""
    stack = layers.Stack(layers.DEGRADABLE)
    layers.leave_host(stack)
    if layers.PID_NAMESPACE in stack.on and (child := os.fork()):
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    layers.shut_in(stack)
    answers = {name: attempt(name) for name in WITHOUT_FILTERS}
    report = {"on": stack.on, "degraded": stack.degraded, "answers": answers}
    os.write(1, json.dumps(report).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
