"""The outcomes that ``paddock demo`` shows, in order.

Trusts: nothing; each step states what it expects and what it saw.
Promises: a step that goes wrong in any way is an outcome that is not ok.
Not here: starting and stopping the appliance (``demo``).
"""

import json
import shutil
from typing import Any

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.cli.demo_appliance import CHAT, TAMPERED, Appliance, chat_body
from appliance.cli.demo_report import Report
from appliance.core.records import Opened
from appliance.sandbox.layers import INDISPENSABLE, LAYERS
from appliance.settings import Settings

MAX_ANSWERS = 100
QUESTION = "What is Paddock?"


def with_appliance(appliance: Appliance, report: Report) -> None:
    """Everything that needs the appliance to be up."""
    streamed_answer(appliance, report)
    forbidden_caller(appliance, report)
    no_token(appliance, report)
    spent_budget(appliance, report)
    changed_model(appliance, report)


def after_stop(config: Settings, report: Report) -> None:
    """What an auditor does with a copy of the log, away from the appliance."""
    verified_log(config, report)
    sandbox_layers(config, report)


def streamed_answer(appliance: Appliance, report: Report) -> None:
    body = chat_body(QUESTION, stream=True)
    pieces: list[str] = []
    finish = last = None
    with appliance.open_request("POST", CHAT, token=appliance.token("alice"), body=body) as answer:
        for line in answer:
            last = line.removeprefix(b"data: ").strip() or last
            for choice in _choices(line):
                finish = choice["finish_reason"] or finish
                if piece := choice["delta"].get("content"):
                    pieces.append(piece)
                    report.piece(piece)
    report.add(
        "streamed-answer",
        expected="200, a streamed answer that ends with stop and [DONE]",
        observed=f"{answer.status}, {len(pieces)} pieces, finish {finish}: {''.join(pieces)}",
        ok=answer.status == 200 and pieces != [] and finish == "stop" and last == b"[DONE]",
        text="".join(pieces),
    )


def _choices(line: bytes) -> list[dict[str, Any]]:
    """The choices of one event of the stream; none for [DONE], blank lines and comments."""
    if not line.startswith(b"data: {"):
        return []
    choices: list[dict[str, Any]] = json.loads(line.removeprefix(b"data: ")).get("choices", [])
    return choices


def forbidden_caller(appliance: Appliance, report: Report) -> None:
    answer = appliance.chat(appliance.token("mallory", groups=("visitors",)), QUESTION)
    _expect_refusal(report, "policy-refusal", answer, 404, "model-not-found")


def no_token(appliance: Appliance, report: Report) -> None:
    _expect_refusal(report, "no-token", appliance.chat(None, QUESTION), 401, "token-missing")


def spent_budget(appliance: Appliance, report: Report) -> None:
    """Asks until the budget is spent; it must be spent within a bounded number of requests."""
    token = appliance.token("spender")
    answered = 0
    answer = appliance.chat(token, QUESTION)
    while answer[0] == 200 and answered < MAX_ANSWERS:
        answered += 1
        answer = appliance.chat(token, QUESTION)
    report.note(f"{answered} requests of one principal were answered before its budget was spent")
    _expect_refusal(report, "budget-spent", answer, 429, "budget-exhausted", answered=answered)


def changed_model(appliance: Appliance, report: Report) -> None:
    """Changes one bit of a stored model and asks for it."""
    _status, listed = appliance.request("GET", "/v1/models", token=appliance.token("alice"))
    digest = next(model["paddock"]["digest"] for model in listed["data"] if model["id"] == TAMPERED)
    blob = appliance.config.models_dir / "blobs" / "sha256" / digest.removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    blob.chmod(0o444)
    report.note(f"changed one bit of {TAMPERED} in the store")
    answer = appliance.chat(appliance.token("bob"), QUESTION, TAMPERED)
    _expect_refusal(report, "changed-model", answer, 503, "model-not-verified")


def verified_log(config: Settings, report: Report) -> None:
    copy = config.state_dir / "copy-for-the-auditor"
    shutil.copytree(config.notary_dir / "log", copy)
    vkey = (config.public_dir / "log.vkey").read_text(encoding="utf-8").strip()
    result = verify_log(copy, vkey)
    report.add(
        "log-verified",
        expected="the copied log is intact, with every answer opened and closed",
        observed=f"{result.verdict}: {result.size} records, {len(result.open_requests)} left open",
        ok=result.verdict == "intact" and not result.open_requests and result.size > 0,
        size=result.size,
    )


def sandbox_layers(config: Settings, report: Report) -> None:
    """What the log says of the runner that answered."""
    opened = [entry.record for entry in read_entries(config.notary_dir / "log") if isinstance(entry.record, Opened)]
    runner = opened[0].runner if opened else None
    layers = runner.layers if runner else ()
    report.lacking = degraded = runner.degraded if runner else ()
    report.add(
        "runner-sandbox",
        expected="the record of each answer names every layer as on or as missing here; both seccomp stages are on",
        observed=f"{', '.join(layers)}; degraded: {', '.join(degraded) or 'none'}",
        ok=set(layers) >= set(INDISPENSABLE) and set(layers) | set(degraded) >= set(LAYERS),
        layers=list(layers),
        degraded=list(degraded),
        seal_mode=runner.seal_mode if runner else None,
    )


def _expect_refusal(
    report: Report, name: str, answer: tuple[int, dict[str, Any]], status: int, code: str, **detail: Any
) -> None:
    observed_status, body = answer
    error = body.get("error", {})
    report.add(
        name,
        expected=f"{status} {code}",
        observed=f"{observed_status} {error.get('code')}: {error.get('message')}",
        ok=(observed_status, error.get("code")) == (status, code),
        **detail,
    )
