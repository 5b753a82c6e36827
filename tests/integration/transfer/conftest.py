from collections.abc import Iterator

import pytest

from appliance.cli import puller
from tests.support.hostile_http import HostileServer
from tests.support.oci_registry import OciRegistry
from tests.support.transfer import PULLER


@pytest.fixture(autouse=True)
def this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puller, "COMMAND", PULLER)
    monkeypatch.setattr(puller, "SILENCE_SECONDS", 60.0)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    running = OciRegistry(tmp_path_factory.mktemp("registry"))
    yield running
    running.stop()


@pytest.fixture
def server() -> Iterator[HostileServer]:
    running = HostileServer()
    yield running
    running.stop()


@pytest.fixture
def canary() -> Iterator[HostileServer]:
    """Another origin. Nothing secret may ever arrive there."""
    running = HostileServer()
    yield running
    running.stop()
