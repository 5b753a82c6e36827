"""Rules that never say that a stranger may not act were written before anybody could: by them nobody does."""

import asyncio
import json
from pathlib import Path
from typing import Any

from appliance.core.decide import input_document
from appliance.policy.embedded import DEFAULT_POLICY, EmbeddedPolicy
from appliance.policy.reload import ReloadingPolicy

CASES = json.loads((Path(__file__).resolve().parents[2] / "vectors" / "policy" / "decisions.json").read_text())
REASON = b"delegation-not-permitted"
SERVICE = {"issuer": "https://issuer.example", "subject": "webui", "client_id": "webui", "groups": ["services"]}
PERMITTED = next(case for case in CASES if case["answer"]["allow"] and case["input"]["model"])
DATA = json.dumps(
    {
        "groups": {name: {"models": ["*"], "max_tokens": 1024} for name in PERMITTED["input"]["principal"]["groups"]},
        "closed": {"subjects": [], "models": []},
        "delegates": {"groups": ["services"]},
    }
).encode()


def acting(*parties: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = PERMITTED["input"]
    return {**document, "principal": {**document["principal"], "acting": list(parties)}}


def reloading(tmp_path: Path, wasm: bytes) -> ReloadingPolicy:
    (tmp_path / "policy.wasm").write_bytes(wasm)
    (tmp_path / "data.json").write_bytes(DATA)
    return ReloadingPolicy(tmp_path / "policy.wasm", tmp_path / "data.json")


def test_rules_that_do_not_say_no_to_a_stranger_let_nobody_act(tmp_path: Path) -> None:
    former = DEFAULT_POLICY.read_bytes().replace(REASON, b"x" * len(REASON))
    assert EmbeddedPolicy.load(former, DATA).decide(acting(SERVICE))["allow"] is True  # by themselves they would
    policy = reloading(tmp_path, former)
    answer = asyncio.run(policy.evaluate(input_document(acting(SERVICE))))
    assert answer == {"allow": False, "reasons": [REASON.decode()], "obligations": {}}
    assert asyncio.run(policy.evaluate(input_document(acting())))["allow"] is True


def test_rules_that_judge_who_acts_are_asked(tmp_path: Path) -> None:
    policy = reloading(tmp_path, DEFAULT_POLICY.read_bytes())
    assert asyncio.run(policy.evaluate(input_document(acting(SERVICE))))["allow"] is True
    assert asyncio.run(policy.evaluate(input_document(acting({**SERVICE, "groups": ["staff"]}))))["reasons"] == [
        REASON.decode()
    ]
