"""LoRA adapters through a whole appliance: signed, imported, served, recorded, revoked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.core.records import ModelLoaded, Opened, RunnerEnded
from appliance.core.values import Digest
from tests.support.adapter_files import drawn_adapter
from tests.support.appliance import TestAppliance, appliance
from tests.support.drawn_model import TINY, write_drawn_model

CONFIG = """
[models]
context_tokens = 256
slots = 1
max_loaded = 4
[model."support-bot"]
base = "base"
adapters = [{ name = "style:latest" }]
[model."faint-bot"]
base = "base"
adapters = [{ name = "style:latest", scale = 0 }]
[model."quick-bot"]
base = "base"
speculation = "draft"
draft = "small"
"""
STYLE = "style:latest"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    base = tmp_path / "base.gguf"
    write_drawn_model(base, TINY)
    return {"base": base, "small": base, STYLE: drawn_adapter(tmp_path / "style.gguf", base)}


@pytest.fixture
def server(tmp_path: Path, files: dict[str, Path]) -> Iterator[TestAppliance]:
    with appliance(tmp_path, files, CONFIG, listed=5) as one:
        yield one


def text(server: TestAppliance, model: str) -> str:
    body = {"model": model, "prompt": "the model is signed", "max_tokens": 16, "temperature": 0}
    answer = server.request("POST", "/v1/completions", token=server.token(), body=body)
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["text"])


def status_of(server: TestAppliance, model: str) -> int:
    body = {"model": model, "prompt": "x", "max_tokens": 1}
    return server.request("POST", "/v1/completions", token=server.token(), body=body).status


def paddock(server: TestAppliance, *words: str) -> int:
    return main([*words, "--config", str(server.config_file)])


def test_adapter_is_served_with_its_base_recorded_and_ends_with_its_trust(
    server: TestAppliance, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = text(server, "base")
    assert text(server, "support-bot") != plain
    assert text(server, "faint-bot") == text(server, "quick-bot") == plain

    # Nobody is offered the adapter, and asking for it is asking for nothing.
    listed = server.request("GET", "/v1/models", token=server.token()).json()["data"]
    assert {model["id"] for model in listed} == {"base", "small", "support-bot", "faint-bot", "quick-bot"}
    unknown = server.request("POST", "/v1/completions", token=server.token(), body={"model": "none", "prompt": "x"})
    asked = server.request("POST", "/v1/completions", token=server.token(), body={"model": STYLE, "prompt": "x"})
    assert (asked.status, asked.json()["error"]["code"]) == (404, unknown.json()["error"]["code"])

    # An auditor can tell what was computed.
    base, style = (Digest.of(files[name].read_bytes()) for name in ("base", STYLE))
    told = {record.model.name: record.model for record in server.records(Opened)}
    assert {model.digest for model in told.values()} == {base}
    assert told["base"].companions == ()
    [companion] = told["support-bot"].companions
    assert (companion.kind, companion.name, companion.digest, companion.scale_thousandths) == (
        "adapter", STYLE, style, 1000,
    )  # fmt: skip
    assert companion.signer.name == "tester"
    assert told["faint-bot"].companions[0].scale_thousandths == 0
    [draft] = told["quick-bot"].companions
    assert (draft.kind, draft.name, draft.digest, draft.scale_thousandths) == ("draft", "small", base, None)
    assert {record.model.name: record.model for record in server.records(ModelLoaded)} == told

    # An operator sees it.
    capsys.readouterr()
    assert paddock(server, "status") == 0
    shown = capsys.readouterr().out
    assert f"draft     small  {base}  signed by tester" in shown
    assert f"adapter   {STYLE}  {style}  scale 1  signed by tester" in shown
    assert shown.count("  base      base\n") == 3
    assert "5 verified models, 4 loaded; LoRA adapters: 1" in shown
    assert "a LoRA adapter for llama models, 14 matrices, rank 4" in shown
    assert paddock(server, "models", "list") == 0
    assert f"{STYLE}  {style}  {files[STYLE].stat().st_size} bytes  a LoRA adapter" in capsys.readouterr().out

    # Removed, it takes with it what was served with it, and nothing else.
    before = {record.model.name: record.runner.runner_id for record in server.records(ModelLoaded)}
    assert paddock(server, "models", "remove", STYLE) == 0
    server.wait_until(lambda: len(server.records(RunnerEnded)) == 2, "the runners' ends")
    assert {record.runner_id for record in server.records(RunnerEnded)} == {before["support-bot"], before["faint-bot"]}
    server.wait_until(lambda: status_of(server, "support-bot") == 404, "the served name is gone")
    assert text(server, "base") == plain

    # Brought back with one byte changed, it is found out, at the latest when it is loaded.
    loaded = len(server.records(ModelLoaded))
    server.import_model(STYLE, files[STYLE])
    blob = server.blob_of(STYLE)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
    blob.chmod(0o444)

    def is_found_out() -> bool:
        assert status_of(server, "support-bot") in {404, 503}
        return "companion-refused: style:latest: digest-mismatch" in server.log

    server.wait_until(is_found_out, "a changed byte")
    assert len(server.records(ModelLoaded)) == loaded
