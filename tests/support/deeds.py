"""What a compromised runner would do, by class, against targets that the test holds ready outside it.

``returned N`` is the attacker's success; whether anything happened outside is for the test to see there.
"""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Final, TypedDict

from appliance.runner.main import ENVIRONMENT
from appliance.sandbox import libc, probe
from appliance.sandbox.syscalls import X86_64

Attempt = Callable[[], int]
Deeds = dict[str, dict[str, Attempt]]

SECRET: Final = b"sixteen secrets!"
SESSION_KEY: Final = b"paddock-canary"
"""A key in the session keyring of whoever started the runner."""

_NUMBERS: Final = X86_64 | {
    "pwrite64": 18, "shmget": 29, "dup2": 33, "getsockopt": 55, "setsockopt": 54, "msgget": 68, "truncate": 76,
    "rename": 82, "mkdir": 83, "unlink": 87, "link": 86, "symlink": 88, "chmod": 90, "setrlimit": 160, "mlock": 149,
    "mknod": 133, "setpriority": 141, "add_key": 248, "request_key": 249, "vmsplice": 278, "mq_open": 240,
    "sched_setaffinity": 203, "kcmp": 312, "pidfd_send_signal": 424, "process_madvise": 440, "msync": 26,
    "name_to_handle_at": 303, "get_robust_list": 274, "inotify_init": 253, "fsopen": 430, "open_tree": 428,
    "shmdt": 67, "remap_file_pages": 216, "fanotify_init": 300, "syslog": 103, "reboot": 169, "swapon": 167,
    "acct": 163, "iopl": 172, "kexec_load": 246, "personality": 135,
}  # fmt: skip
_HERE: Final = -100 & 0xFFFFFFFFFFFFFFFF  # AT_FDCWD
_NONE: Final = -1 & 0xFFFFFFFFFFFFFFFF
_PAGE: Final = 4096
_READ, _WRITE, _EXEC = 1, 2, 4
_SHARED, _PRIVATE, _ANONYMOUS = 1, 2, 0x20
_RETURN: Final = b"\xb8\x07\x00\x00\x00\xc3"  # mov eax, 7; ret


HOLD, HELD = "hold still", b"held\n"
"""No deed: waits to be looked at from outside, and says so on stderr."""

SAMPLE: Final = (
    "openat", "read the canary", "create", "memory of a process",
    "execve", "fork", "clone3",
    "signal", "trace", "read its memory",
    "socket udp", "reach tcp", "reach udp", "reach an abstract socket",
    "user namespace and mount", "io_uring_setup", "key of the session", "bpf program", "x32",
    "write, then execute", "mmap over libc", "write over code",
    "fork bomb", "descriptor bomb", "raise the own limits", "die with a core",
    "write at a place", "make the mapped weights writable",
)  # fmt: skip
"""At least two of every class."""

ENDS_ITS_OWN_SENSES: Final = frozenset({"seccomp", "recvmsg"})
"""Without a filter strict mode stops the one thread that could tell, and recvmsg waits for the next question."""

OWN_AFFAIR: Final = {
    "fork": "a process of its own, counted by RLIMIT_NPROC and gone with its pid namespace",
    "vfork": "as fork",
    "clone process": "as fork",
    "clone3": "as fork",
    "clone thread": "a thread of its own, counted",
    "memfd_create": "a file that may not grow (RLIMIT_FSIZE)",
    "memfd_secret": "a file that may not grow",
    "socket": "a socket in a network namespace without a device",
    "socket udp": "the same",
    "socket netlink": "the same",
    "socket unix": "the same",
    "socket tcp 6": "the same",
    "socket mptcp": "the same",
    "socket netfilter": "the same, and no capability over it",
    "socket uevents": "the same",
    "socket audit": "the same",
    "socket vsock": "no namespace covers it: the filters alone stand before a hypervisor's services",
    "socketpair": "its own two ends",
    "bind": "a name in its own network namespace, on a channel whose peer is fixed",
    "prctl": "its own dumpable flag; nobody is there to look, and RLIMIT_CORE is 0",
    "become dumpable": "the same",
    "outlive the guardian": "a runner whose guardian is killed still ends with its channel",
    "modify_ldt": "reads its own empty table",
    "add_key": "a key in a keyring of its own",
    "new session keyring": "a keyring of its own",
    "userfaultfd in user mode": "its own page faults",
    "inotify": "watches, and nothing to watch",
    "personality": "the next program's, and it can execute none",
    "mmap exec": "a page of zeros",
    "mmap high word": "the kernel ignores the high word; the page cannot be executed",
    "mremap fixed": "its own pages",
    "execute shared memory": "new bytes, which MDWE does not see through two mappings: the filters alone stand here",
}
"""Without either filter these come back, and why that reaches nothing outside."""


class Outside(TypedDict):
    """What lies ready for a runner that gets out. Everything is the test's own."""

    pid: int
    """A process of the same user that lets itself be traced."""
    secret_address: int
    """Where it keeps ``SECRET``."""
    folder: str
    """A folder that everybody may write to, with the files ``canary`` and ``socket``, which listens."""
    tcp_port: int
    udp_port: int
    abstract: str
    """The name of a listening socket, without the leading NUL."""
    shm_key: int


def deeds(outside: Outside, sample: bytes = b"") -> Deeds:
    """Class -> name -> attempt. ``sample`` is a page of the model (``sample_of``), by which its mapping is found."""
    known = {kind: {name: probe.ATTEMPTS[name] for name in names} for kind, names in _KNOWN.items()}
    made = {
        "files": _files(outside["folder"], outside["pid"]),
        "processes": {"execveat of new bytes": _execute_memfd},
        "other processes": _others(outside["pid"], outside["secret_address"]),
        "network": _network(outside),
        "kernel": _kernel(),
        "memory": _memory(),
        "resources": _resources(),
        "weights": _weights(sample),
    }
    return {kind: known[kind] | made[kind] for kind in made}


_KNOWN: Final = {
    "files": (
        "open", "openat", "openat2", "creat", "stat", "readlink", "chdir", "getdents64", "open_by_handle_at",
        "open proc mem", "open proc environ", "open dev mem", "open sys", "memfd_create",
    ),
    "processes": ("execve", "execveat", "fork", "vfork", "clone process", "clone namespace", "clone3", "clone thread"),
    "other processes": (
        "ptrace", "kill others", "tkill", "tgkill others", "rt_sigqueueinfo", "process_vm_readv", "process_vm_writev",
        "pidfd_open", "pidfd_getfd",
    ),
    "network": (
        "socket", "socket udp", "socket netlink", "socket vsock", "socketpair", "connect", "bind", "sendmsg", "recvmsg",
        "tcp connect", "udp send", "abstract connect",
    ),
    "kernel": (
        "unshare", "setns", "mount", "pivot_root", "chroot", "setuid", "sethostname", "capset", "prctl", "seccomp",
        "ioctl", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "keyctl", "modify_ldt", "init_module",
        "memfd_secret", "unknown number", "x32", "int80",
    ),
    "memory": (
        "mmap exec", "mmap write exec", "mmap high word", "mmap over libc", "mprotect exec", "mprotect high word",
        "mremap fixed", "shmat exec",
    ),
    "resources": ("prlimit64",),
    "weights": ("ftruncate", "fallocate"),
}  # fmt: skip
"""The attempts of ``paddock sandbox probe``, by class."""


def hold() -> int:
    os.write(2, HELD)
    time.sleep(60)
    return 0


def _call(name: str, *arguments: libc.Argument) -> Attempt:
    return lambda: libc.syscall(_NUMBERS[name], *arguments)


# --- files ----------------------------------------------------------------------------------------------------------


def _files(folder: str, pid: int) -> dict[str, Attempt]:
    canary, new = f"{folder}/canary".encode(), f"{folder}/new".encode()
    return {
        "read the canary": lambda: len(os.read(os.open(canary, os.O_RDONLY), 100)),
        "write the canary": lambda: os.write(os.open(canary, os.O_WRONLY | os.O_APPEND), b"x"),
        "create": _call("openat", _HERE, new, os.O_CREAT | os.O_WRONLY, 0o600),
        "temporary file": _call("openat", _HERE, folder.encode(), 0o20200000 | os.O_RDWR, 0o600),  # O_TMPFILE
        "truncate": _call("truncate", canary, 0),
        "rename": _call("rename", canary, new),
        "unlink": _call("unlink", canary),
        "link": _call("link", canary, new),
        "symlink": _call("symlink", canary, new),
        "mkdir": _call("mkdir", new, 0o700),
        "mknod": _call("mknod", new, 0o010600, 0),
        "chmod": _call("chmod", canary, 0),
        "name_to_handle_at": _call(
            "name_to_handle_at", _HERE, canary, pack("<I", 128) + bytes(132), ctypes.create_string_buffer(4), 0
        ),
        "create in the root": _call("openat", _HERE, b"/new", os.O_CREAT | os.O_WRONLY, 0o600),
        "leave the root": _leave_root,
        "memory of a process": _call("openat", _HERE, f"/proc/{pid}/mem".encode(), os.O_RDWR, 0),
        "environment of a process": _call("openat", _HERE, f"/proc/{pid}/environ".encode(), 0, 0),
        "descriptors of a process": _call("openat", _HERE, f"/proc/{pid}/fd/0".encode(), os.O_RDWR, 0),
        "own environment": _call("openat", _HERE, b"/proc/self/environ", 0, 0),
        "reopen a descriptor": _call("openat", _HERE, b"/proc/self/fd/3", os.O_RDWR, 0),
        "reopen what descriptor 0 is": _call("openat", 0, b"", 0x1000, 0),  # AT_EMPTY_PATH is not for openat
    }


def _leave_root() -> int:
    """The old way out of a chroot: a descriptor outside is needed, and there is none."""
    libc.syscall(_NUMBERS["chroot"], b".")
    for _ in range(8):
        os.chdir("..")
    return os.open("etc/passwd", os.O_RDONLY)


def _execute_memfd() -> int:
    """A program that never was a file: its bytes in memory, executed by descriptor."""
    descriptor = libc.syscall(_NUMBERS["memfd_create"], b"x", 0)
    os.write(descriptor, b"#!/bin/true\n")
    return libc.syscall(_NUMBERS["execveat"], descriptor, b"", None, None, 0x1000)


# --- other processes ------------------------------------------------------------------------------------------------


def _others(pid: int, address: int) -> dict[str, Attempt]:
    buffer = ctypes.create_string_buffer(len(SECRET))
    here, there = pack("<QQ", ctypes.addressof(buffer), len(SECRET)), pack("<QQ", address, len(SECRET))

    def read() -> int:
        libc.syscall(_NUMBERS["process_vm_readv"], pid, here, 1, there, 1, 0)
        return int(buffer.raw == SECRET)

    def by_descriptor(call: str, *arguments: libc.Argument) -> Attempt:
        return lambda: libc.syscall(_NUMBERS[call], libc.syscall(_NUMBERS["pidfd_open"], pid, 0), *arguments)

    return {
        "signal": _call("kill", pid, signal.SIGUSR1),
        "signal its thread": _call("tgkill", pid, pid, signal.SIGUSR1),
        "signal by tkill": _call("tkill", pid, signal.SIGUSR1),
        "signal by pidfd": by_descriptor("pidfd_send_signal", signal.SIGUSR1, None, 0),
        "signal with a word": _call(
            "rt_sigqueueinfo", pid, signal.SIGUSR1, pack("<iii", signal.SIGUSR1, 0, -1) + bytes(116)
        ),
        "trace": _call("ptrace", 0x4206, pid, 0, 0),  # PTRACE_SEIZE
        "read its memory": read,
        "write its memory": _call("process_vm_writev", pid, here, 1, there, 1, 0),
        "take its descriptor": by_descriptor("pidfd_getfd", 0, 0),
        "advise its memory": by_descriptor("process_madvise", there, 1, 4, 0),
        "change its limits": _call("prlimit64", pid, 7, pack("<QQ", 3, 3), None),
        "change its priority": _call("setpriority", 0, pid, 19),
        "change its processors": _call("sched_setaffinity", pid, 8, pack("<Q", 1)),
        "compare with it": _call("kcmp", os.getpid(), pid, 0, 0, 0),
        "find its locks": _call("get_robust_list", pid, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)),
    }


# --- network --------------------------------------------------------------------------------------------------------


def _network(outside: Outside) -> dict[str, Attempt]:
    tcp, udp = (pack("<H", 2) + pack(">HI", outside[port], 0x7F000001) + bytes(8) for port in ("tcp_port", "udp_port"))  # type: ignore[literal-required]
    tcp_6 = pack("<H", 10) + pack(">HI", outside["tcp_port"], 0) + bytes(15) + b"\1" + bytes(4)
    abstract = pack("<H", 1) + b"\0" + outside["abstract"].encode()
    path = pack("<H", 1) + f"{outside['folder']}/socket".encode() + b"\0"

    def talk(family: int, kind: int, protocol: int, call: str, address: bytes) -> Attempt:
        def action() -> int:
            descriptor = libc.syscall(_NUMBERS["socket"], family, kind, protocol)
            if call == "connect":
                libc.syscall(_NUMBERS["connect"], descriptor, address, len(address))
                return os.write(descriptor, b"out")
            return libc.syscall(_NUMBERS["sendto"], descriptor, b"out", 3, 0, address, len(address))

        return action

    def listen() -> int:
        descriptor = libc.syscall(_NUMBERS["socket"], 2, 1, 0)
        return libc.syscall(_NUMBERS["bind"], descriptor, pack("<H", 2) + bytes(14), 16)

    families = {
        "unix": (1, 1, 0), "tcp 6": (10, 1, 0), "icmp": (2, 2, 1), "raw": (2, 3, 255), "packet": (17, 3, 0x0300),
        "mptcp": (2, 1, 262), "sctp": (2, 1, 132), "vsock datagram": (40, 2, 0), "alg": (38, 5, 0), "can": (29, 3, 1),
        "bluetooth": (31, 3, 1), "xdp": (44, 3, 0), "key": (15, 3, 2), "tipc": (30, 5, 0), "smc": (43, 1, 0),
        "nfc": (39, 5, 0), "qipcrtr": (42, 2, 0), "netfilter": (16, 3, 12), "uevents": (16, 3, 15), "audit": (16, 3, 9),
    }  # fmt: skip
    return {f"socket {name}": _call("socket", *numbers) for name, numbers in families.items()} | {
        "reach tcp": talk(2, 1, 0, "connect", tcp),
        "reach tcp 6": talk(10, 1, 0, "connect", tcp_6),
        "reach mptcp": talk(2, 1, 262, "connect", tcp),
        "reach tcp by fast open": lambda: libc.syscall(
            _NUMBERS["sendto"], libc.syscall(_NUMBERS["socket"], 2, 1, 0), b"out", 3, 0x20000000, tcp, len(tcp)
        ),
        "reach udp": talk(2, 2, 0, "sendto", udp),
        "reach an abstract socket": talk(1, 1, 0, "connect", abstract),
        "reach a socket by path": talk(1, 1, 0, "connect", path),
        "listen": listen,
        "find shared memory": _call("shmget", outside["shm_key"], _PAGE, 0),
        "find a message queue": _call("msgget", outside["shm_key"], 0),
        "message queue by name": _call("mq_open", b"paddock", os.O_CREAT | os.O_RDWR, 0o600, None),
        "send elsewhere on the channel": _elsewhere(path),
    }


def _elsewhere(address: bytes) -> Attempt:
    """``sendto`` is allowed; the channel is a connected pair, which takes no other address than its peer's."""

    def action() -> int:
        libc.syscall(_NUMBERS["connect"], 3, address, len(address))
        return libc.syscall(_NUMBERS["sendto"], 3, b"out", 3, 0, address, len(address))

    return action


# --- the kernel's larger surfaces -----------------------------------------------------------------------------------


def _kernel() -> dict[str, Attempt]:
    return {
        "user namespace and mount": _mount_in_namespace,
        "add_key": _call("add_key", b"user", b"probe", b"x", 1, -2 & 0xFFFFFFFFFFFFFFFF),
        "request_key": _call("request_key", b"user", b"probe", None, -2 & 0xFFFFFFFFFFFFFFFF),
        "new session keyring": _call("keyctl", 1, None, 0, 0, 0),
        "key of the session": _call("keyctl", 10, -3 & 0xFFFFFFFFFFFFFFFF, b"user", SESSION_KEY, 0),
        "bpf program": _call(
            "bpf", 5, pack("<IIQQ", 1, 2, ctypes.addressof(_EXIT), ctypes.addressof(_LICENCE)) + bytes(120), 144
        ),
        "bpf map": _call("bpf", 0, pack("<IIII", 2, 4, 4, 1) + bytes(104), 120),
        "perf on itself": _call("perf_event_open", pack("<IIQ", 1, 128, 0) + bytes(112), 0, _NONE, _NONE, 0),
        "userfaultfd in user mode": _call("userfaultfd", 1),
        "fsopen": _call("fsopen", b"tmpfs", 0),
        "open_tree": _call("open_tree", _HERE, b"/", 1),
        "inotify": _call("inotify_init"),
        "fanotify": _call("fanotify_init", 0, 0),
        "kernel log": _call("syslog", 3, ctypes.create_string_buffer(64), 64),
        "reboot": _call("reboot", 0, 0, 0, None),  # no magic numbers: an error even for root
        "swapon": _call("swapon", b"/none", 0),
        "accounting": _call("acct", b"/none"),
        "iopl": _call("iopl", 3),
        "kexec": _call("kexec_load", 0, 0, None, 0xFFFF),  # nor such flags
        "personality": _call("personality", 0x0400000),  # READ_IMPLIES_EXEC
    }


_EXIT: Final = ctypes.create_string_buffer(pack("<QQ", 0xB7, 0x95))  # r0 = 0; exit
_LICENCE: Final = ctypes.create_string_buffer(b"GPL")


def _in_child(action: Attempt, flags: int = 0) -> int:
    """The errno of an action in a forked process, as this process's own; zero if it succeeded."""
    child = libc.syscall(_NUMBERS["clone"], signal.SIGCHLD | flags, 0, 0, 0, 0)
    if child == 0:
        try:
            action()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, "in the child")
    return 0


def _mount_in_namespace() -> int:
    """As far as every privilege escalation of the last years begins."""
    return _in_child(_call("mount", b"none", b"/", b"tmpfs", 0, None), 0x10000000 | 0x20000)


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory() -> dict[str, Attempt]:
    return {
        "write, then execute": _write_then_execute,
        "execute while writable": lambda: _run(_map(_READ | _WRITE | _EXEC)),
        "pkey_mprotect": lambda: libc.syscall(329, _map(_READ | _WRITE), _PAGE, _READ | _EXEC, _NONE),
        "remap_file_pages": lambda: libc.syscall(_NUMBERS["remap_file_pages"], _map(_READ), _PAGE, 0, 0, 0),
        "execute shared memory": _execute_shared,
        "execute a memfd": _execute_mapped_memfd,
        "write over code": _write_over_code,
        "write over code through proc": lambda: os.pwrite(os.open("/proc/self/mem", os.O_RDWR), b"\xc3", _code()),
        "write over code through vm_writev": lambda: libc.syscall(
            _NUMBERS["process_vm_writev"], os.getpid(), _ONE_BYTE, 1, pack("<QQ", _code(), 1), 1, 0
        ),
    }


_BYTE: Final = ctypes.create_string_buffer(b"\xc3")
_ONE_BYTE: Final = pack("<QQ", ctypes.addressof(_BYTE), 1)


def _map(protection: int, flags: int = _PRIVATE | _ANONYMOUS, descriptor: int = _NONE) -> int:
    return libc.syscall(_NUMBERS["mmap"], 0, _PAGE, protection, flags, descriptor, 0)


def _run(address: int) -> int:
    """Puts code where it may be written and jumps there. Returns 7 if it ran."""
    ctypes.memmove(address, _RETURN, len(_RETURN))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def _write_then_execute() -> int:
    address = _map(_READ | _WRITE)
    ctypes.memmove(address, _RETURN, len(_RETURN))
    libc.syscall(_NUMBERS["mprotect"], address, _PAGE, _READ | _EXEC)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def _execute_shared() -> int:
    """One page twice, to write and to execute: what MDWE does not see."""
    segment = libc.syscall(_NUMBERS["shmget"], 0, _PAGE, 0o1777)
    writable = libc.syscall(_NUMBERS["shmat"], segment, None, 0)
    ctypes.memmove(writable, _RETURN, len(_RETURN))
    executable = libc.syscall(_NUMBERS["shmat"], segment, None, 0o100000 | 0o10000)  # SHM_EXEC | SHM_RDONLY
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(executable)())


def _execute_mapped_memfd() -> int:
    descriptor = libc.syscall(_NUMBERS["memfd_create"], b"x", 0)
    os.write(descriptor, _RETURN)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(_map(_READ | _EXEC, _SHARED, descriptor))())


def _code() -> int:
    """The address of a libc function that nobody calls."""
    return ctypes.cast(ctypes.CDLL(None).l64a, ctypes.c_void_p).value or 0


def _write_over_code() -> int:
    libc.syscall(_NUMBERS["mprotect"], _code() & -_PAGE, _PAGE, _READ | _WRITE)
    ctypes.memmove(_code(), b"\xc3", 1)
    return libc.syscall(_NUMBERS["mprotect"], _code() & -_PAGE, _PAGE, _READ | _EXEC)


# --- resources ------------------------------------------------------------------------------------------------------

_MOST: Final = 400


def _resources() -> dict[str, Attempt]:
    return {
        "fork bomb": _fork_bomb,
        "descriptor bomb": _descriptor_bomb,
        "thread bomb": _thread_bomb,
        "grow a file": lambda: os.write(libc.syscall(_NUMBERS["memfd_create"], b"x", 0), bytes(_PAGE)),
        "lock memory": lambda: libc.syscall(_NUMBERS["mlock"], _map(_READ | _WRITE), _PAGE),
        "raise the own limits": _call("prlimit64", 0, 7, pack("<QQ", 1 << 16, 1 << 16), None),
        "allow a core": _call("setrlimit", 4, pack("<QQ", 1 << 30, 1 << 30)),
        "become dumpable": _call("prctl", 4, 1, 0, 0, 0),
        "outlive the guardian": _call("prctl", 1, 0, 0, 0, 0),
        "die with a core": probe.ATTEMPTS["abort"],
        "variables that are not ours": _foreign_variables,
    }


def _until_refused(one_more: Callable[[], object]) -> int:
    """How often it can be done, if that is ``_MOST`` times; raises what stopped it before."""
    for _ in range(_MOST):
        one_more()
    return _MOST


def _fork_bomb() -> int:
    children: list[int] = []

    def one_more() -> None:
        child = libc.syscall(_NUMBERS["clone"], signal.SIGCHLD, 0, 0, 0, 0)
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)

    try:
        return _until_refused(one_more)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _thread_bomb() -> int:
    """Raw threads that wait for ever on a stack of their own would need assembler; Python's do as well."""
    import threading

    for_ever = threading.Event()
    try:
        return _until_refused(lambda: threading.Thread(target=for_ever.wait, daemon=True).start())
    except RuntimeError as error:  # "can't start new thread"
        raise OSError(errno.EAGAIN, str(error)) from None
    finally:
        for_ever.set()


def _descriptor_bomb() -> int:
    return _until_refused(lambda: libc.syscall(_NUMBERS["fcntl"], 0, 1030, 0))  # F_DUPFD_CLOEXEC


def _foreign_variables() -> int:
    """How many strings in this process's environment block are neither fixed nor llama.cpp's own."""
    block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    ours = {f"{name}={value}".encode() for name, value in ENVIRONMENT.items()} | {b"KMP_BLOCKTIME=200"}
    count, position = 0, 0
    while (entry := block[position]) is not None:
        count += entry not in ours
        position += 1
    return count


# --- weights --------------------------------------------------------------------------------------------------------


def sample_of(model: Path) -> bytes:
    """The most varied page of the model's tensor data, as memory has many dull ones. It is of the second half, since
    llama.cpp unmaps the header."""
    data = model.read_bytes()
    pages = [data[at : at + _PAGE] for at in range(len(data) // 2 & -_PAGE, len(data) - _PAGE, _PAGE)]
    return max(pages, key=lambda page: len(set(page)))


def _weights(sample: bytes) -> dict[str, Attempt]:
    def on_every_descriptor(call: str, *arguments: libc.Argument) -> Attempt:
        """Returns on how many descriptors it worked; raises the last error if on none."""

        def action() -> int:
            worked, last = 0, OSError(errno.EBADF, "no descriptor")
            for descriptor in range(32):
                try:
                    libc.syscall(_NUMBERS[call], descriptor, *arguments)
                    worked += 1
                except OSError as error:
                    last = error
            if not worked:
                raise last
            return worked

        return action

    return {
        "write at a place": on_every_descriptor("pwrite64", b"x", 1, 0),
        "truncate every descriptor": on_every_descriptor("ftruncate", 0),
        "punch a hole in every descriptor": on_every_descriptor("fallocate", 3, 0, _PAGE),
        "map every descriptor to write": _map_any(_READ | _WRITE),
        "map every descriptor to execute": _map_any(_READ | _EXEC),
        "make the mapped weights writable": lambda: _protect_weights(sample, _READ | _WRITE),
        "make the mapped weights executable": lambda: _protect_weights(sample, _READ | _EXEC),
    }


def _map_any(protection: int) -> Attempt:
    def action() -> int:
        last = OSError(errno.EBADF, "no descriptor")
        for descriptor in range(32):
            try:
                return _map(protection, _SHARED, descriptor)
            except OSError as error:
                last = error
        raise last

    return action


def _protect_weights(sample: bytes, protection: int) -> int:
    return libc.syscall(_NUMBERS["mprotect"], _find_weights(sample), _PAGE, protection)


def _find_weights(sample: bytes) -> int:
    """The address at which the model is mapped, found as an attacker would: page by page, with allowed calls only."""
    start = _map(_READ)
    for distance in range(1 << 17):
        for address in (start + distance * _PAGE, start - distance * _PAGE):
            if _readable(address) and ctypes.string_at(address, _PAGE) == sample:
                return address
    raise LookupError("the weights are not mapped nearby")


def _readable(address: int) -> bool:
    """epoll_ctl on no descriptor reads its argument first: EFAULT or EBADF, and nothing else happens."""
    try:
        libc.syscall(_NUMBERS["epoll_ctl"], _NONE, 1, 0, address)
    except OSError as error:
        return error.errno != errno.EFAULT
    return True
