"""A log that cannot be written: no token before its record, and service by itself once it can be written again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.records import Opened
from tests.support.appliance import TestAppliance
from tests.support.chain_model import chain_model

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system, which needs root")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestAppliance]:
    """An appliance whose notary directory is a file system of two megabytes."""
    one = TestAppliance(tmp_path, {"chain": chain_model()})
    one.config.notary_dir.mkdir(mode=0o700)
    _run("mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "paddock-test", str(one.config.notary_dir))
    try:
        one.start()
        try:
            yield one
        finally:
            assert one.stop() == 0, one.log
        assert one.verify().verdict == "intact"
    finally:
        _run("umount", "--lazy", str(one.config.notary_dir))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)


def test_full_log_disk_gives_no_token(server: TestAppliance) -> None:
    assert server.chat(server.token()).status == 200
    token = server.token()
    before = len(server.records(Opened))
    filler = server.config.notary_dir / "filler"
    _fill(filler)
    _spend_the_last_page(server, token)
    for stream in (False, True):
        answer = server.chat(token, stream=stream)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "audit-unavailable")
    filler.unlink()
    server.wait_until(lambda: server.chat(token).status == 200, "service after space has come back")
    assert len(server.records(Opened)) > before


def _spend_the_last_page(server: TestAppliance, token: str) -> None:
    """The log's last page may hold another record or two; those answers are as good as any."""
    for _ in range(20):
        if server.chat(token, max_tokens=1).status == 503:
            return
    raise AssertionError("a full disk takes records without end")


def test_read_only_log_serves_nobody(server: TestAppliance) -> None:
    """A file system with open files does not become read-only by command, so this one is found so at the start."""
    assert server.stop() == 0
    _run("mount", "-o", "remount,ro", str(server.config.notary_dir))
    server.spawn()
    server.wait_until(lambda: server.log.count("the notary ended with status") >= 2, "the notary tries again")
    with pytest.raises(ConnectionRefusedError):
        server.request("GET", "/healthz")
    _run("mount", "-o", "remount,rw", str(server.config.notary_dir))
    server.wait_until(server.ready, "service once the log can be written")
    server.wait_until(lambda: server.chat(server.token()).status == 200, "an answer")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
