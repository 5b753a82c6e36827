"""One uid for all services, as under ``paddock serve``: one that was taken over is nobody else."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.audit.query import read_entries
from appliance.core.records import LogClosed, LogOpened, ModelRefused, PolicyLoaded, TokenIssued
from appliance.ipc.connection import peer_pid_and_uid
from appliance.notary.main import NotaryConfig
from appliance.notary.speakers import Process, Speakers
from tests.support.audit_log import run
from tests.support.notary_client import notary_config, running_notary

PEER = Path(__file__).parents[2] / "support" / "notary_peer.py"
LIMIT_SECONDS = 30


class Peer:
    """A process that does what it is told."""

    def __init__(self, process: asyncio.subprocess.Process, config: NotaryConfig) -> None:
        self._process = process
        self._config = config

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _order(self, order: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n".encode())
        return (await asyncio.wait_for(self._process.stdout.readline(), LIMIT_SECONDS)).decode().strip()

    async def hello(self, role: str) -> str:
        return await self._order(f"hello {self._config.socket_path} {role}")

    async def token(self) -> str:
        return await self._order(f"token {self._config.admin_socket_path}")

    async def connect_as_operator(self) -> str:
        return await self._order(f"open {self._config.admin_socket_path}")

    async def token_over_that_connection(self) -> str:
        return await self._order("use 0")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await asyncio.wait_for(self._process.wait(), LIMIT_SECONDS)


@asynccontextmanager
async def peer(config: NotaryConfig) -> AsyncIterator[Peer]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-B", str(PEER), stdin=pipe, stdout=pipe)
    one = Peer(process, config)
    try:
        yield one
    finally:
        await one.end()


def real(sock: Any) -> Process:
    return Process(*peer_pid_and_uid(sock))


def kinds(config: NotaryConfig) -> list[type]:
    return [type(entry.record) for entry in read_entries(config.state_dir / "log")]


@pytest.mark.parametrize("role", ["gateway", "warden"])
def test_service_of_the_operators_uid_gets_no_token(tmp_path: Path, role: str) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config, process_of=real), peer(config) as service, peer(config) as operator:
            assert await service.hello(role) == "heard"
            assert await service.token() == "refused"
            assert await operator.token() == "token"

    run(scenario)
    assert kinds(config).count(TokenIssued) == 1


def test_connection_from_before_the_greeting_gets_no_token_after_it(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config, process_of=real), peer(config) as service:
            assert await service.connect_as_operator() == "open"
            assert await service.hello("gateway") == "heard"
            assert await service.token_over_that_connection() == "refused"

    run(scenario)


@pytest.mark.parametrize(("own", "other"), [("gateway", "warden"), ("warden", "gateway")])
def test_service_does_not_speak_as_another(tmp_path: Path, own: str, other: str) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config, process_of=real), peer(config) as service, peer(config) as honest:
            assert await service.hello(own) == "heard"
            assert await service.hello(other) == "refused"
            assert await honest.hello(other) == "heard"
            assert await service.hello(own) == "heard"  # it lost the notary and is back

    run(scenario)
    record = {"gateway": PolicyLoaded, "warden": ModelRefused}
    assert kinds(config) == [LogOpened, record[own], record[other], record[own], LogClosed]


def test_service_that_does_not_greet_a_new_notary_gets_no_token(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with peer(config) as service:
            beside = {Process(service.pid, os.getuid()): "gateway"}
            async with running_notary(config, process_of=real, beside=beside):
                assert await service.token() == "refused"
                assert await service.hello("warden") == "refused"
                assert await service.hello("gateway") == "heard"

    run(scenario)


def test_processes_that_cannot_be_told_apart_count_as_one(tmp_path: Path) -> None:
    """Behind another pid namespace everybody has pid 0: only another user is another process there."""
    config = notary_config(tmp_path)

    async def scenario() -> None:
        nobody_known: Callable[[Any], Process] = lambda sock: Process(0, peer_pid_and_uid(sock)[1])  # noqa: E731
        async with running_notary(config, process_of=nobody_known), peer(config) as service, peer(config) as operator:
            assert await operator.token() == "token"
            assert await service.hello("gateway") == "heard"
            assert await operator.token() == "refused"
            await service.end()
            assert await operator.token() == "refused"

    run(scenario)


def test_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        speakers = Speakers()
        async with peer(notary_config(tmp_path)) as service:
            process = Process(service.pid, os.getuid())
            assert speakers.claim(process, "gateway")
            assert not speakers.claim(process, "warden")
            assert speakers.claim(Process(service.pid, os.getuid() + 1), "warden")
            await service.end()
            async with asyncio.timeout(LIMIT_SECONDS):
                while speakers.role_of(process) is not None:
                    await asyncio.sleep(0.01)
            assert speakers.claim(process, "warden")  # it has ended: nothing to remember
            assert speakers.role_of(process) is None
        speakers.close()

    run(scenario)
