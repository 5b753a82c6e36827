"""Puts on a service's fence exactly as the service does, tries one thing after another, and prints what came of each.

``python -I -B confined_child.py ROLE CONFIG VICTIM_PID``. Each probe runs in a fresh child, which fences itself in
first. An outcome is "done", "killed" (SIGSYS), the name of an error, or what else the child ended with.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from appliance import assemble, settings
from appliance.sandbox import libc
from appliance.sandbox.openat2 import open_beneath
from appliance.sandbox.syscalls import X86_64

ROLE, CONFIG, VICTIM = sys.argv[1], settings.load(Path(sys.argv[2])), int(sys.argv[3])
PROBES: dict[str, Callable[[], object]] = {}

# What a mistake might leave open: sockets of kinds that the service could not make itself, and somebody to talk to.
TCP_LISTENER = socket.create_server(("127.0.0.1", 0))
CLIENT = socket.create_connection(TCP_LISTENER.getsockname())
LEAKED_TCP, LEAKED_TCP_TO_BIND, LEAKED_UDP = socket.socket(), socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
UDP_LISTENER = socket.socket(type=socket.SOCK_DGRAM)
UDP_LISTENER.bind(("127.0.0.1", 0))
ABSTRACT = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ABSTRACT.bind(b"\0paddock-test-%d" % os.getpid())
ABSTRACT.listen()
FOLDER = Path(tempfile.mkdtemp())
NAMED = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
NAMED.bind(str(FOLDER / "peer.sock"))
NAMED.listen()
LINK = CONFIG.policy_dir / "linked"
LINK.unlink(missing_ok=True)
LINK.symlink_to("/etc/passwd")
CATALOGUE_FD = os.open(CONFIG.models_dir / "catalogue", os.O_RDONLY | os.O_DIRECTORY)


def probe(function: Callable[[], object]) -> Callable[[], object]:
    PROBES[function.__name__.replace("_", " ")] = function
    return function


def call(name: str, *arguments: int | bytes | None) -> None:
    PROBES[name] = lambda: libc.syscall(X86_64[name], *arguments)


def reads(name: str, path: str | Path) -> None:
    PROBES[f"read {name}"] = lambda: os.read(os.open(path, os.O_RDONLY), 10)


def writes(name: str, path: str | Path) -> None:
    PROBES[f"write {name}"] = lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)


def family(name: str, number: int, kind: int = socket.SOCK_STREAM) -> None:
    PROBES[f"socket {name}"] = lambda: socket.socket(number, kind)


# --- programs, processes, and other people's ------------------------------------------------------------------------

PROBES["execve"] = lambda: os.execv("/bin/true", ["true"])
PROBES["execveat"] = lambda: libc.syscall(X86_64["execveat"], -100, b"/bin/true\0", None, None, 0)
PROBES["fork"] = os.fork
PROBES["old fork"] = lambda: libc.syscall(X86_64["fork"])
PROBES["posix_spawn"] = lambda: os.posix_spawn("/bin/true", ["true"], {})


@probe
def thread() -> None:
    one = threading.Thread(target=int)
    one.start()
    one.join()


PROBES["kill the host's process"] = lambda: os.kill(VICTIM, signal.SIGKILL)
PROBES["kill nobody"] = lambda: os.kill(VICTIM, 0)
PROBES["pidfd_send_signal"] = lambda: libc.syscall(X86_64["pidfd_send_signal"], 0, 9, None, 0)


@probe
def signal_to_itself() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.raise_signal(signal.SIGUSR1)


PROBES["tgkill another"] = lambda: libc.syscall(X86_64["tgkill"], VICTIM, VICTIM, 0)
PROBES["ptrace"] = lambda: libc.syscall(X86_64["ptrace"], 16, VICTIM, 0, 0)
PROBES["the host's memory"] = lambda: libc.syscall(X86_64["process_vm_readv"], VICTIM, None, 0, None, 0, 0)
PROBES["pidfd_open"] = lambda: os.pidfd_open(VICTIM)
call("unshare", 0x10000000)
call("setns", 0, 0)
call("mount", b"none\0", b"/tmp\0", b"tmpfs\0", 0, None)
call("umount2", b"/proc\0", 2)
call("pivot_root", b"/\0", b"/\0")
call("chroot", b"/\0")
call("bpf", 0, None, 0)
call("io_uring_setup", 1, None)
call("userfaultfd", 0)
call("perf_event_open", None, 0, -1, -1, 0)
call("keyctl", 0, 0)
call("request_key", None, None, None, 0)
call("init_module", None, 0, None)
call("open_by_handle_at", 0, None, 0)
call("setuid", 0)
call("capset", None, None)
call("memfd_create", b"x\0", 0)
call("seccomp", 1, 0, None)
call("prctl", 4, 1)
call("landlock_create_ruleset", None, 0, 1)

# --- memory ---------------------------------------------------------------------------------------------------------

PROBES["memory to write and execute"] = lambda: mmap.mmap(-1, 4096, prot=7)
PROBES["memory to execute"] = lambda: mmap.mmap(-1, 4096, prot=5)
PROBES["memory to write"] = lambda: mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@probe
def program_text_of_a_library() -> None:
    mmap.mmap(os.open(os.__file__, os.O_RDONLY), 4096, flags=mmap.MAP_PRIVATE, prot=5)


@probe
def execute_what_was_written() -> None:
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc.syscall(X86_64["mprotect"], ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, 5)


# --- files ----------------------------------------------------------------------------------------------------------

reads("/etc/passwd", "/etc/passwd")
reads("/etc/shadow", "/etc/shadow")
reads("the settings", sys.argv[2])
reads("its environment", "/proc/self/environ")
reads("the host's environment", f"/proc/{VICTIM}/environ")
reads("the policy", CONFIG.policy_dir / "data.json")
reads("a link out of the policy", LINK)
reads("a signing key", CONFIG.notary_dir / "keys" / "token.key")
reads("the log", CONFIG.notary_dir / "log" / "wal")
reads("a trusted key", next(CONFIG.trust_dir.glob("*.pem")))
reads("a model's entry", next((CONFIG.models_dir / "models").glob("*.json")))
reads("a model", next((CONFIG.models_dir / "blobs" / "sha256").iterdir()))
reads("a public key", CONFIG.public_dir / "jwks.json")
reads("a module", os.__file__)
PROBES["import a module"] = lambda: __import__("colorsys")
PROBES["encode an international name"] = lambda: "b\u00fccher.example".encode("idna")
PROBES["list the root"] = lambda: os.listdir("/")
PROBES["list the policy"] = lambda: os.listdir(CONFIG.policy_dir)
writes("/tmp", FOLDER / "new")
writes("the policy", CONFIG.policy_dir / "data.json")
writes("a new policy file", CONFIG.policy_dir / "new")
writes("a module", os.__file__)
writes("the log", CONFIG.notary_dir / "log" / "probe.tmp")
writes("a public key", CONFIG.public_dir / "jwks.json")
writes("a model", CONFIG.models_dir / "new")
PROBES["an unnamed file"] = lambda: os.open(CONFIG.notary_dir, os.O_TMPFILE | os.O_WRONLY)
PROBES["a set-user-id file"] = lambda: os.open(CONFIG.notary_dir / "suid", os.O_WRONLY | os.O_CREAT, 0o4755)
PROBES["a set-user-id file by openat2"] = lambda: open_beneath(
    CATALOGUE_FD, "set-user-id", os.O_WRONLY | os.O_CREAT, 0o4755
)
PROBES["set-user-id afterwards"] = lambda: os.fchmod(KEPT.fileno(), 0o4755)
PROBES["remove the policy"] = lambda: os.unlink(CONFIG.policy_dir / "data.json")
PROBES["rename the policy"] = lambda: os.rename(CONFIG.policy_dir / "data.json", CONFIG.policy_dir / "other")
PROBES["make a directory in /tmp"] = lambda: os.mkdir(FOLDER / "new")


@probe
def make_a_directory_in_the_log() -> None:
    (CONFIG.notary_dir / "log" / "probe").mkdir()
    (CONFIG.notary_dir / "log" / "probe").rmdir()


PROBES["a link"] = lambda: os.symlink("/etc/passwd", CONFIG.notary_dir / "log" / "link")
PROBES["a hard link"] = lambda: os.link(CONFIG.policy_dir / "data.json", CONFIG.notary_dir / "log" / "link")
PROBES["a device"] = lambda: os.mknod(CONFIG.notary_dir / "log" / "device", 0o20600, os.makedev(1, 3))
PROBES["change a mode"] = lambda: os.chmod(CONFIG.policy_dir / "data.json", 0o644)
PROBES["change the directory"] = lambda: os.chdir("/")
KEPT = (FOLDER / "kept").open("wb")

# --- sockets --------------------------------------------------------------------------------------------------------

family("of IPv4", socket.AF_INET)
family("of IPv4 datagrams", socket.AF_INET, socket.SOCK_DGRAM)
family("of IPv6", socket.AF_INET6)
family("of packets", socket.AF_PACKET, socket.SOCK_RAW)
family("of netlink", socket.AF_NETLINK, socket.SOCK_RAW)
family("of the kernel's ciphers", socket.AF_ALG, socket.SOCK_SEQPACKET)
family("of a hypervisor", socket.AF_VSOCK)
family("of Unix streams", socket.AF_UNIX)
family("of Unix datagrams", socket.AF_UNIX, socket.SOCK_DGRAM)
family("of Unix messages", socket.AF_UNIX, socket.SOCK_SEQPACKET)


@probe
def connect_to_a_peer() -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(str(FOLDER / "peer.sock"))


@probe
def connect_to_an_abstract_name() -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(ABSTRACT.getsockname())


PROBES["connect a leaked TCP socket"] = lambda: LEAKED_TCP.connect(TCP_LISTENER.getsockname())
PROBES["bind a leaked TCP socket"] = lambda: LEAKED_TCP_TO_BIND.bind(("127.0.0.1", 0))
PROBES["send by a leaked UDP socket"] = lambda: LEAKED_UDP.sendto(b"x", UDP_LISTENER.getsockname())
PROBES["accept and answer"] = lambda: TCP_LISTENER.accept()[0].send(b"x")
PROBES["pass a descriptor"] = lambda: socket.send_fds(CLIENT, [b"x"], [0])
PROBES["a socket pair"] = socket.socketpair


# --- running --------------------------------------------------------------------------------------------------------


def attempt(function: Callable[[], object]) -> str:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        assemble.fence(ROLE, CONFIG)  # type: ignore[arg-type]
        try:
            function()
            outcome = "done"
        except OSError as error:
            outcome = errno.errorcode[error.errno or 0]
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(write_end, outcome.encode())
        os._exit(0)
    os.close(write_end)
    said = b"".join(iter(lambda: os.read(read_end, 4096), b"")).decode()
    os.close(read_end)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGSYS:
        return "killed"
    return said if status == 0 else f"ended with {status}"


outcomes = {name: attempt(function) for name, function in PROBES.items()}
(CONFIG.models_dir / "catalogue" / "set-user-id").unlink(missing_ok=True)
print(json.dumps(outcomes))
