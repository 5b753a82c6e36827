"""The registry behind the notary's fence, by an operator's commands; and on a disk that is full."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from appliance import settings
from appliance.audit.fsck import verify_log
from appliance.cli.roles import EXIT_CONFIG
from appliance.core.clients import IssuedTokens
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.ipc.notary_client import NotaryClient
from appliance.ipc.registry_client import RegistryClient
from appliance.settings import Settings, child_environment
from tests.support.registered import order, public_key, refresh

LIMIT_SECONDS = 60
REPOSITORY = Path(__file__).parents[2]


class FencedNotary:
    def __init__(self, place: Path) -> None:
        self.file = place / "paddock.toml"
        self.file.write_text(f'state_dir = "{place}/state"\nruntime_dir = "{place}/run"\n')
        self.config: Settings = settings.load(self.file)
        self.command = [sys.executable, "-I", "-B", "-m", "appliance", "notary", "--config", str(self.file)]
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: subprocess.Popen[str] | None = None
        self.log = place / "notary.log"

    def start(self) -> None:
        self.config.admin_socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", "appliance", "notary", "--config", str(self.file)],
                stderr=log,
                env=child_environment(),
            )
        until = time.monotonic() + LIMIT_SECONDS
        while not self.config.admin_socket.exists():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.01)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_SECONDS) == 0, self.log.read_text()

    def kill(self) -> None:
        for process in (self._process, self._shell):
            if process is not None:
                process.kill()
                process.communicate()

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command of the operator's: of another process than the tests', which speak as the gateway. Its status,
        and what it said on stdout and stderr."""
        if self._shell is None:
            self._shell = subprocess.Popen(
                [sys.executable, "-m", "tests.support.operators_shell"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(json.dumps([*arguments, "--config", str(self.file)]) + "\n")
        self._shell.stdin.flush()
        status, out, err = json.loads(self._shell.stdout.readline())
        return status, out, err

    def said(self, *arguments: str) -> str:
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def refused(self, *arguments: str) -> str:
        status, _out, err = self.run(*arguments)
        assert status == 1
        return err


@pytest.fixture
def notary(tmp_path: Path) -> Iterator[FencedNotary]:
    one = FencedNotary(tmp_path)
    try:
        one.start()
        yield one
    finally:
        one.kill()


async def as_gateway(notary: FencedNotary, scenario: object) -> None:
    end = NotaryClient(notary.config.notary_socket, "gateway")
    running = asyncio.create_task(end.run())
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await end.connected()
            await scenario(RegistryClient(end))  # type: ignore[operator]
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_operator_is_told_where_no_tokens_are_issued_yet(notary: FencedNotary) -> None:
    status, out, err = notary.run("clients", "add", "agent", "--group", "analysts", "--model", "*")
    assert (status, len(out.strip())) == (0, 43)
    assert "identity.issuer" in err
    assert "identity.public_url" in err


def test_operator_registers_and_ends_behind_the_fence(notary: FencedNotary, tmp_path: Path) -> None:
    secret = notary.said("clients", "add", "agent", "--group", "analysts", "--model", "*", "--grant",
                         "client_credentials", "--grant", "refresh_token").strip()  # fmt: skip
    assert len(secret) == 43
    (shown,) = json.loads(notary.said("clients", "list", "--json"))
    assert shown["secrets_sha256"] == [str(Digest.of(secret.encode()))]
    assert shown == json.loads(notary.said("clients", "show", "agent", "--json"))

    async def scenario(registry: RegistryClient) -> None:
        tokens = await registry.grant(order(refreshable=True, models=("*",)))
        for _ in range(5):
            tokens = await registry.refresh(refresh(tokens.refresh_token))
        families = json.loads(notary.said("tokens", "list", "--json"))
        assert [len(one["token_ids"]) for one in families] == [6]
        assert tokens.token_id in notary.said("tokens", "list", "--client", "agent")
        notary.said("tokens", "revoke", families[0]["family"]["family_id"])
        with pytest.raises(Refused) as caught:
            await registry.refresh(refresh(tokens.refresh_token))
        assert caught.value.reason is Reason.GRANT_INVALID
        assert notary.said("tokens", "list") == "no refresh tokens\n"
        notary.said("clients", "disable", "agent")
        assert await registry.client("agent") is None
        notary.said("clients", "enable", "agent")
        second = notary.said("clients", "new-secret", "agent", "--keep-old").strip()
        client = await registry.client("agent")
        assert client is not None
        assert client.secrets_sha256 == (Digest.of(secret.encode()), Digest.of(second.encode()))
        notary.said("clients", "change", "agent", "--drop", "old-secret", "--group", "staff", "--ttl", "60")
        client = await registry.client("agent")
        assert client is not None
        assert (client.secrets_sha256, client.groups) == ((Digest.of(second.encode()),), ("staff",))
        notary.said("clients", "remove", "agent")
        assert notary.refused("clients", "show", "agent") == "paddock: no client 'agent' is registered\n"

    asyncio.run(as_gateway(notary, scenario))
    notary.stop()
    report = verify_log(notary.config.notary_dir / "log", (notary.config.public_dir / "log.vkey").read_text())
    assert (report.verdict, report.findings) == ("intact", ())
    assert secret.encode() not in (notary.config.notary_dir / "registry.db").read_bytes()


def test_key_and_certificate_are_registered_from_their_files(notary: FencedNotary, tmp_path: Path) -> None:
    key = load_der_public_key(public_key().spki)
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert notary.said("clients", "add", "signer", "--key", str(tmp_path / "key.pem"), "--group", "staff") == ""
    (one,) = json.loads(notary.said("clients", "show", "signer", "--json"))["keys"]
    assert (one["algorithm"], len(one["key_id"])) == ("ES256", 43)
    twice = notary.refused("clients", "change", "signer", "--add-key", str(tmp_path / "key.pem"))
    assert twice == "paddock: the notary refused: field-invalid: two keys have one id\n"
    assert "needs keys" in notary.refused("clients", "change", "signer", f"--drop={one['key_id']}")
    without = notary.refused("clients", "new-secret", "signer")
    assert without == "paddock: signer authenticates without a secret\n"
    for arguments in (
        ("add", "x", "--key", str(notary.config.admin_socket.parent)),
        ("add", "x", "--certificate", str(tmp_path / "key.pem")),
        ("add", "x y"),
        ("add", "x", "--ttl", "1"),
        ("add", "x", "--grant", "token-exchange"),
        ("change", "signer", "--drop", "no-such-key"),
        ("remove", "nobody"),
    ):
        refused = notary.refused("clients", *arguments)
        assert refused.startswith("paddock: ")
        assert refused.count("\n") == 1, refused


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """For the registry; the log has another."""
    place = tmp_path / "state" / "notary"
    mounted: list[Path] = []
    try:
        for one, size in ((place, "256k"), (place / "log", "16m")):
            one.mkdir(parents=True, exist_ok=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(one)]
            if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
                pytest.skip("mounting a small file system needs root")
            mounted.append(one)
        yield place
    finally:
        for one in reversed(mounted):
            subprocess.run(["umount", "--lazy", str(one)], timeout=10, check=True)


def test_registry_is_opened_again_behind_the_fence_when_the_disk_was_full(small_disk: Path, tmp_path: Path) -> None:
    notary = FencedNotary(tmp_path)
    groups = [word for number in range(60) for word in ("--group", f"{number:0200}")]
    try:
        notary.start()
        notary.said("clients", "add", "agent", "--group", "analysts", "--model", "demo")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        status, _out, err = notary.run("clients", "add", "large", *groups)
        while status == 0:  # its file had room left
            status, _out, err = notary.run("clients", "add", f"large{time.monotonic_ns()}", *groups)
        assert "audit-unavailable" in err

        async def scenario(registry: RegistryClient) -> None:
            assert isinstance(await registry.grant(order()), IssuedTokens)
            ballast.unlink()
            notary.said("clients", "add", "late", *groups)
            assert await registry.client("late") is not None

        asyncio.run(as_gateway(notary, scenario))
        notary.stop()
        notary.start()
        assert "late" in notary.said("clients", "list")
    finally:
        notary.kill()


def test_damaged_registry_is_one_line_and_no_notary(notary: FencedNotary) -> None:
    notary.said("clients", "add", "agent", "--group", "analysts")
    notary.stop()
    path = notary.config.notary_dir / "registry.db"
    path.write_bytes(path.read_bytes().replace(b"analysts", b"analystz"))
    finished = subprocess.run(notary.command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert finished.returncode == EXIT_CONFIG
    assert finished.stderr == (
        f"paddock notary: {path} is damaged (a row of client has changed): put back a good copy of it\n"
    )
