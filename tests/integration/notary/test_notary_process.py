"""A whole notary behind its sockets: what its peers may not do, and what they get."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest

from appliance.audit.fsck import LogReport, verify_log
from appliance.audit.query import read_entries
from appliance.core.records import (
    Closed,
    LogClosed,
    LogOpened,
    ModelRefused,
    RunnerEnded,
    TokenIssued,
    encode_record,
    read_record,
)
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.ipc.connection import connect, listen
from appliance.ipc.messages import Append, AppendFailed, Failed, Hello, TokenSigned
from appliance.notary.files import Files
from appliance.notary.main import NotaryConfig
from tests.support.audit_log import run
from tests.support.audit_records import MODEL, RUNNER, closed, model_loaded, opened, policy_loaded, small
from tests.support.notary_client import NotaryClient, notary_config, operator, running_notary


async def introduce(config: NotaryConfig) -> NotaryClient:
    """A gateway, after a warden has recorded a model; the gateway recorded its policy."""
    warden = await NotaryClient.hello(config.socket_path, "warden")
    await warden.appended(model_loaded())
    warden.close()
    gateway = await NotaryClient.hello(config.socket_path, "gateway")
    await gateway.appended(policy_loaded())
    return gateway


def verified(config: NotaryConfig) -> LogReport:
    report = verify_log(config.state_dir / "log", (config.public_dir / "log.vkey").read_text())
    assert report.verdict == "intact", report
    return report


def records(config: NotaryConfig) -> list[Any]:
    return [entry.record for entry in read_entries(config.state_dir / "log")]


def test_request_from_opening_to_closing_is_in_a_verified_log(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            assert verified(config).size == 1  # a checkpoint from the first moment on
            gateway = await introduce(config)
            first = await gateway.appended(opened("r1"))
            last = await gateway.appended(closed("r1"), durable=False)
            assert last.index == first.index + 1
            gateway.close()

    run(scenario)
    report = verified(config)
    assert (report.unsigned_tail, report.open_requests, report.findings) == (0, (), ())
    assert isinstance(records(config)[0], LogOpened)
    assert isinstance(records(config)[-1], LogClosed)


def test_state_is_private_and_public_parts_are_readable(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            assert config.socket_path.stat().st_mode & 0o777 == 0o660
            assert config.admin_socket_path.stat().st_mode & 0o777 == 0o600

    run(scenario)
    assert (config.state_dir / "log").stat().st_mode & 0o777 == 0o700
    assert (config.state_dir / "keys").stat().st_mode & 0o777 == 0o700
    private = [p for p in config.state_dir.rglob("*") if p.is_file() and p.name != "log.vkey"]
    assert {p.stat().st_mode & 0o777 for p in private} == {0o600}


@pytest.mark.parametrize(
    ("role", "record"),
    [
        ("gateway", model_loaded()),
        ("gateway", RunnerEnded(runner_id="r", model_digest=MODEL.digest, exit_status=0, detail="")),
        ("gateway", LogClosed()),
        ("gateway", LogOpened(version="x", settings_digest=Digest.of(b""), recovered_bytes=0)),
        (
            "gateway",
            TokenIssued(
                subject="s",
                client_id="c",
                groups=(),
                models=(),
                token_id="t",
                token_sha256=Digest.of(b""),
                expires_at_seconds=1,
            ),
        ),
        ("warden", opened("r")),
        ("warden", closed("r")),
        ("warden", policy_loaded()),
        ("warden", small(1)),
        ("warden", LogClosed()),
    ],
)
def test_role_that_records_what_is_not_its_own_is_disconnected(tmp_path: Path, role: Any, record: Any) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            client = await NotaryClient.hello(config.socket_path, role)
            with pytest.raises(Exception, match="peer closed"):
                await client.append(record)

    run(scenario)
    assert [type(r) for r in records(config)] == [LogOpened, LogClosed]


SPELLED = encode_record(opened("r", policy_input={"a": 1, "b": "x", "c": 2.5}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"not json",
        msgspec.msgpack.encode({"event": "closed"}),
        b" " + SPELLED,
        SPELLED + b"\n",
        SPELLED + SPELLED,
        SPELLED.replace(b'"a":1', b'"a": 1'),
        SPELLED.replace(b'"a":1,"b":"x"', b'"b":"x","a":1'),
        SPELLED.replace(b'"a":1', b'"a":0,"a":1'),
        SPELLED.replace(b'"a":1', b'"a":1e0'),
        SPELLED.replace(b"2.5", b"2.50"),
        SPELLED.replace(b"2.5", b"1e400"),
        SPELLED.replace(b"2.5", b"NaN"),
        SPELLED.replace(b'"x"', b'"\\u0078"'),
        SPELLED.replace(b'"x"', b'"\xff"'),
        SPELLED.replace(b'"x"', b'"\xed\xa0\x80"'),
        SPELLED.replace(b'"x"', b'"\\ud800"'),
        SPELLED.replace(b'"x"', b"[" * 5000 + b"]" * 5000),
        SPELLED.replace(b'"reserved_tokens":128', b'"reserved_tokens":128.0'),
        SPELLED.replace(b'"reserved_tokens":128', b'"reserved_tokens":"128"'),
        SPELLED.replace(b'"reserved_tokens":128', b'"reserved_tokens":128,"zeta":1'),
        SPELLED.replace(b"sha256:", b"SHA256:"),
        SPELLED.replace(b'"event":"opened"', b'"event":"opened\\u000a"'),
    ],
    ids=lambda data: repr(data[-40:])[:40],
)
def test_bytes_that_are_not_the_canonical_form_of_a_record_are_never_written(tmp_path: Path, data: bytes) -> None:
    assert data != SPELLED
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await NotaryClient.hello(config.socket_path, "gateway")
            gateway.connection.send(Append(call=1, record=data, durable=True))
            assert await gateway.closed == "the peer closed"

    run(scenario)
    assert [type(r) for r in records(config)] == [LogOpened, LogClosed]
    verified(config)


def test_bytes_of_a_record_stand_in_the_log_as_they_were_given(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await introduce(config)
            await gateway.appended(read_record(SPELLED))
            gateway.close()

    run(scenario)
    assert SPELLED in (config.state_dir / "log/wal").read_bytes()
    verified(config)


def test_slow_disk_makes_larger_groups_not_a_longer_queue_of_syncs(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    class SlowFiles(Files):
        syncs = 0

        def datasync(self, fd: int) -> None:
            time.sleep(0.02)
            super().datasync(fd)
            self.syncs += 1

    async def scenario() -> None:
        files = SlowFiles()
        async with running_notary(config, files=files):
            gateway = await introduce(config)
            before = files.syncs
            answers = await asyncio.gather(*(gateway.appended(opened(f"r{n}")) for n in range(300)))
            assert sorted(answer.index for answer in answers) == list(range(answers[0].index, answers[0].index + 300))
            assert files.syncs - before <= 60
            gateway.close()

    run(scenario)
    verified(config)


def test_warden_may_record_models_and_runners(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            warden = await NotaryClient.hello(config.socket_path, "warden")
            for record in (
                model_loaded(),
                ModelRefused(name="m", digest=None, reason="unsigned", detail=""),
                RunnerEnded(runner_id=RUNNER.runner_id, model_digest=MODEL.digest, exit_status=-9, detail=""),
            ):
                await warden.appended(record)

    run(scenario)
    verified(config)


def test_peer_that_does_not_say_hello_or_says_it_twice_is_disconnected(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            silent = await NotaryClient.open(config.socket_path)
            with pytest.raises(Exception, match="peer closed"):
                await silent.append(small(1))
            twice = await NotaryClient.hello(config.socket_path, "gateway")
            twice.connection.send(Hello(role="warden"))
            assert await twice.closed == "the peer closed"
            junk = await NotaryClient.open(config.socket_path)
            junk.connection._sock.send(b"\xc1junk")
            assert await junk.closed == "the peer closed"
            end, _other = os.pipe()
            passes = await NotaryClient.open(config.socket_path)
            passes.connection.send(Hello(role="gateway"), [end])
            assert await passes.closed == "the peer closed"
            os.close(end)
            os.close(_other)

    run(scenario)


def test_uid_speaks_only_in_its_own_role(tmp_path: Path) -> None:
    config = notary_config(tmp_path, warden_uids=frozenset({os.getuid() + 1}), operator_uids=frozenset())

    async def scenario() -> None:
        async with running_notary(config):
            warden = await NotaryClient.hello(config.socket_path, "warden")
            assert "peer" in await warden.closed
            sock = await connect(config.admin_socket_path, None)
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
            sock.close()
            await introduce_gateway_only(config)

    async def introduce_gateway_only(config: NotaryConfig) -> None:
        gateway = await NotaryClient.hello(config.socket_path, "gateway")
        await gateway.appended(policy_loaded())
        gateway.close()

    run(scenario)


def test_gateway_that_comes_back_keeps_what_it_names_and_loses_the_rest(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            first = await introduce(config)
            for name in ("kept", "lost"):
                await first.appended(opened(name))
            first.close()
            second = await NotaryClient.hello(config.socket_path, "gateway", ("kept",))
            await second.appended(closed("kept"))
            again = await second.append(closed("lost"))
            lost = next(
                e
                for e in read_entries(config.state_dir / "log")
                if getattr(e.record, "request_id", "") == "lost" and isinstance(e.record, Closed)
            )
            assert again.index == lost.seq
            second.close()

    run(scenario)
    assert verified(config).open_requests == ()
    endings = {r.request_id: r.outcome for r in records(config) if isinstance(r, Closed)}
    assert endings == {"kept": "completed", "lost": "gateway-lost"}


def test_second_gateway_replaces_the_first(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            first = await introduce(config)
            second = await NotaryClient.hello(config.socket_path, "gateway")
            assert await first.closed == "the peer closed"
            await second.appended(small(1))

    run(scenario)


def test_dropped_connection_alone_closes_nothing_and_the_stop_does(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await introduce(config)
            await gateway.appended(opened("r"))
            gateway.close()
            await asyncio.sleep(0.2)
            assert verified(config).open_requests == ("r",)

    run(scenario)
    assert verified(config).open_requests == ()


def test_stop_leaves_the_requests_of_a_connected_gateway_to_it(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await introduce(config)
            await gateway.appended(opened("r"))
        assert verified(config).open_requests == ("r",)
        async with running_notary(config):
            again = await NotaryClient.hello(config.socket_path, "gateway", ("r",))
            await again.appended(closed("r"))

    run(scenario)
    assert [r.outcome for r in records(config) if isinstance(r, Closed)] == ["completed"]


def test_orphans_are_closed_when_no_gateway_comes(tmp_path: Path) -> None:
    config = notary_config(tmp_path, orphan_grace_seconds=0.1)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await introduce(config)
            await gateway.appended(opened("r"))
        async with running_notary(config):
            while verified(config).open_requests:
                await asyncio.sleep(0.02)

    run(scenario)
    last = [r for r in records(config) if isinstance(r, Closed)]
    assert [(r.outcome, r.detail) for r in last] == [("gateway-lost", "no gateway came after the notary started")]


def test_token_verifies_with_the_published_keys_and_its_record_is_durable_first(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            client = await operator(config)
            signed = await client.issue(subject="ada", models=("demo",))
            assert isinstance(signed, TokenSigned)
            (record,) = [r for r in records(config) if isinstance(r, TokenIssued)]
            assert (record.token_id, record.subject) == (signed.token_id, "ada")
            assert record.token_sha256 == Digest.of(signed.token.encode())
            keys = jwt.PyJWKSet.from_json((config.public_dir / "jwks.json").read_text())
            key = keys[jwt.get_unverified_header(signed.token)["kid"]]
            claims = jwt.decode(
                signed.token,
                key,
                algorithms=["ES256"],
                audience="paddock",
                issuer="https://issuer.test",
                options={"require": ["exp", "iat", "iss", "aud", "sub", "client_id", "jti"], "strict_aud": True},
            )
            assert claims["exp"] - claims["iat"] == 60
            refused = await client.issue(subject="a\nb")
            assert isinstance(refused, Failed)
            assert refused.reason == "field-invalid"

    run(scenario)
    assert "eyJ" not in "".join(map(repr, records(config)))


def test_token_is_not_handed_out_when_its_record_cannot_be_written(tmp_path: Path) -> None:
    class Full(Files):
        full = False

        def write_at(self, fd: int, data: bytes, offset: int) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write_at(fd, data, offset)

    config, files = notary_config(tmp_path), Full()

    async def scenario() -> None:
        async with running_notary(config, files=files):
            client, gateway = await operator(config), await introduce(config)
            files.full = True
            failed = await client.issue()
            assert isinstance(failed, Failed)
            assert failed.reason == "audit-unavailable"
            refused = await gateway.append(opened("r"))
            assert isinstance(refused, AppendFailed)
            assert refused.detail == "the log cannot be written: No space left on device"
            files.full = False
            assert isinstance(await client.issue(), TokenSigned)
            await gateway.appended(opened("r"))

    run(scenario)
    assert len([r for r in records(config) if isinstance(r, TokenIssued)]) == 1


def test_sockets_that_are_handed_in_are_used(tmp_path: Path) -> None:
    config = notary_config(tmp_path)
    (tmp_path / "given").mkdir()

    async def scenario() -> None:
        listening = listen(tmp_path / "given/n", mode=0o600)
        admin = listen(tmp_path / "given/a", mode=0o600)
        async with running_notary(config, listening=listening, admin_listening=admin):
            gateway = await NotaryClient.hello(tmp_path / "given/n", "gateway")
            await gateway.appended(small(1))
            assert not config.socket_path.exists()

    run(scenario)


def test_hundred_parallel_requests_are_all_recorded(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            gateway = await introduce(config)

            async def one(number: int) -> None:
                await gateway.appended(opened(f"r{number}"))
                await gateway.appended(closed(f"r{number}"), durable=False)

            await asyncio.gather(*(one(number) for number in range(100)))

    run(scenario)
    report = verified(config)
    assert (report.events["opened"], report.events["closed"]) == (100, 100)


def test_second_notary_on_one_state_is_refused(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            with pytest.raises(Fault, match="another notary"):
                async with running_notary(config):
                    pass

    run(scenario)


def test_lost_key_beside_an_existing_log_is_refused(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            pass
        (config.state_dir / "keys/log.key").unlink()
        with pytest.raises(Fault, match=r"log.key is missing"):
            async with running_notary(config):
                pass

    run(scenario)


def test_origin_with_a_space_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(Fault, match="origin"):
            async with running_notary(notary_config(tmp_path, log_origin="my log")):
                pass

    run(scenario)


def test_public_keys_are_json_without_private_parts(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config):
            pass

    run(scenario)
    (jwk,) = json.loads((config.public_dir / "jwks.json").read_bytes())["keys"]
    assert "d" not in jwk
