"""A file tree as a dictionary, to and from tar files and folders: what one layer of the image is.

Time never enters, nor who builds: every layer is of one instant, and root's but for the directories that say otherwise.

Trusts: the tar files and folders it is given (their digests were checked before).
Promises: equal trees give equal bytes.
Not here: which files belong into the image (``debian``, ``application``).
"""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

EPOCH_SECONDS: Final = 1_750_000_000
"""The one time that the image knows. Any constant will do."""


@dataclass(frozen=True)
class File:
    data: bytes
    executable: bool = False


@dataclass(frozen=True)
class Link:
    target: str


@dataclass(frozen=True)
class Directory:
    """Needed only for empty ones: the parents of every file are made, as 0755."""

    mode: int = 0o755
    owner: int = 0


Tree = dict[str, File | Link | Directory]
"""Paths are relative to the root, without a leading slash."""


def from_tar(stream: BinaryIO) -> Tree:
    """A tar stream -> its files and links. Directories and modes are dropped but for the executable bit; a hard link
    becomes a copy. Raises ``ValueError`` for devices and whatever else an image must not hold."""
    tree: Tree = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = _inside(member.name)
            if member.isreg():
                content = archive.extractfile(member)
                tree[path] = File(b"" if content is None else content.read(), bool(member.mode & 0o100))
            elif member.issym():
                tree[path] = Link(member.linkname)
            elif member.islnk():
                tree[path] = tree[_inside(member.linkname)]
            elif not member.isdir():
                raise ValueError(f"{member.name}: neither a file nor a link nor a directory")
    return tree


def to_tar(tree: Tree, path: Path) -> None:
    """Writes ``path`` anew, entries sorted by name."""
    parents: Tree = dict.fromkeys(_parents(tree), Directory())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, entry in sorted({**parents, **tree}.items()):
            member = tarfile.TarInfo(name)
            member.mtime = EPOCH_SECONDS
            content = None
            match entry:
                case File(data, executable):
                    member.mode = 0o755 if executable else 0o644
                    member.size = len(data)
                    content = io.BytesIO(data)
                case Link(target):
                    member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, target
                case Directory(mode, owner):
                    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, owner, owner
            archive.addfile(member, content)


def to_folder(tree: Tree, folder: Path) -> None:
    """Writes the tree below ``folder``, which must not hold it yet."""
    for name, entry in tree.items():
        path = folder / name
        if isinstance(entry, Directory):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, Link):
            path.symlink_to(entry.target)
        else:
            path.write_bytes(entry.data)
            path.chmod(0o755 if entry.executable else 0o644)


def from_folder(folder: Path) -> Tree:
    """Files and links below ``folder``; bytecode caches of the machine that builds are not content."""
    tree: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in path.parts:
            continue
        if path.is_symlink():
            tree[name] = Link(str(path.readlink()))
        elif path.is_file():
            tree[name] = File(path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return tree


def _parents(names: Iterable[str]) -> set[str]:
    found = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return found - {"."}


def _inside(name: str) -> str:
    path = PurePosixPath(name.removeprefix("./"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name}: points out of the tree")
    return str(path)
