"""The outcomes that ``paddock demo`` shows, in order.

Trusts: nothing; each step states what it expects and what it saw.
Promises: a step that goes wrong in any way is an outcome that is not ok.
Not here: starting and stopping the appliance (``demo``).
"""

import json
import shutil
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.cli.demo_report import Report
from appliance.core.records import Opened
from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.cli.demo import Appliance

QUESTION = "What is Paddock?"
REQUIRED_LAYERS = frozenset({"seccomp-stage-1", "seccomp-stage-2", "no-new-privs", "no-capabilities", "landlock"})


def with_appliance(appliance: "Appliance", report: Report) -> None:
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


def streamed_answer(appliance: "Appliance", report: Report) -> None:
    answer = appliance.chat(appliance.token("alice"), QUESTION, stream=True)
    pieces: list[str] = []
    finish = None
    done = False
    for line in answer:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            done = True
        elif data:
            chunk = json.loads(data)
            for choice in chunk.get("choices", []):
                pieces.append(choice["delta"].get("content") or "")
                finish = choice["finish_reason"] or finish
    text = "".join(pieces)
    report.add(
        "streamed-answer",
        expected="200, a streamed answer that ends with stop and [DONE]",
        observed=f"{answer.status}, {sum(map(bool, pieces))} pieces, finish {finish}: {text}",
        ok=answer.status == 200 and bool(text) and finish == "stop" and done,
        text=text,
    )


def forbidden_caller(appliance: "Appliance", report: Report) -> None:
    answer = appliance.chat(appliance.token("mallory", groups=("visitors",)), QUESTION)
    _expect_refusal(report, "policy-refusal", answer, 403, "policy-denied")


def no_token(appliance: "Appliance", report: Report) -> None:
    _expect_refusal(report, "no-token", appliance.chat(None, QUESTION), 401, "token-missing")


def spent_budget(appliance: "Appliance", report: Report) -> None:
    """Asks until the budget is spent; it must be spent within a bounded number of requests."""
    token = appliance.token("spender")
    answered = 0
    answer = appliance.chat(token, QUESTION)
    while answer.status == 200 and answered < 100:
        answer.read()
        answered += 1
        answer = appliance.chat(token, QUESTION)
    report.note(f"{answered} requests of one principal were answered before its budget was spent")
    _expect_refusal(report, "budget-spent", answer, 429, "budget-exhausted", answered=answered)


def changed_model(appliance: "Appliance", report: Report) -> None:
    """Changes one byte of a stored model and asks for it."""
    from appliance.cli.demo import TAMPERED

    listed = json.loads(appliance.request("GET", "/v1/models", token=appliance.token("alice")).read())
    digest = next(model["paddock"]["digest"] for model in listed["data"] if model["id"] == TAMPERED)
    blob = appliance.config.models_dir / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    blob.chmod(0o444)
    report.note(f"changed one bit of {TAMPERED} in the store")
    _expect_refusal(
        report,
        "changed-model",
        appliance.chat(appliance.token("bob"), QUESTION, model=TAMPERED),
        503,
        "model-not-verified",
    )


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
    degraded = runner.degraded if runner else ()
    report.add(
        "runner-sandbox",
        expected="the record of each answer names its runner's layers, both seccomp stages among them",
        observed=f"{', '.join(layers)}; degraded: {', '.join(degraded) or 'none'}",
        ok=layers != () and set(layers) >= REQUIRED_LAYERS,
        layers=list(layers),
        degraded=list(degraded),
        seal_mode=runner.seal_mode if runner else None,
    )


def _expect_refusal(report: Report, name: str, answer: HTTPResponse, status: int, code: str, **detail: Any) -> None:
    body = json.loads(answer.read())
    observed = body.get("error", {}).get("code")
    report.add(
        name,
        expected=f"{status} {code}",
        observed=f"{answer.status} {observed}: {body.get('error', {}).get('message')}",
        ok=(answer.status, observed) == (status, code),
        **detail,
    )
