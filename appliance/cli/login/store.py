"""A person's login on their own machine: one file that only they can read, changed by one program at a time.

Trusts: the person's user, and root.
Promises: the file is whole at every moment, the former or the next, also on a disk that is full; nobody else can read
    it, or it is not used; whoever holds the lock is the only one to spend the refresh token.
Not here: what is asked of the provider (``session``).
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from appliance.core.refusals import Fault
from appliance.core.values import Value

MAX_FILE_BYTES: Final = 128 * 1024
LOCK_SECONDS: Final = 90.0
"""Somebody else may be waiting for the provider, who has ``provider.EXCHANGE_SECONDS`` for each of four answers."""
_EVERY_SECONDS: Final = 0.05
FILE: Final = "login.json"


class Site(Value, frozen=True, kw_only=True):
    """Where this person signs in, and as which client. Nothing here is a secret."""

    issuer: str
    client_id: str
    ca_file: str | None
    scopes: tuple[str, ...]


class Tokens(Value, frozen=True, kw_only=True):
    """What the provider gave, when (Unix time), and whom it named."""

    access_token: str
    refresh_token: str | None
    received_at_seconds: int
    expires_at_seconds: int | None
    subject: str | None
    name: str | None

    def fresh(self, now_seconds: int, margin_seconds: int) -> bool:
        """Good for that much longer, as far as this clock can tell, which may have been set back."""
        if self.expires_at_seconds is None:
            return self.refresh_token is None  # nothing better can be had
        return self.received_at_seconds <= now_seconds < self.expires_at_seconds - margin_seconds


class Login(Value, frozen=True, kw_only=True):
    """Without ``tokens``, the place to sign in again."""

    site: Site
    tokens: Tokens | None


class Change:
    """The file in the hands of the one who has the lock. ``take_room`` before anything that ends the tokens in it."""

    def __init__(self, folder: Path, login: Login | None) -> None:
        self._folder = folder
        self._aside = folder / f"{FILE}.new"
        self._fd: int | None = None
        self.login = login

    def take_room(self) -> int:
        """Returns the descriptor of the next file. Raises ``Fault`` where there is no room for it: so no token is
        fetched, which ends the one before it, and then lost."""
        if self._fd is None:
            with suppress(FileNotFoundError):  # of one that was killed
                self._aside.unlink()
            fd = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, MAX_FILE_BYTES)
            except OSError as error:
                os.close(fd)
                self._aside.unlink()
                raise Fault(f"no room for a login in {self._folder}: {error.strerror}") from error
            self._fd = fd
        return self._fd

    def write(self, login: Login) -> None:
        """Raises ``Fault`` or ``OSError``; the file is then as it was."""
        fd = self.take_room()
        data = msgspec.json.encode(login)
        if len(data) > MAX_FILE_BYTES or os.pwrite(fd, data, 0) != len(data):
            raise Fault(f"the login could not be written in {self._folder}")
        os.ftruncate(fd, len(data))
        os.fsync(fd)
        self._aside.rename(self._folder / FILE)
        self.close()
        with suppress(OSError):  # the name is right at once, and durable soon enough
            _sync(self._folder)
        self.login = login

    def remove(self) -> None:
        """Raises ``OSError``."""
        (self._folder / FILE).unlink(missing_ok=True)
        self.login = None

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._aside.unlink(missing_ok=True)


class Store:
    """The file, in ``folder``, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE

    def read(self) -> Login | None:
        """None where there is no file. Raises ``Fault`` for one that is not to be used."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
                raise Fault(
                    f"{self._path} must be a file of yours that nobody else can read: 'chmod 600', or remove it"
                )
            data = file.read(MAX_FILE_BYTES + 1)
        try:
            return msgspec.json.decode(data, type=Login)
        except msgspec.DecodeError as error:
            raise Fault(f"{self._path} is damaged: remove it, and sign in again") from error

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """Alone with the file. Raises ``Fault`` and ``OSError``."""
        for folder in (self._folder.parent, self._folder):  # also the first, as the XDG specification wants it
            folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._folder / "login.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _acquire(lock)
            change = Change(self._folder, self.read())
            try:
                yield change
            finally:
                change.close()
        finally:
            os.close(lock)  # which lets it go


def _acquire(lock: int) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise Fault("another 'paddock' holds this login, and does not end") from None
            time.sleep(_EVERY_SECONDS)
        else:
            return


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
