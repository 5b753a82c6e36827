"""The base layer: a few exact Debian 12 packages, and of each only what Python needs to run.

A path enters because a line below names it, so a package that grows a program or a setuid file adds nothing here.

Trusts: apt's verification of the signed package index, and ``packages.lock``.
Promises: no shell, no package manager, no setuid file; only Python 3.11, the C library and what both load.
Not here: the appliance and its wheels (``application``).
"""

import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from tree import Directory, File, Link, Tree, from_tar

LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
STDLIB: Final = "usr/lib/python3.11"

PYTHON_WITHOUT: Final = frozenset(
    [
        "test",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "distutils",
        "pydoc_data",
        "tkinter",
        "turtledemo",
        "turtle.py",
        "venv",
        "curses",
        "dbm",
        "sitecustomize.py",
        "config-3.11-x86_64-linux-gnu",
        "__phello__",
    ]
)
"""Parts of the standard library that a server does not need, and Debian's hook that runs code at every start."""

EXTENSIONS_WITHOUT: Final = ("_curses", "_dbm", "_crypt", "readline", "nis", "_test", "_xxtest", "xx", "ossaudiodev")
"""Extension modules whose libraries are not here, and those that exist for CPython's own tests."""

USER_ID: Final = 10001


class WrongHost(Exception):
    """This machine cannot make the image."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha256: str


def require_debian_12(os_release: Path = Path("/etc/os-release")) -> None:
    """Raises ``WrongHost`` elsewhere: the packages of the image come from this machine's own, signed apt sources."""
    lines = (line.partition("=") for line in os_release.read_text(encoding="utf-8").splitlines())
    facts = {name: value.strip('"') for name, _, value in lines}
    if (facts.get("ID"), facts.get("VERSION_ID")) != ("debian", "12"):
        raise WrongHost(
            f"the image is built on Debian 12 only, from its own apt sources; this is {facts.get('PRETTY_NAME')}. "
            "Build it on a Debian 12 machine and load the archive here: podman load -i paddock.oci.tar"
        )


def read_lock(path: Path) -> list[Package]:
    """``name version sha256`` per line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Package(*line.split()) for line in lines if line and not line.startswith("#")]


def write_lock(path: Path, packages: list[Package]) -> None:
    header = "# Debian 12 amd64. Written by `image/build --refresh-lock`; name, version, SHA-256 of the .deb.\n"
    path.write_text(header + "".join(f"{p.name} {p.version} {p.sha256}\n" for p in packages), encoding="utf-8")


def offered(names: list[str]) -> list[Package]:
    """What the machine's signed package index offers now. Raises ``WrongHost`` when it knows one of them not."""
    if not names:
        return []
    found = {}
    for stanza in _run(["apt-cache", "show", "--no-all-versions", *names]).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", stanza, re.MULTILINE))
        if len(fields) == 3:
            found[fields["Package"]] = Package(fields["Package"], fields["Version"], fields["SHA256"])
    if unknown := set(names) - set(found):
        raise WrongHost(f"apt does not offer {', '.join(sorted(unknown))}; run: apt-get update")
    return [found[name] for name in names]


def fetch(package: Package, cache: Path) -> Path:
    """The package's file, from the cache or from apt. Its digest is checked either way; ``WrongHost`` if it differs."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{package.name}-{package.sha256}.deb"
    if not path.exists():
        _run(["apt-get", "download", "-qq", f"{package.name}={package.version}"], cwd=cache)
        downloaded = [file for file in cache.glob(f"{package.name}_*.deb") if _sha256(file) == package.sha256]
        if not downloaded:
            raise WrongHost(f"{package.name} {package.version}: apt gave a file with another digest")
        downloaded[0].rename(path)
    if _sha256(path) != package.sha256:
        raise WrongHost(f"{path} was changed since it was fetched; delete it")
    return path


def base_layer(debs: Mapping[str, Path]) -> Tree:
    """Package files by name -> the base layer, without bytecode."""
    merged: Tree = {}
    for deb in debs.values():
        merged.update(_usr_merged(_unpack(deb)))
    tree: Tree = {path: _plain(path, entry) for path, entry in merged.items() if _wanted(path)}
    tree.update(_written_by_hand(merged))
    return tree


def _unpack(deb: Path) -> Tree:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:  # noqa: S607
        if process.stdout is None:
            raise WrongHost("dpkg-deb has no output")
        tree = from_tar(process.stdout)  # type: ignore[arg-type]
        if process.wait(timeout=60) != 0:
            raise WrongHost(f"dpkg-deb cannot read {deb}")
    return tree


def _usr_merged(tree: Tree) -> Tree:
    return {re.sub(r"^(bin|sbin|lib|lib64)/", r"usr/\1/", path): entry for path, entry in tree.items()}


_WANTED: Final = re.compile(
    rf"""
      usr/bin/python3\.11
    | usr/lib64/ld-linux-x86-64\.so\.2
    | {LIBRARIES}/[^/]+\.so(\.[^/]*)?
    | {STDLIB}/.+
    | usr/lib/os-release | etc/os-release | etc/debian_version
    | etc/protocols | etc/services | etc/mime\.types
    | usr/share/zoneinfo/(?!posix/|right/).+
    | usr/share/doc/[^/]+(/copyright)?
    """,
    re.VERBOSE,
)


def _wanted(path: str) -> bool:
    if not _WANTED.fullmatch(path):
        return False
    if not path.startswith(f"{STDLIB}/"):
        return True
    inside = PurePosixPath(path).relative_to(STDLIB)
    if inside.parts[0] == "lib-dynload":
        return not inside.name.startswith(EXTENSIONS_WITHOUT)
    return inside.parts[0] not in PYTHON_WITHOUT and "tests" not in inside.parts


def _plain(path: str, entry: File | Link | Directory) -> File | Link | Directory:
    """Only the interpreter and the loader need to be executable; the standard library's scripts do not."""
    return File(entry.data, path in _PROGRAMS) if isinstance(entry, File) else entry


_PROGRAMS: Final = frozenset({"usr/bin/python3.11", f"{LIBRARIES}/ld-linux-x86-64.so.2"})


def _written_by_hand(merged: Tree) -> Tree:
    """What maintainer scripts would have made, and the mount points."""
    text: Callable[[str], File] = lambda content: File(content.encode())  # noqa: E731
    certificates = [
        entry.data.strip() + b"\n"
        for path, entry in sorted(merged.items())
        if path.startswith("usr/share/ca-certificates/mozilla/") and isinstance(entry, File)
    ]
    return {
        "lib": Link("usr/lib"),
        "lib64": Link("usr/lib64"),
        "etc/passwd": text(
            "root:x:0:0:root:/nonexistent:/nonexistent\n"
            f"paddock:x:{USER_ID}:{USER_ID}:Paddock:/nonexistent:/nonexistent\n"
        ),
        "etc/group": text(f"root:x:0:\npaddock:x:{USER_ID}:\n"),
        "etc/nsswitch.conf": text("passwd: files\ngroup: files\nhosts: files\n"),
        "etc/ssl/certs/ca-certificates.crt": File(b"".join(certificates)),
        **dict.fromkeys(("dev", "proc", "sys", "run"), Directory()),
        # What is mounted on these two takes their mode and owner; the image's own root is read-only.
        "tmp": Directory(0o1777),
        "var/lib/paddock": Directory(0o700, USER_ID),
    }


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Standard output. Raises ``WrongHost`` with what the command said."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=300)
    except FileNotFoundError as error:
        raise WrongHost(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise WrongHost(f"{' '.join(command)}: {error.stderr.strip() or error.returncode}") from error
    return done.stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
