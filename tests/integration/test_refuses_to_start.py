"""What must not start, and what must not be answered: policy, models and settings that are not as they should be."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.init import demo_model
from appliance.core.records import ModelRefused
from appliance.core.refusals import Refused
from appliance.models.oms import generate_signing_key, sign_model
from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance
from tests.support.chain_model import chain_model

EX_CONFIG = 78


def assert_refuses(one: TestAppliance, text: str) -> None:
    process = one.spawn()
    try:
        assert process.wait(LIMIT_SECONDS) == EX_CONFIG
    except subprocess.TimeoutExpired:
        one.stop()
        raise
    assert text in one.log
    assert "Traceback" not in one.log


def test_missing_policy_refuses_to_start(tmp_path: Path) -> None:
    one = TestAppliance(tmp_path, {})
    (one.config.policy_dir / "policy.wasm").unlink()
    assert_refuses(one, "the policy cannot be read")


@pytest.mark.parametrize("damage", [b"", b"not wasm", b"\0asm\1\0\0\0"])
def test_policy_that_does_not_compile_refuses_to_start(tmp_path: Path, damage: bytes) -> None:
    one = TestAppliance(tmp_path, {})
    (one.config.policy_dir / "policy.wasm").write_bytes(damage)
    assert_refuses(one, "paddock gateway: ")


def test_policy_data_with_a_duplicate_key_refuses_to_start(tmp_path: Path) -> None:
    one = TestAppliance(tmp_path, {})
    (one.config.policy_dir / "data.json").write_bytes(b'{"groups":{},"groups":{}}')
    assert_refuses(one, "paddock gateway: ")


def test_foreign_file_among_the_trusted_keys_is_not_a_key(tmp_path: Path) -> None:
    one = TestAppliance(tmp_path, {"chain": chain_model()})
    (one.config.trust_dir / "tester.pem").write_bytes(b"-----BEGIN NONSENSE-----")
    one.start_without_models()
    try:
        answer = one.chat(one.token())
        assert answer.status in {404, 503}
    finally:
        assert one.stop() == 0, one.log


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    models = {"chain": chain_model(), "demo": demo_model()}
    with appliance(tmp_path_factory.mktemp("models"), models) as one:
        yield one


def test_changed_byte_refuses_the_load_and_says_so_on_record(server: TestAppliance) -> None:
    blob = server.blob_of("demo")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0x10
    blob.chmod(0o600)
    blob.write_bytes(content)
    blob.chmod(0o444)
    answer = server.chat(server.token(), model="demo")
    assert (answer.status, answer.json()["error"]["code"]) == (503, "model-not-verified")
    server.wait_until(lambda: server.records(ModelRefused) != [], "the refusal on record")
    assert "digest-mismatch" in server.records(ModelRefused)[-1].detail
    assert server.chat(server.token()).status == 200  # others are served


def test_unsigned_model_is_not_imported(server: TestAppliance) -> None:
    with pytest.raises(Refused, match="model-not-verified"):
        server.import_with(chain_model(), b"{}")


def test_model_signed_by_an_unknown_key_is_not_imported(server: TestAppliance) -> None:
    with chain_model().open("rb") as file:
        bundle = sign_model(file.fileno(), path="chain.gguf", key=generate_signing_key())
    with pytest.raises(Refused, match="signer-unknown"):
        server.import_with(chain_model(), bundle)


def test_signer_who_is_no_longer_trusted_is_refused_at_the_next_load(tmp_path: Path) -> None:
    one = TestAppliance(tmp_path, {"chain": chain_model()})
    one.start()
    try:
        assert one.chat(one.token()).status == 200
        (one.config.trust_dir / "tester.pem").unlink()
        one.kill("runner")
        one.wait_until(lambda: one.chat(one.token()).status == 503, "the refusal")
        assert one.chat(one.token()).json()["error"]["code"] == "model-not-verified"
    finally:
        assert one.stop() == 0, one.log
