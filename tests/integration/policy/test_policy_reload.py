"""A changed policy file: in force within seconds and on record, or not in force at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.records import PolicyLoaded
from tests.support.appliance import GROUP, TestAppliance, appliance
from tests.support.chain_model import chain_model

PERMITTED = {"groups": {GROUP: {"models": ["*"], "max_tokens": 100}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("reload"), {"chain": chain_model()}) as one:
        yield one


def status(server: TestAppliance) -> int:
    return server.chat(server.token(), max_tokens=1).status


def test_closed_subject_is_refused_within_seconds_and_on_record(server: TestAppliance) -> None:
    server.write_policy_data(PERMITTED)
    server.wait_until(lambda: status(server) == 200, "the policy that permits")
    before = len(server.records(PolicyLoaded))
    server.write_policy_data({**PERMITTED, "closed": {"models": [], "subjects": ["alice"]}})
    server.wait_until(lambda: status(server) == 404, "the policy that closes alice")
    assert len(server.records(PolicyLoaded)) == before + 1


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b'{"groups": {}}', b'{"groups": [], "closed": {}}'])
def test_policy_that_does_not_load_never_becomes_active(server: TestAppliance, data: bytes) -> None:
    server.write_policy_data(PERMITTED)
    server.wait_until(lambda: status(server) == 200, "the policy that permits")
    path: Path = server.config.policy_dir / "data.json"
    complaints = server.log.count("the changed policy is not used")
    path.write_bytes(data)
    server.wait_until(lambda: server.log.count("the changed policy is not used") > complaints, "the complaint")
    assert status(server) == 200
