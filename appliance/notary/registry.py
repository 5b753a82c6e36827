"""What the notary remembers of clients and their tokens: one SQLite file, ``registry.db``.

========  ==============================================================================  =====================
table     a row is                                                                        until
========  ==============================================================================  =====================
client    what an operator registered                                                     it is removed
family    refresh tokens that come one of the other, with the digest of the current one   it expires or is ended
access    a living access token that came of a family, by its id                          it has expired
revoked   an access token that was ended before its time                                  it has expired
ended     a client whose tokens up to a moment have ended                                 the last has expired
========  ==============================================================================  =====================

No secret is among them: secrets and refresh tokens are random, of 256 bits, and only their digests are kept.

Every row ends with a digest over the others of its columns. SQLite finds what is wrong with its own structure
(``PRAGMA integrity_check``); the digests find a changed byte in what a row says. Neither helps against somebody who
writes rows on purpose, or puts back an older file: whoever can write here has the keys as well.

Trusts: the file system to keep what it has synced; that one process has the state directory (``notary.recover``).
Promises: a transaction is on disk when ``commit`` returns, and nothing of it when ``abandon`` does; a file with a
    changed byte is not used.
Not here: which change makes sense, its record, and that each ``MAX_`` below is kept (``notary.granting``,
    ``notary.operating``).
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.core.clients import MAX_TTL_SECONDS, Client, EndedClient, Family, RevokedToken
from appliance.core.codec import canonical_json, json_decoder
from appliance.core.refusals import Fault, Misconfigured
from appliance.core.token_claims import LEEWAY_SECONDS
from appliance.core.values import Digest
from appliance.notary.files import Files
from appliance.notary.wal import exists

MAX_CLIENTS: Final = 1000
MAX_FAMILIES: Final = 100_000
MAX_FAMILIES_OF_CLIENT: Final = 1000
MAX_LIVING_OF_FAMILY: Final = 256
MAX_REVOKED: Final = 100_000
MAX_ENDED: Final = 10_000

_EDITION: Final = 1
_JOURNAL_HEADER_BYTES: Final = 28
"""SQLite file format, section 3: "The Rollback Journal"."""
_PURGE_SECONDS: Final = 60

_SCHEMA: Final = (
    "CREATE TABLE client (client_id TEXT PRIMARY KEY, document BLOB, digest BLOB) STRICT, WITHOUT ROWID",
    "CREATE TABLE family (family_id TEXT PRIMARY KEY, client_id TEXT, expires INTEGER, secret BLOB, document BLOB,"
    " digest BLOB) STRICT, WITHOUT ROWID",
    "CREATE TABLE access (token_id TEXT PRIMARY KEY, family_id TEXT, expires INTEGER, digest BLOB)"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE revoked (token_id TEXT PRIMARY KEY, expires INTEGER, digest BLOB) STRICT, WITHOUT ROWID",
    "CREATE TABLE ended (client_id TEXT PRIMARY KEY, until INTEGER, digest BLOB) STRICT, WITHOUT ROWID",
    "CREATE INDEX family_client ON family (client_id, family_id)",
    "CREATE INDEX access_family ON access (family_id, expires)",
)
_ALL: Final = {
    "client": "SELECT * FROM client",
    "family": "SELECT * FROM family",
    "access": "SELECT * FROM access",
    "revoked": "SELECT * FROM revoked",
    "ended": "SELECT * FROM ended",
}
_PUT: Final = {
    "client": "INSERT OR REPLACE INTO client VALUES (?, ?, ?)",
    "family": "INSERT OR REPLACE INTO family VALUES (?, ?, ?, ?, ?, ?)",
    "access": "INSERT INTO access VALUES (?, ?, ?, ?)",
    "revoked": "INSERT OR REPLACE INTO revoked VALUES (?, ?, ?)",
    "ended": "INSERT OR REPLACE INTO ended VALUES (?, ?, ?)",
}
_SETTINGS: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = PERSIST",
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA mmap_size = 0",
    "PRAGMA secure_delete = ON",
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA journal_size_limit = 1048576",
)
_HOST_ERRORS: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM,
    }
)  # fmt: skip
"""What says nothing of the file: the disk may be full, or fail."""

_CLIENT: Final = json_decoder(Client)
_FAMILY: Final = json_decoder(Family)


class Registry:
    """Belongs to one thread at a time. Methods raise ``sqlite3.Error`` when the file cannot be read or written; then
    ``abandon`` and nothing else is to be called."""

    def __init__(self, files: Files, path: Path) -> None:
        """Opens the file, or makes it where there was none. Raises ``Fault`` when the disk does not let it,
        ``Misconfigured`` when it is not what was last written."""
        self._files = files
        self._path = path
        self._purged_at = 0
        self.latest_seconds = 0
        self._db = self._open()

    def close(self) -> None:
        self._db.close()

    # --- transactions -----------------------------------------------------------------------------------------------

    def begin(self, now_seconds: int) -> None:
        """What has expired goes with the transaction, now and then. ``latest_seconds`` is the latest moment that this
        process has seen: the clock may be set back, and tokens are as old as it said."""
        self._db.execute("BEGIN EXCLUSIVE")
        self.latest_seconds = max(self.latest_seconds, now_seconds)
        if not 0 <= now_seconds - self._purged_at < _PURGE_SECONDS:
            self._purge(now_seconds)
            self._purged_at = now_seconds

    @contextmanager
    def step(self) -> Iterator[None]:
        """One of several changes in a transaction: all of it, or nothing where it raises."""
        self._db.execute("SAVEPOINT step")
        try:
            yield
        except sqlite3.Error:
            raise  # the transaction as a whole is to be abandoned
        except BaseException:
            self._db.execute("ROLLBACK TO step")
            self._db.execute("RELEASE step")
            raise
        self._db.execute("RELEASE step")

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def abandon(self) -> None:
        """Nothing of the transaction has happened. What is on disk is read and judged again, since after a failed sync
        SQLite's own memory of the file is worth nothing. Raises as the constructor does."""
        with suppress(sqlite3.Error):  # closing takes the transaction back as well
            self._db.execute("ROLLBACK")
        self._db.close()
        self._db = self._open()

    # --- clients ----------------------------------------------------------------------------------------------------

    def client(self, client_id: str) -> Client | None:
        row = self._one("SELECT document FROM client WHERE client_id = ?", client_id)
        return None if row is None else _client(row[0])

    def clients(self) -> dict[str, Client]:
        rows = self._db.execute("SELECT client_id, document FROM client")
        return {client_id: _client(document) for client_id, document in rows}

    def n_clients(self) -> int:
        return self._count("SELECT count(*) FROM client")

    def put_client(self, client: Client) -> None:
        self._put("client", client.client_id, canonical_json(client))

    def drop_client(self, client_id: str) -> None:
        self._db.execute("DELETE FROM client WHERE client_id = ?", (client_id,))

    # --- families of refresh tokens ---------------------------------------------------------------------------------

    def family(self, family_id: str) -> tuple[Family, Digest] | None:
        """With the digest of its current secret."""
        row = self._one("SELECT document, secret FROM family WHERE family_id = ?", family_id)
        return None if row is None else (_family(row[0]), Digest(hex=row[1].hex()))

    def families(self, client_id: str, after: str, at_most: int) -> list[Family]:
        """In the order of their ids; of all clients with an empty ``client_id``."""
        rows = self._db.execute(
            "SELECT document FROM family WHERE family_id > ? AND (client_id = ? OR ? = '') ORDER BY family_id LIMIT ?",
            (after, client_id, client_id, at_most),
        )
        return [_family(document) for (document,) in rows]

    def n_families(self) -> int:
        return self._count("SELECT count(*) FROM family")

    def n_families_of(self, client_id: str) -> int:
        return self._count("SELECT count(*) FROM family WHERE client_id = ?", client_id)

    def put_family(self, family: Family, secret_sha256: Digest) -> None:
        """New, or with a new secret."""
        self._put(
            "family",
            family.family_id,
            family.client_id,
            family.expires_at_seconds,
            bytes.fromhex(secret_sha256.hex),
            canonical_json(family),
        )

    def drop_family(self, family_id: str) -> None:
        self._db.execute("DELETE FROM access WHERE family_id = ?", (family_id,))
        self._db.execute("DELETE FROM family WHERE family_id = ?", (family_id,))

    def drop_families_of(self, client_id: str) -> None:
        self._db.execute(
            "DELETE FROM access WHERE family_id IN (SELECT family_id FROM family WHERE client_id = ?)", (client_id,)
        )
        self._db.execute("DELETE FROM family WHERE client_id = ?", (client_id,))

    # --- access tokens ----------------------------------------------------------------------------------------------

    def put_access(self, token_id: str, family_id: str, expires_at_seconds: int) -> None:
        self._put("access", token_id, family_id, expires_at_seconds)

    def living(self, family_id: str, now_seconds: int) -> tuple[RevokedToken, ...]:
        """The access tokens of a family that a verifier may still accept."""
        rows = self._db.execute(
            "SELECT token_id, expires FROM access WHERE family_id = ? AND expires > ?",
            (family_id, now_seconds - LEEWAY_SECONDS),
        )
        return tuple(RevokedToken(token_id=token_id, expires_at_seconds=expires) for token_id, expires in rows)

    def holder_of(self, token_id: str) -> str | None:
        """The client of an access token that came of a family."""
        row = self._one(
            "SELECT client_id FROM family WHERE family_id = (SELECT family_id FROM access WHERE token_id = ?)", token_id
        )
        return None if row is None else str(row[0])

    # --- what has ended ---------------------------------------------------------------------------------------------

    def n_revoked(self) -> int:
        return self._count("SELECT count(*) FROM revoked")

    def revoked_until(self, token_id: str) -> int:
        """When the token was said to expire that was ended; 0 for one that was not."""
        row = self._one("SELECT expires FROM revoked WHERE token_id = ?", token_id)
        return 0 if row is None else int(row[0])

    def put_revoked(self, token: RevokedToken) -> None:
        self._put("revoked", token.token_id, token.expires_at_seconds)

    def revoked(self) -> tuple[RevokedToken, ...]:
        rows = self._db.execute("SELECT token_id, expires FROM revoked")
        return tuple(RevokedToken(token_id=token_id, expires_at_seconds=expires) for token_id, expires in rows)

    def n_ended(self) -> int:
        return self._count("SELECT count(*) FROM ended")

    def ended_until(self, client_id: str) -> int:
        """Tokens of this client that were issued up to then have ended; 0 for none."""
        row = self._one("SELECT until FROM ended WHERE client_id = ?", client_id)
        return 0 if row is None else int(row[0])

    def put_ended(self, ended: EndedClient) -> None:
        self._put("ended", ended.client_id, ended.until_seconds)

    def ended(self) -> tuple[EndedClient, ...]:
        rows = self._db.execute("SELECT client_id, until FROM ended")
        return tuple(EndedClient(client_id=client_id, until_seconds=until) for client_id, until in rows)

    # --- the file ---------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        _make(self._files, self._path)
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
            for setting in _SETTINGS:
                db.execute(setting)
            db.execute("BEGIN EXCLUSIVE")  # so that what needs a lock has it from now on
            _prepare(db)
            db.execute("COMMIT")
            _check(db)
        except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
            if db is not None:
                db.close()
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            what = " ".join(str(error).split())
            if code & 0xFF in _HOST_ERRORS:
                raise Fault(f"{self._path} cannot be used: {what}") from error
            raise Misconfigured(f"{self._path} is damaged ({what}): put back a good copy of it") from error
        return db

    def _purge(self, now_seconds: int) -> None:
        expired = now_seconds - LEEWAY_SECONDS
        self._db.execute("DELETE FROM family WHERE expires <= ?", (now_seconds,))
        self._db.execute("DELETE FROM access WHERE expires <= ?", (expired,))
        self._db.execute("DELETE FROM revoked WHERE expires <= ?", (expired,))
        self._db.execute("DELETE FROM ended WHERE until <= ?", (expired - MAX_TTL_SECONDS,))

    def _put(self, table: str, *columns: str | int | bytes) -> None:
        self._db.execute(_PUT[table], (*columns, _digest(table, columns)))

    def _one(self, query: str, *values: str) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row

    def _count(self, query: str, *values: str) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


def _make(files: Files, path: Path) -> None:
    """An empty file that nobody else can read, before SQLite would make one that others can.

    SQLite leaves its journal beside the file, with nothing but zeros for a header after each commit: a registry that is
    gone or empty beside one of those was lost, and with it what was revoked."""
    if not exists(path):
        files.close(files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise Misconfigured(f"{path} is not a file")
    if found.st_size == 0 and _has_committed(path.with_name(path.name + "-journal")):
        raise Misconfigured(f"{path} is lost, and with it what was revoked: put back a good copy of it")


def _has_committed(journal: Path) -> bool:
    try:
        with journal.open("rb") as file:
            return file.read(_JOURNAL_HEADER_BYTES) == bytes(_JOURNAL_HEADER_BYTES)
    except FileNotFoundError:
        return False


def _prepare(db: sqlite3.Connection) -> None:
    if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_EDITION}")


def _check(db: sqlite3.Connection) -> None:
    """Raises ``sqlite3.Error`` or ``ValueError``."""
    if (found := db.execute("PRAGMA integrity_check(1)").fetchall()) != [("ok",)]:
        raise ValueError(str(found[0][0]) if found else "it cannot be checked")
    if db.execute("PRAGMA user_version").fetchone() != (_EDITION,):
        raise ValueError("it is of another edition")
    schema = [statement for (statement,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    if sorted(schema) != sorted(_SCHEMA):
        raise ValueError("its tables are not ours")
    for table, query in _ALL.items():
        for *columns, digest in db.execute(query):
            if _digest(table, columns) != digest:
                raise ValueError(f"a row of {table} has changed")


def _digest(table: str, columns: Any) -> bytes:
    return sha256(msgspec.msgpack.encode([table, *columns])).digest()[:16]


def _client(document: bytes) -> Client:
    client: Client = _CLIENT.decode(document)
    return client


def _family(document: bytes) -> Family:
    family: Family = _FAMILY.decode(document)
    return family
