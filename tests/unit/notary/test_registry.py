"""What the registry remembers, and that it notices what it did not write."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.core.clients import MAX_TTL_SECONDS, EndedClient, Family, RevokedToken
from appliance.core.refusals import Fault, Misconfigured, Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS
from appliance.core.values import Digest
from appliance.notary.files import Files
from appliance.notary.registry import Registry
from tests.support.faulty_files import fast_directory
from tests.support.registered import client

NOW = 1_790_000_000


def family(family_id: str = "f", client_id: str = "agent", *, expires_at_seconds: int = NOW + 1000) -> Family:
    return Family(
        family_id=family_id,
        client_id=client_id,
        grant="client_credentials",
        subject="agent",
        groups=("staff",),
        models=("demo",),
        ttl_seconds=600,
        expires_at_seconds=expires_at_seconds,
    )


@contextmanager
def opened(place: Path) -> Iterator[Registry]:
    registry = Registry(Files(), place / "registry.db")
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def transaction(registry: Registry, now_seconds: int = NOW) -> Iterator[None]:
    registry.begin(now_seconds)
    yield
    registry.commit()


def fill(registry: Registry) -> None:
    with transaction(registry):
        registry.put_client(client())
        registry.put_family(family(), Digest.of(b"secret of the family"))
        registry.put_access("a1", "f", NOW + 600)
        registry.put_revoked(RevokedToken(token_id="r1", expires_at_seconds=NOW + 600))
        registry.put_ended(EndedClient(client_id="gone", until_seconds=NOW))


def everything(registry: Registry) -> list[object]:
    return [
        registry.clients(),
        registry.family("f"),
        registry.living("f", NOW),
        registry.revoked(),
        registry.ended(),
    ]


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def test_what_was_committed_is_there_again_and_is_private(place: Path) -> None:
    with opened(place) as registry:
        fill(registry)
        before = everything(registry)
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    with opened(place) as again:
        assert everything(again) == before
        assert again.holder_of("a1") == "agent"
        assert again.revoked_until("r1") == NOW + 600
        assert again.ended_until("gone") == NOW


def test_what_was_not_committed_never_was(place: Path) -> None:
    with opened(place) as registry:
        fill(registry)
        before = everything(registry)
        registry.begin(NOW)
        registry.drop_client("agent")
        registry.drop_family("f")
        registry.abandon()
        assert everything(registry) == before
        registry.begin(NOW)
        registry.drop_family("f")
    with opened(place) as again:
        assert everything(again) == before


def test_refused_step_leaves_nothing_of_itself_and_all_of_the_others(place: Path) -> None:
    with opened(place) as registry, transaction(registry):
        registry.put_revoked(RevokedToken(token_id="first", expires_at_seconds=NOW + 60))
        with pytest.raises(Refused), registry.step():
            registry.put_client(client())
            raise Refused(Reason.GRANT_INVALID)
        assert registry.clients() == {}
        assert registry.revoked_until("first") == NOW + 60


def test_what_has_expired_is_forgotten_and_not_before(place: Path) -> None:
    with opened(place) as registry:
        fill(registry)
        for later, left in [
            (600 + LEEWAY_SECONDS - 1, (True, 1, 1)),
            (600 + LEEWAY_SECONDS + 60, (True, 0, 1)),
            (1000 + 120, (False, 0, 1)),
            (MAX_TTL_SECONDS + LEEWAY_SECONDS + 200, (False, 0, 0)),
        ]:
            with transaction(registry, NOW + later):
                pass
            assert (registry.family("f") is not None, registry.n_revoked(), registry.n_ended()) == left


def test_end_of_a_clients_families_is_no_others(place: Path) -> None:
    with opened(place) as registry, transaction(registry):
        for number, owner in enumerate(("agent", "agent", "other")):
            registry.put_family(family(f"f{number}", owner), Digest.of(b"s"))
            registry.put_access(f"a{number}", f"f{number}", NOW + 60)
        assert (registry.n_families(), registry.n_families_of("agent")) == (3, 2)
        registry.drop_families_of("agent")
        assert [one.family_id for one in registry.families("", "", 10)] == ["f2"]
        assert registry.holder_of("a0") is None
        assert registry.holder_of("a2") == "other"


def test_families_come_in_pages(place: Path) -> None:
    with opened(place) as registry, transaction(registry):
        for number in range(7):
            registry.put_family(family(f"f{number}", "agent" if number % 2 else "other"), Digest.of(b"s"))
        assert [one.family_id for one in registry.families("", "f2", 3)] == ["f3", "f4", "f5"]
        assert [one.family_id for one in registry.families("agent", "", 9)] == ["f1", "f3", "f5"]


def test_changed_byte_is_noticed_or_says_nothing(place: Path) -> None:
    """Every eleventh byte of the file, so that the rows, the pages around them and the header are all met."""
    with opened(place) as registry:
        fill(registry)
        before = everything(registry)
    path = place / "registry.db"
    good = path.read_bytes()
    noticed = 0
    for position in itertools.chain(range(0, 100), range(100, len(good), 11)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x20]) + good[position + 1 :])
        try:
            with opened(place) as registry:
                assert everything(registry) == before, position
        except Misconfigured as error:
            noticed += 1
            assert str(error).startswith(f"{path} is damaged (")
            assert "\n" not in str(error)
    path.write_bytes(good)
    assert noticed > 50


@pytest.mark.parametrize("part", [b"analysts", b"secret_basic", bytes.fromhex(Digest.of(b"secret of the family").hex)])
def test_changed_row_is_noticed(place: Path, part: bytes) -> None:
    with opened(place) as registry:
        fill(registry)
    path = place / "registry.db"
    data = path.read_bytes()
    assert part in data
    path.write_bytes(data.replace(part, bytes([part[0] ^ 1]) + part[1:]))
    with pytest.raises(Misconfigured, match=r"a row of (client|family) has changed"):
        Registry(Files(), path)


def test_lost_or_emptied_registry_is_not_taken_for_a_new_one(place: Path) -> None:
    """Otherwise whatever was revoked would count again."""
    with opened(place) as registry:
        fill(registry)
    path = place / "registry.db"
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(Misconfigured, match="is lost"):
        Registry(Files(), path)
    path.unlink()
    with pytest.raises(Misconfigured, match="is lost"):
        Registry(Files(), path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(Misconfigured, match="is damaged"):
        Registry(Files(), path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Misconfigured, match="is not a file"):
        Registry(Files(), path)


def test_registry_that_somebody_else_has_open_is_refused(place: Path) -> None:
    program = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " db.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    with opened(place):
        pass
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program, str(place / "registry.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Fault, match="cannot be used"):
            Registry(Files(), place / "registry.db")
        holder.communicate(timeout=30)


def test_no_secret_is_in_the_file(place: Path) -> None:
    with opened(place) as registry:
        fill(registry)
    assert b"secret of the family" not in (place / "registry.db").read_bytes()


def test_no_other_service_loads_the_database_of_the_notary() -> None:
    program = "import sys, appliance.assemble; sys.exit('sqlite3' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-B", "-c", program], timeout=60, check=True)
