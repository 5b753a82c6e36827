"""Plausible audit records, and a clock that the test sets."""

from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.core.records import (
    Actor,
    Closed,
    CompanionRef,
    ModelLoaded,
    ModelRef,
    Opened,
    PolicyLoaded,
    Record,
    RefusalSummary,
)
from appliance.core.values import ActingParty, Decision, Digest, Obligations, Peer, RunnerFacts, Signer

MODEL = ModelRef(
    name="demo",
    digest=Digest.of(b"model"),
    signer=Signer(name="ops", fingerprint=Digest.of(b"signer")),
    bundle_digest=Digest.of(b"bundle"),
)
RUNNER = RunnerFacts(
    runner_id="runner-1",
    model_digest=MODEL.digest,
    seal_mode="sealed-memfd",
    layers=("seccomp", "landlock"),
    degraded=(),
    filter_digest=Digest.of(b"filter"),
    context_tokens=2048,
    slots=4,
)
POLICY = Digest.of(b"policy")
ACTOR = Actor(
    key="k",
    issuer="https://issuer.test",
    subject="ada",
    client_id="cli",
    groups=("staff",),
    token_id="t",
    token_sha256=Digest.of(b"token"),
)
THROUGH = msgspec.structs.replace(
    ACTOR,
    acting=(
        ActingParty(
            issuer="https://issuer.test",
            subject="webui",
            client_id="webui",
            groups=("services",),
            token_id="s",
            token_sha256=Digest.of(b"the service's"),
        ),
        ActingParty(issuer="https://issuer.test", subject="behind"),
    ),
)
ADAPTED = msgspec.structs.replace(
    MODEL,
    companions=(
        CompanionRef(
            kind="adapter",
            scale_thousandths=500,
            name="style",
            digest=Digest.of(b"style"),
            signer=MODEL.signer,
            bundle_digest=Digest.of(b"bundle of the style"),
        ),
    ),
)


def opened(request_id: str, **changes: Any) -> Opened:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "actor": ACTOR,
        "peer": Peer(address="127.0.0.1", port=4711),
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": MODEL,
        "runner": RUNNER,
        "decision": Decision(
            allow=True,
            reasons=("group-allowed",),
            obligations=Obligations(),
            policy_digest=POLICY,
            input_digest=Digest.of(b"input"),
        ),
        "policy_input": {"subject": "ada", "model": "demo", "max_tokens": 64},
        "reserved_tokens": 128,
    }
    return Opened(**(fields | changes))


def closed(request_id: str) -> Closed:
    return Closed(
        request_id=request_id,
        outcome="completed",
        prompt_tokens=10,
        completion_tokens=20,
        returned_tokens=98,
        first_token_ms=5,
        total_ms=50,
    )


def policy_loaded() -> PolicyLoaded:
    return PolicyLoaded(policy_digest=POLICY, data_digest=Digest.of(b"data"))


def model_loaded(runner: RunnerFacts = RUNNER, model: ModelRef = MODEL) -> ModelLoaded:
    return ModelLoaded(model=model, runner=runner, load_ms=12)


def small(number: int) -> Record:
    """A record that needs no other before it."""
    return RefusalSummary(interval_seconds=number, counts={"token-invalid": 1})


@dataclass
class FakeClock:
    """Advances a millisecond at every look."""

    wall_ms: int = 1_790_000_000_000
    monotonic_ms: int = 1000
    boot_id: str = "boot-1"

    def now(self) -> tuple[str, int]:
        self.wall_ms += 1
        self.monotonic_ms += 1
        seconds = self.wall_ms // 1000
        days, rest = divmod(seconds, 86400)
        year, month, day = _civil(days)
        clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}.{self.wall_ms % 1000:03d}Z"
        return f"{year:04d}-{month:02d}-{day:02d}T{clock}", self.monotonic_ms

    def wall_seconds(self) -> int:
        return self.wall_ms // 1000


def _civil(days: int) -> tuple[int, int, int]:
    from datetime import date, timedelta

    found = date(1970, 1, 1) + timedelta(days=days)
    return found.year, found.month, found.day
