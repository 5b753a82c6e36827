"""Every port of the pipeline, faked, on one account of steps."""

from typing import Any

from appliance.core.ports import (
    AddressLimiter,
    AuditLog,
    AuthorizationServer,
    ClientRegistry,
    Delegation,
    Lease,
    Models,
    PolicyEngine,
    RateLimiter,
    Revocations,
    RunnerAnswer,
    TokenBudget,
    TokenVerifier,
)
from appliance.gateway.pipeline import Exchange, Pipeline, Ports
from tests.fakes.audit import FakeAuditLog
from tests.fakes.authority import FakeAuthorizationServer
from tests.fakes.budget import FakeBudget
from tests.fakes.delegation import FakeDelegation
from tests.fakes.door import FakeAddressLimiter, FakeVerifier
from tests.fakes.models import FakeAnswer, FakeLease, FakeModels
from tests.fakes.policy import FakePolicy
from tests.fakes.rates import FakeRates
from tests.fakes.registry import FakeClientRegistry, FakeRevocations
from tests.fakes.steps import Steps
from tests.support.made_values import ALICE, LIMITS, PEER

NOW = 1_790_000_000


class World:
    """Belongs to one event loop: make it inside the scenario."""

    def __init__(self, *, request_timeout_seconds: float = 600.0) -> None:
        self.steps = Steps()
        self.audit = FakeAuditLog(self.steps)
        self.budget = FakeBudget(self.steps)
        self.rates = FakeRates(self.steps)
        self.policy = FakePolicy(self.steps)
        self.models = FakeModels(self.steps)
        self.addresses = FakeAddressLimiter(self.steps)
        self.verifier = FakeVerifier(self.steps)
        self.whole = self.budget.left
        self.pipeline = Pipeline(
            Ports(
                models=self.models,
                policy=self.policy,
                budget=self.budget,
                audit=self.audit,
                limits=LIMITS,
                now_seconds=lambda: NOW,
                request_timeout_seconds=request_timeout_seconds,
            )
        )

    def exchange(self, **changes: Any) -> Exchange:
        fields: dict[str, Any] = {
            "request_id": "r-1",
            "principal": ALICE,
            "peer": PEER,
            "method": "POST",
            "route": "/v1/chat/completions",
        }
        return Exchange(**(fields | changes))


FAKES: dict[type, type] = {
    AuditLog: FakeAuditLog,
    AuthorizationServer: FakeAuthorizationServer,
    TokenBudget: FakeBudget,
    RateLimiter: FakeRates,
    PolicyEngine: FakePolicy,
    Models: FakeModels,
    Lease: FakeLease,
    RunnerAnswer: FakeAnswer,
    AddressLimiter: FakeAddressLimiter,
    TokenVerifier: FakeVerifier,
    Delegation: FakeDelegation,
    ClientRegistry: FakeClientRegistry,
    Revocations: FakeRevocations,
}
"""Each port and its one fake; ``test_architecture`` compares their methods."""
