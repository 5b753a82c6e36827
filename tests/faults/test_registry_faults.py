"""``kill -9`` around the commit of the registry, and a disk that is really full."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.audit.query import read_entries
from appliance.core.clients import IssuedTokens
from appliance.core.records import ClientChanged, TokenIssued, TokenRevoked
from appliance.core.refusals import Reason, Refused
from appliance.ipc.connection import CallFailed
from appliance.ipc.messages import Failed, PutClient
from appliance.notary.main import NotaryConfig
from tests.support.audit_log import run
from tests.support.notary_client import notary_config
from tests.support.registered import client, order, refresh
from tests.support.registry_world import World, connected, world

KILLS = 5
REPOSITORY = Path(__file__).parents[2]


def recorded(config: NotaryConfig, *kinds: Any) -> list[Any]:
    return [entry.record for entry in read_entries(config.state_dir / "log") if isinstance(entry.record, kinds)]


@contextmanager
def dying_notary(place: Path, moment: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.support.dying_notary", str(place), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_notary_leaves_nobody_with_a_token_that_is_not_on_record(tmp_path: Path, moment: str) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        with dying_notary(tmp_path, moment) as process:
            async with connected(config) as here:
                await here.put(client())
                tokens = await here.registry.grant(order(refreshable=True))
                (tmp_path / "die").touch()
                with pytest.raises(Refused) as caught:
                    await here.registry.refresh(refresh(tokens.refresh_token))
                assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
            assert process.wait(30) == -9
        assert [record.grant for record in recorded(config, TokenIssued)] == ["client_credentials", "refresh_token"]
        async with world(config) as here:
            again = here.registry.refresh(refresh(tokens.refresh_token))
            if moment == "before":  # it was not used as far as anybody remembers
                assert (await again).refresh_token != tokens.refresh_token
            else:
                with pytest.raises(Refused) as caught:
                    await again
                assert caught.value.reason is Reason.GRANT_INVALID
                await here.ended(tokens.token_id)

    run(scenario, timeout_seconds=60)
    assert len(recorded(config, TokenRevoked)) == (0 if moment == "before" else 1)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_notary_remembers_an_end_or_was_never_told(tmp_path: Path, moment: str) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        with dying_notary(tmp_path, moment) as process:
            async with connected(config) as here:
                await here.put(client())
                (tmp_path / "die").touch()
                with pytest.raises(Exception, match="peer closed"):
                    await here.end(token_id="t")
            assert process.wait(30) == -9
        assert len(recorded(config, TokenRevoked)) == 1
        async with world(config) as here:
            assert here.counts("t") is (moment == "before")
            await here.end(token_id="t")
            await here.ended("t")

    run(scenario, timeout_seconds=60)


def test_notary_killed_at_any_moment_forgets_nothing_that_it_answered(tmp_path: Path) -> None:
    config, chance = notary_config(tmp_path), random.Random(4711)
    given: list[IssuedTokens] = []
    ended: list[str] = []
    numbers = itertools.count()

    async def work(here: World) -> None:
        """Until the notary is gone."""
        tokens = await here.registry.grant(order(refreshable=True))
        while True:
            given.append(tokens)
            name = f"token-{next(numbers)}"
            await here.end(token_id=name)
            ended.append(name)
            tokens = await here.registry.refresh(refresh(tokens.refresh_token))

    async def scenario() -> None:
        for number in range(KILLS):
            with dying_notary(tmp_path, "never") as process:
                async with connected(config) as here:
                    if number == 0:
                        await here.put(client())
                    working = [asyncio.create_task(work(here)) for _ in range(4)]
                    await asyncio.sleep(chance.uniform(0.05, 0.3))
                    process.kill()
                    outcomes = await asyncio.gather(*working, return_exceptions=True)
                    assert all(isinstance(outcome, Refused | CallFailed) for outcome in outcomes), outcomes
        async with world(config) as here:
            assert given
            assert ended
            assert [name for name in ended if here.counts(name)] == []

    run(scenario, timeout_seconds=90)
    on_record = {record.token_id for record in recorded(config, TokenIssued)}
    assert {tokens.token_id for tokens in given} <= on_record


@pytest.fixture
def two_disks(tmp_path: Path) -> Iterator[Path]:
    """The registry's is small, the log's is not."""
    state = tmp_path / "state"
    mounted: list[Path] = []
    try:
        for place, size in ((state, "256k"), (state / "log", "16m")):
            place.mkdir(exist_ok=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)]
            if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
                pytest.skip("mounting a small file system needs root")
            mounted.append(place)
        yield tmp_path
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", "--lazy", str(place)], timeout=10, check=True)


def test_full_disk_of_the_registry_gives_nothing_and_space_that_returns_is_used(two_disks: Path) -> None:
    config = notary_config(two_disks)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            tokens = await here.registry.grant(order(refreshable=True))
            ballast = config.state_dir / "ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
            for number in range(100):
                large = client(client_id=f"c{number}", groups=tuple(f"{one:0200}" for one in range(64)))
                answer = await here.operator.ask(PutClient, client=large)
                if isinstance(answer, Failed):
                    break
            assert isinstance(answer, Failed)
            assert answer.reason == "audit-unavailable"
            assert "full" in answer.detail
            assert await here.registry.client(large.client_id) is None
            assert await here.registry.client("agent") == client()
            ballast.unlink()
            await here.put(large)
            await here.registry.refresh(refresh(tokens.refresh_token))
        async with world(config) as here:
            assert await here.registry.client(large.client_id) == large

    run(scenario)
    assert sum(record.client_id.startswith("c") for record in recorded(config, ClientChanged)) >= 2
