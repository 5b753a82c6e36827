"""The README's commands, tried as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.cli.init import demo_model
from tests.support.appliance import TestAppliance

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def paddock(arguments: list[str], cwd: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "appliance", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_own_model_section_works_as_written(tmp_path: Path) -> None:
    shutil.copy(demo_model(), tmp_path / "model.gguf")
    block = next(block for block in blocks("sh") if block.startswith("paddock init"))
    for line in block.splitlines():
        command = line.partition("#")[0].split()
        assert command[0] == "paddock"
        paddock(command[1:], tmp_path, HOME=str(tmp_path))
    assert "signed by acme" in paddock(["models", "list"], tmp_path, HOME=str(tmp_path))
    left = {f"/{path.name}" for path in tmp_path.iterdir()} - {"/.local"}
    assert "/publisher.key" in left
    assert left <= set((ROOT / ".gitignore").read_text().splitlines())  # a private key is not to be committed


def test_policy_example_admits_who_it_says(tmp_path: Path) -> None:
    server = TestAppliance(tmp_path, {"my-model": demo_model()})
    (server.config.policy_dir / "data.json").write_text(json.dumps(json.loads(blocks("json")[0])))
    server.start()
    try:
        token = server.token("alice", groups=("staff",), models=("my-model",))
        curl = next(block for block in blocks("sh") if "curl" in block)
        body = json.loads(re.findall(r"-d '(.*?)'", curl)[0])
        with server.open_request("POST", "/v1/chat/completions", token=token, body=body) as answer:
            assert answer.status == 200
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert server.chat(server.token("bob", groups=("others",)), model="my-model").status == 404
    finally:
        assert server.stop() == 0, server.log


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"(?:^|[`(])paddock ([a-z-]+)", README, re.MULTILINE))
    listed = set(re.findall(r"^    ([a-z-]+)", paddock(["--help"], ROOT), re.MULTILINE))
    assert named <= listed


def test_outcomes_table_matches_the_demo() -> None:
    finished = paddock(["demo", "--json"], ROOT, HOME="/nonexistent")
    report = json.loads(finished)
    assert report["ok"] is True
    table = re.findall(r"^\| `([a-z-]+)` \|", README, re.MULTILINE)
    assert [outcome["name"] for outcome in report["outcomes"]] == table
    for outcome in report["outcomes"]:
        assert outcome["expected"]
        assert outcome["observed"]


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
