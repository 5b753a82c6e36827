"""schemathesis, by the published description, at the real server: nothing of ours is ever at fault, nothing hangs, and
every answer is one that the description tells of."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import GROUP, TestAppliance, appliance
from tests.support.bert_model import bert_model
from tests.support.chain_model import chain_model
from tests.support.environments import python_or_skip
from tests.support.oauth_clients import ISSUING

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = 20_000
ANSWER_SECONDS = 30
SHORT = 4
"""Requests for each operation in the suite; with more, the bounds of every field are tried too, which takes minutes."""
NOT_FOR_US = "positive_data_acceptance"
"""A type cannot say all that is refused: fields that exclude each other, grammars, what a model is for, 1.0 for 1."""
CONFIG = (
    "body_timeout_seconds = 2\n[limits]\naddress_requests_per_minute = 10_000_000\n"
    f"principal_requests_per_minute = 10_000_000\nbudget_tokens = 1_000_000_000\n{ISSUING}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    models = {"chain": chain_model(), "vectors": bert_model()}
    with appliance(tmp_path_factory.mktemp("openapi"), models, CONFIG) as one:
        one.write_policy_data({"groups": {GROUP: {"models": ["*"], "max_tokens": 32}}, "metrics": {"groups": [GROUP]}})
        one.wait_until(
            lambda: one.request("GET", "/metrics", token=one.token()).status == 200, "the policy that lets all be read"
        )
        yield one


def published(server: TestAppliance) -> Any:
    answer = server.request("GET", "/openapi.json", token=server.token())
    assert answer.status == 200
    return answer.json()


def with_our_models(document: Any) -> Any:
    """Half of all requests name a model that is there: a name drawn by chance never would."""
    for schema in document["components"]["schemas"].values():
        model = schema.get("properties", {}).get("model")
        if model is not None and "maxLength" in model:
            schema["properties"]["model"] = {"anyOf": [{"enum": ["chain", "vectors"]}, model]}
    return document


def test_no_request_makes_the_server_fail_or_hang_or_answer_what_is_not_described(
    server: TestAppliance, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(with_our_models(published(server))))
    examples = request.config.getoption("--openapi-examples", SHORT)
    phases = "fuzzing" if examples <= SHORT else "examples,coverage,fuzzing,stateful"
    command = [
        python_or_skip("schemathesis").with_name("schemathesis"),
        *("--config-file", Path(__file__).with_name("schemathesis.toml")),
        *("run", "openapi.json", "--url", f"http://127.0.0.1:{server.port}"),
        *("-H", f"Authorization: Bearer {server.token()}"),
        *(
            "--seed",
            str(SEED),
            "--phases",
            phases,
            "--max-examples",
            str(examples),
            "--request-timeout",
            str(ANSWER_SECONDS),
        ),
        *("--checks", "all", "--exclude-checks", NOT_FOR_US, "--suppress-health-check", "all", "--no-color"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=1700, check=False
    )
    report = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, report
    generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert generated is not None, report
    print(generated[0])
    assert int(generated[1]) >= SHORT * 7
    assert " ERROR " not in server.log
    assert "Traceback" not in server.log
    assert server.chat(server.token(), max_tokens=1).status == 200


def test_description_is_for_those_whom_policy_knows(server: TestAppliance) -> None:
    assert server.request("GET", "/openapi.json").status == 401
    stranger = server.request("GET", "/openapi.json", token=server.token("mallory", groups=("visitors",)))
    assert stranger.status == 403
    assert b"openapi" not in stranger.body
    confined = server.token("bob", models=("chain",))
    answer = server.request("GET", "/openapi.json", token=confined)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert answer.json()["openapi"] == "3.1.0"
