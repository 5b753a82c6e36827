"""Garbage collection: deletes what the store once made and nothing needs any more.

Garbage is a blob or bundle that no index entry points to, a temporary file whose process died, and the beginning of a
download that nobody has gone on with for a week. Each is a plain file of ours, under a name that the store gives, at
its place. Everything else is somebody else's: it is named, and left alone.

Why nothing in use is lost: the caller holds the store's writer lock, under which an import gives its blob, its bundles
and its entry their names, so no file is seen between its name and its entry; what is being written has no name yet, or
a name that its process has claimed (``files.claim``); and a model that is being loaded is open already, or will be
found missing and refused. While one entry cannot be read, any blob might be its own, and none is deleted.

Trusts: the caller, for the lock and for what the entries say.
Promises: each deletion by itself leaves a sound store, so a crash between two leaves one too.
Not here: the entries (``models.store``); whether blobs are what their names say (each load).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from appliance.core.refusals import Refused
from appliance.core.text import printable
from appliance.core.values import Digest, Value
from appliance.models.files import (
    PARTIAL_SUFFIX,
    PARTIALS_DIRECTORY,
    TEMPORARY,
    check_directory,
    check_plain,
    claim,
    unlink_if_present,
)
from appliance.sandbox.openat2 import open_beneath

PARTIALS_KEPT_SECONDS: Final = 7 * 24 * 3600

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

Kind = Literal["needed", "unreferenced", "temporary", "partial", "foreign", "damaged", "undecided"]
Judge = Callable[[str], Kind]
"""What a file is, by its name and place alone."""


class Pointers(Value, frozen=True, kw_only=True):
    """What the entries say: their names, and the digests in hex that they point to. ``damaged`` cannot be read."""

    entries: frozenset[str]
    blobs: frozenset[str]
    bundles: frozenset[str]
    damaged: frozenset[str]


class Garbage(Value, frozen=True, kw_only=True):
    """One file that was deleted, or would be. ``place`` is relative to the store."""

    place: str
    size_bytes: int
    kind: Kind


class Collection(Value, frozen=True, kw_only=True):
    """``left`` are lines for an operator: what is not needed, as far as anybody can tell, and was not touched."""

    garbage: tuple[Garbage, ...]
    left: tuple[str, ...]


def _is_digest(name: str) -> bool:
    try:
        Digest(hex=name)
    except ValueError:
        return False
    return True


def _is_partial(name: str) -> bool:
    return name.endswith(PARTIAL_SUFFIX) and _is_digest(name.removesuffix(PARTIAL_SUFFIX))


def collect(root: int, pointers: Pointers, *, now_seconds: int, dry_run: bool) -> Collection:
    """Looks through a whole store, whose writer lock is held. Raises ``Fault`` or ``OSError``; some is then deleted."""
    sweep = _Sweep(now_seconds=now_seconds, dry_run=dry_run)
    for path, judge in _places(pointers).items():
        with _directory(root, path) as directory:
            if directory is not None:
                for name in sorted(os.listdir(directory)):  # noqa: PTH208 - by descriptor
                    sweep.look(directory, path, name, judge(name))
    return Collection(garbage=tuple(sweep.garbage), left=tuple(sweep.left))


def _places(pointers: Pointers) -> dict[str, Judge]:
    def content(wanted: frozenset[str]) -> Judge:
        def judge(name: str) -> Kind:
            if not _is_digest(name):
                return _temporary_or_foreign(name)
            if name in wanted:
                return "needed"
            return "undecided" if pointers.damaged else "unreferenced"

        return judge

    def only(*names: str) -> Judge:
        return lambda name: "needed" if name in names else _temporary_or_foreign(name)

    return {
        ".": only("blobs", "bundles", "models", "catalogue", PARTIALS_DIRECTORY),
        "blobs": only("sha256"),
        "bundles": only("sha256"),
        "models": lambda name: "damaged" if name in pointers.damaged else only(*pointers.entries)(name),
        "catalogue": only("seen.json"),
        "blobs/sha256": content(pointers.blobs),
        "bundles/sha256": content(pointers.bundles),
        PARTIALS_DIRECTORY: lambda name: "partial" if _is_partial(name) else "foreign",
    }


def _temporary_or_foreign(name: str) -> Kind:
    return "temporary" if TEMPORARY.fullmatch(name) else "foreign"


@contextmanager
def _directory(root: int, path: str) -> Iterator[int | None]:
    """None where there is none: some are made when they are first needed."""
    try:
        fd = open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        check_directory(fd)
        yield fd
    finally:
        os.close(fd)


_LEFT: Final[dict[Kind, str]] = {
    "foreign": "not the store's",
    "damaged": "cannot be read; until it is removed, no blob and no bundle is",
    "undecided": "an entry that cannot be read may point to it",
}


class _Sweep:
    def __init__(self, *, now_seconds: int, dry_run: bool) -> None:
        self._now_seconds = now_seconds
        self._dry_run = dry_run
        self.garbage: list[Garbage] = []
        self.left: list[str] = []

    def look(self, directory: int, path: str, name: str, kind: Kind) -> None:
        """Deletes one file, if it is garbage, or says why not."""
        place = printable(name if path == "." else f"{path}/{name}")
        if kind == "needed":
            return
        if kind in _LEFT:
            self.left.append(f"{place}: {_LEFT[kind]}")
            return
        try:
            fd = open_beneath(directory, name, _READ)
        except FileNotFoundError:
            return  # its own process was done with it
        except OSError:  # a link, a socket, or a file of somebody else's
            self.left.append(f"{place}: {_LEFT['foreign']}")
            return
        try:
            self._take(fd, directory, place, name, kind)
        finally:
            os.close(fd)

    def _take(self, fd: int, directory: int, place: str, name: str, kind: Kind) -> None:
        """The claim comes before every look, and is held until the name is gone: whoever opened the file meanwhile
        finds it without one."""
        if not claim(fd):
            self.left.append(f"{place}: in use")
            return
        status = os.fstat(fd)
        if status.st_nlink == 0:
            return  # its own process was done with it
        try:
            check_plain(status, name)
        except Refused:
            self.left.append(f"{place}: {_LEFT['foreign']}")
            return
        if kind == "partial" and self._now_seconds - int(status.st_mtime) < PARTIALS_KEPT_SECONDS:
            self.left.append(f"{place}: the beginning of a download, {status.st_size} bytes; kept for a week")
            return
        if not self._dry_run:
            unlink_if_present(directory, name)
        self.garbage.append(Garbage(place=place, size_bytes=status.st_size, kind=kind))
