"""Runs one Python script as root in a virtual machine with Debian's own kernel: for what this machine's kernel lacks.

The guest has no disk, no network and no other program: its root is an archive in memory of this virtual environment's
interpreter, the standard library, the packages that were asked for and this repository's code, all under the paths that
they have here. ``/proc``, ``/sys``, ``/dev`` and cgroup v2 are mounted; each of ``disks`` is a block device
(``/dev/vda``, ``/dev/vdb``, ...) that the guest may write. Needs qemu and one of Debian's kernels, and no privilege;
the processor is emulated, which is slow and works everywhere.
"""

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

QEMU: Final = "qemu-system-x86_64"
PACKAGES: Final = ("_cffi_backend*", "cryptography", "msgspec", "typing_extensions.py", "_editable_impl_*.pth")
REPOSITORY: Final = Path(__file__).parents[2]
CODE: Final = ("appliance", "tests/support")

_DRIVERS: Final = ("virtio_pci", "virtio_blk")
_LEFT_OUT: Final = {"test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "site-packages",
                    "dist-packages"}  # fmt: skip
_STATUS: Final = "guest-script-ended-with: "

# Process 1: the kernel gives it nothing but its arguments, and panics when it ends.
_INIT: Final = """\
#!{python}
import ctypes, os, subprocess, tty
libc = ctypes.CDLL(None, use_errno=True)
def mount(kind, place):
    os.makedirs(place, exist_ok=True)
    if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), "mounting " + place)
os.makedirs("/tmp", exist_ok=True)
for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/dev/shm"),
                    ("cgroup2", "/sys/fs/cgroup")):
    mount(kind, place)
for driver in {drivers}:
    fd = os.open(driver, os.O_RDONLY | os.O_CLOEXEC)
    if libc.syscall(313, fd, b"", 0):  # finit_module
        raise OSError(ctypes.get_errno(), driver)
port = os.open("/dev/ttyS1", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
tty.setraw(port)
environment = {{"PATH": "/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}}
done = subprocess.run([{python!r}, "-B", "/script.py"], stdin=subprocess.DEVNULL, stdout=port, stderr=port,
                      cwd={repository!r}, env=environment | {{"PYTHONPATH": {repository!r}}})
os.write(port, "\\n{status}{{}}\\n".format(done.returncode).encode())
tty.tcdrain(port)
os.sync()
libc.reboot(0x4321FEDC)  # power off
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a script ended, and what it wrote to standard output and error."""

    status: int
    output: str


class GuestLost(Exception):
    """The guest ended before its script did. The message is the end of its console."""


def missing() -> str | None:
    """What must be installed before a guest can run here, or None."""
    if shutil.which(QEMU) is None:
        return f"there is no {QEMU}"
    return None if _kernels() else "there is no Debian kernel with its modules (linux-image-cloud-amd64)"


def run(
    script: str,
    place: Path,
    *,
    disks: Sequence[Path] = (),
    modules: Sequence[str] = (),
    packages: Iterable[str] = PACKAGES,
    memory_mib: int = 1024,
    timeout_seconds: float = 110,
) -> Ended:
    """Boots, runs, powers off; ``place`` is an empty folder for the guest's files, ``modules`` are of its kernel.

    Raises ``GuestLost``, or ``subprocess.TimeoutExpired`` after killing the guest.
    """
    kernel, folder = _kernels()[-1]
    drivers = _with_dependencies(folder, (*_DRIVERS, *modules))
    python = Path(sys.prefix, "bin", "python")
    init = _INIT.format(
        python=str(python), drivers=[str(path) for path in drivers], repository=str(REPOSITORY), status=_STATUS
    )
    archive, console, output = place / "root.cpio", place / "console", place / "output"
    files = sorted(set(_files(python, packages)) | set(drivers))
    with archive.open("wb") as made:
        for piece in _archived({"/init": init, "/script.py": script}, files):
            made.write(piece)
    command = [QEMU, "-accel", "tcg", "-cpu", "max", "-m", str(memory_mib), "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-no-reboot", "-kernel", str(kernel), "-initrd", str(archive)]
    command += ["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]
    command += ["-serial", f"file:{console}", "-serial", f"file:{output}"]
    for disk in disks:
        command += ["-drive", f"file={disk},format=raw,if=virtio"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    finally:
        archive.unlink()  # a hundred megabytes that the test runner would keep
    said = output.read_text(errors="replace") if output.exists() else ""
    text, found, status = said.rpartition(f"\n{_STATUS}")
    if not found:
        last = console.read_text(errors="replace")[-4000:] if console.exists() else ""
        raise GuestLost(f"{done.stderr}\n{last}\n{said}")
    return Ended(status=int(status), output=text)


def _kernels() -> list[tuple[Path, Path]]:
    """Kernels of Debian's with their folders of modules, the last the newest by name."""
    found = [
        (path, Path("/lib/modules", path.name.removeprefix("vmlinuz-")))
        for path in Path("/boot").glob("vmlinuz-*-amd64")
    ]
    return sorted(pair for pair in found if os.access(pair[0], os.R_OK) and (pair[1] / "modules.dep").exists())


def _with_dependencies(folder: Path, names: Iterable[str]) -> list[Path]:
    """Module files in the order in which they can be loaded. One that is part of the kernel is not among them."""
    lines = (line.split(":") for line in (folder / "modules.dep").read_text().splitlines())
    needs = {name: [name, *rest.split()][::-1] for name, rest in lines}
    ordered = [one for name in names for path in needs if Path(path).stem == name for one in needs[path]]
    return [folder / path for path in dict.fromkeys(ordered)]


def _files(python: Path, packages: Iterable[str]) -> Iterator[Path]:
    """Everything that an interpreter needs to run this repository's code."""
    pure, library = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))
    roots = [library, *(found for pattern in packages for found in pure.glob(pattern))]
    roots += [REPOSITORY / folder for folder in CODE]
    found = [python, Path(sys.prefix, "pyvenv.cfg"), *(path for root in roots for path in _below(root))]
    yield from found
    binaries = [str(path) for path in found if path == python or ".so" in path.suffixes]
    said = subprocess.run(["ldd", *binaries], capture_output=True, text=True, timeout=60, check=False).stdout
    yield from {Path(word) for line in said.splitlines() for word in line.split() if line[0] == "\t" and word[0] == "/"}


def _below(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if ".opt-" not in name)


def _archived(texts: dict[str, str], files: Iterable[Path]) -> Iterator[bytes]:
    """The kernel's "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst), links followed."""
    folders: set[Path] = set()
    for path in files:
        for folder in [*path.parents][-2::-1]:
            if folder not in folders:
                folders.add(folder)
                yield _entry(str(folder), stat.S_IFDIR | 0o755, b"")
        status = path.stat()
        yield _entry(str(path), stat.S_IFREG | stat.S_IMODE(status.st_mode), path.read_bytes(), int(status.st_mtime))
    for name, text in texts.items():
        yield _entry(name, stat.S_IFREG | 0o755, text.encode())
    yield _entry("/TRAILER!!!", 0, b"")


def _entry(path: str, mode: int, data: bytes, mtime: int = 0) -> bytes:
    name = path[1:].encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return b"".join((head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)))
