"""The stages of one request, in their order. Everything that has to be true before a model says a word is on this page.

====  =======================  =====================================================================
0     guard, decode            ``guard``, ``surfaces``: bytes -> typed request
1, 2  verify, principal        ``gate``: bearer token -> ``Principal``, one of its slots, its request rate
3     admit                    does it fit the model, and what may it cost at worst?
4     decide                   policy
5     reserve                  tokens set aside
\\     lease                    a live runner of a verified model, sealed as policy demands; the record names it
6     record *opened*          durable before the first byte of the answer
7, 8  stream, meter            the runner's events, counted as they pass
9     settle, record *closed*  whatever happens
====  =======================  =====================================================================

Trusts: the ports, each for what its docstring promises.
Promises: no event of an answer is given out before its opened record is durable; once opened, an answer is settled and
    closed exactly once, also when the caller leaves, the runner dies or the task is cancelled.
Not here: how a refusal or an event looks on the wire (``problems``, ``surfaces``).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from appliance.core import decide
from appliance.core.admit import AdmitLimits, admit, constrain, find_model, may_name
from appliance.core.meter import Meter
from appliance.core.ports import AuditLog, Lease, Models, PolicyEngine, RunnerAnswer, TokenBudget
from appliance.core.records import Actor, Closed, Opened, Outcome, RefusedRequest, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Asked,
    Decision,
    Digest,
    Peer,
    Principal,
    Reservation,
    RunnerReport,
    VerifiedModel,
)
from appliance.gateway.deadlines import Deadlines

log = logging.getLogger(__name__)


def _never() -> bool:
    return False


@dataclass
class Exchange:
    """One request of a known principal, and how far it has come: what a refusal's record has to tell. ``has_ended``
    says whether its token has been revoked since it was let in."""

    request_id: str
    principal: Principal
    peer: Peer
    method: str
    route: str
    model_name: str | None = None
    decision: Decision | None = None
    policy_input: dict[str, Any] | None = None
    opened: bool = False
    has_ended: Callable[[], bool] = _never


@dataclass(frozen=True)
class Ports:
    """What the pipeline stands on; ``assemble`` fills it."""

    models: Models
    policy: PolicyEngine
    budget: TokenBudget
    audit: AuditLog
    limits: AdmitLimits
    now_seconds: Callable[[], int]
    request_timeout_seconds: float


class Answer:
    """An answer that may begin: its record is durable and the runner has accepted it. Metered as it is read."""

    def __init__(self, runner: RunnerAnswer, admission: Admission) -> None:
        self._runner = runner
        self._meter = Meter(admission.echo_bytes)
        self._started = time.monotonic()
        self._stopped_for: Refused | None = None
        self._heard = False
        self._refusal: Refused | None = None
        self.admission = admission

    async def events(self, *, patient: bool = False) -> list[AnswerEvent]:
        """Stages 7 and 8: the next events, at least one; the last is ``End``. ``patient``, and what is raised: as
        ``core.ports.RunnerAnswer`` says."""
        try:
            events = await self._runner.events(patient=patient)
        except Refused as refusal:
            self._refusal = refusal
            raise
        self._heard = True
        for event in events:
            self._meter.feed(event)
        return events

    def cancel(self) -> None:
        """Stops the generation; ``End`` with what it cost follows. Safe to call more than once."""
        if self._meter.end is None:
            self._runner.cancel()

    def stop(self, why: Refused) -> None:
        """Stops the generation for a reason that its caller is told. The first one counts."""
        if self._meter.end is None and self._stopped_for is None:
            self._stopped_for = why
            self.cancel()

    def time_out(self) -> None:
        """Stops the generation because it took too long."""
        self.stop(Refused(Reason.REQUEST_TIMEOUT))

    def require_whole(self) -> None:
        """After ``End``: raises ``Refused`` unless the answer is all there or the caller left."""
        end = self._meter.end
        if end is not None and end.reason == "error":
            self._refusal = Refused(Reason.RUNNER_ERROR, end.detail)
        if end is not None and end.reason == "cancelled" and self._stopped_for is not None:
            self._refusal = self._stopped_for
        if end is not None and self._runner.cut:
            self._refusal = Refused(Reason.READER_TOO_SLOW)
        if self._refusal is not None:
            raise self._refusal

    def outcome(self) -> tuple[Outcome, str]:
        """What the record says, whether or not the surface let the refusal pass on."""
        if self._refusal is not None:
            return _REFUSED_OUTCOMES.get(self._refusal.reason, "refused"), str(self._refusal)
        match self._meter.end.reason if self._meter.end else "cancelled":
            case "stop" | "tool-calls":
                return "completed", ""
            case "length":
                return "truncated", ""
            case _:  # also when the surface stopped reading before the runner's last word
                return "cancelled", ""

    def charge(self) -> tuple[int, int]:
        """Prompt and completion tokens. A runner that was given the prompt and was never heard of again may have worked
        through all of it: what is not known is charged."""
        usage = self._meter.usage()
        if self._heard or (self._refusal is not None and self._refusal.reason is not Reason.RUNNER_LOST):
            return usage.prompt_tokens, usage.completion_tokens
        return self.admission.max_prompt_tokens, usage.completion_tokens

    @property
    def meter(self) -> Meter:
        return self._meter

    def first_token_ms(self) -> int | None:
        first = self._runner.first_delta_at
        return None if first is None else round((first - self._started) * 1000)

    def total_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)


class Pipeline:
    """Runs stages 3 to 9 for every surface."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._deadlines = Deadlines(ports.request_timeout_seconds)
        self._running: dict[str, tuple[Exchange, Answer]] = {}

    def end_revoked(self) -> None:
        """Stops every answer whose token has been revoked since it began."""
        for exchange, answer in tuple(self._running.values()):
            if exchange.has_ended():
                answer.stop(Refused(Reason.TOKEN_INVALID, "revoked while it was answered"))

    async def visible_models(self, exchange: Exchange) -> list[VerifiedModel]:
        """The verified models that the token names and policy lets the principal see.

        A model that policy hides is left out and not recorded: a list refuses nobody.
        """
        catalogue = await self._catalogue()
        visible = []
        for model in catalogue:
            if may_name(exchange.principal, model.name):
                decision, _document = await self._decide(exchange, model)
                if decision.allow:
                    visible.append(model)
        return visible

    async def visible_model(self, exchange: Exchange, name: str) -> VerifiedModel:
        """One of those. Raises ``Refused(MODEL_NOT_FOUND)`` alike for an absent and a forbidden one; with the latter
        the exchange carries the decision, so that its record says who denied it."""
        exchange.model_name = name
        model = find_model(name, exchange.principal, await self._catalogue())
        decision, document = await self._decide(exchange, model)
        exchange.decision, exchange.policy_input = decision, document
        if not decision.allow:
            raise _hidden(decision)
        return model

    async def reports(self, exchange: Exchange) -> tuple[RunnerReport, ...]:
        """What the live runners say of themselves. Raises ``Refused(POLICY_DENIED)`` unless policy lets the principal
        read the metrics."""
        exchange.decision, exchange.policy_input = await self._decide(exchange, "metrics")
        decide.require_allowed(exchange.decision)
        return await self._ports.models.reports()

    async def require_described(self, exchange: Exchange) -> None:
        """Raises ``Refused(POLICY_DENIED)`` unless policy lets the principal read what the API is."""
        exchange.decision, exchange.policy_input = await self._decide(exchange, "describe")
        decide.require_allowed(exchange.decision)

    @asynccontextmanager
    async def answer(self, exchange: Exchange, request: Asked) -> AsyncIterator[Answer]:
        """Stages 3 to 9. Raises ``Refused`` before the answer begins; inside, only the caller's own exceptions pass."""
        admission, reservation, lease = await self._opened(exchange, request)  # 3 to 6
        answer: Answer | None = None
        outcome: Outcome = "gateway-error"
        detail = ""
        try:
            answer = Answer(lease.answer(exchange.request_id, admission, exchange.principal.key), admission)
            self._running[exchange.request_id] = exchange, answer
            self._deadlines.begin(answer.time_out)
            yield answer  # 7, 8
            outcome, detail = answer.outcome()
        except Refused as refusal:
            outcome, detail = _REFUSED_OUTCOMES.get(refusal.reason, "refused"), str(refusal)
            raise
        except asyncio.CancelledError:
            outcome, detail = "cancelled", "the gateway stopped"
            raise
        finally:
            self._running.pop(exchange.request_id, None)
            await self._close(exchange, reservation, answer, outcome, detail)  # 9

    async def _opened(self, exchange: Exchange, request: Asked) -> tuple[Admission, Reservation, Lease]:
        """Stages 3 to 6."""
        ports, principal = self._ports, exchange.principal
        exchange.model_name = request.model
        admission = await self._admitted(exchange, request)  # 3
        decision, document = await self._decide(exchange, admission)  # 4
        exchange.decision, exchange.policy_input = decision, document
        if not decision.allow:
            await self._require_visible(exchange, admission.model)
        decide.require_allowed(decision)
        admission = constrain(admission, decision.obligations)
        reservation = await ports.budget.reserve(  # 5
            exchange.request_id, principal.key, admission.worst_case_tokens
        )
        try:
            lease = await ports.models.lease(admission.model)
            decide.require_sealed(decision.obligations, lease.facts.seal_mode)
            await ports.audit.open(_opened(exchange, admission, lease, reservation))  # 6
        except BaseException:  # nothing was answered, so nothing was spent, also when the task was cancelled
            await ports.budget.settle(reservation, 0)
            raise
        exchange.opened = True
        return admission, reservation, lease

    async def _close(
        self, exchange: Exchange, reservation: Reservation, answer: Answer | None, outcome: Outcome, detail: str
    ) -> None:
        prompt_tokens = completion_tokens = 0
        if answer is not None:
            self._deadlines.end(answer.time_out)
            answer.cancel()  # no-op once the runner has said its last word
            prompt_tokens, completion_tokens = answer.charge()
        spent = prompt_tokens + completion_tokens
        returned_tokens = max(0, reservation.tokens - spent)  # what settling is about to say, should it be cut short
        try:
            returned_tokens = await self._ports.budget.settle(reservation, spent)
        finally:
            self._ports.audit.close(
                Closed(
                    request_id=exchange.request_id,
                    outcome=outcome,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                    returned_tokens=returned_tokens,
                    first_token_ms=answer.first_token_ms() if answer else None,
                    total_ms=answer.total_ms() if answer else 0,
                    detail=detail[:500],
                )
            )

    async def _admitted(self, exchange: Exchange, request: Asked) -> Admission:
        """Stage 3. Raises as ``admit``, to whoever may see the model; to others as if it did not exist."""
        catalogue = await self._catalogue()
        try:
            return admit(request, exchange.principal, catalogue, self._ports.limits)
        except Refused as refusal:
            if refusal.reason is not Reason.MODEL_NOT_FOUND:
                await self._require_visible(exchange, find_model(request.model, exchange.principal, catalogue))
            raise

    async def _require_visible(self, exchange: Exchange, model: VerifiedModel) -> None:
        """To whoever may not see the model it does not exist: any other refusal would tell that it does.

        Raises ``Refused(MODEL_NOT_FOUND)``.
        """
        listing, document = await self._decide(exchange, model)
        if not listing.allow:
            if exchange.decision is None:
                exchange.decision, exchange.policy_input = listing, document
            raise _hidden(exchange.decision)

    async def _catalogue(self) -> tuple[VerifiedModel, ...]:
        try:
            return await self._ports.models.catalogue()
        except Fault as fault:  # without a catalogue nothing can be admitted
            raise Refused(Reason.RUNNER_UNAVAILABLE, fault.detail, retry_after_seconds=1) from fault

    async def _decide(self, exchange: Exchange, asked: decide.Asked) -> tuple[Decision, dict[str, Any]]:
        document = decide.policy_input(
            asked,
            principal=exchange.principal,
            peer=exchange.peer,
            method=exchange.method,
            route=exchange.route,
            now_seconds=self._ports.now_seconds(),
        )
        try:
            input_document = decide.input_document(document)
            raw_answer = await self._ports.policy.evaluate(input_document)
        except Fault as fault:  # no answer is not a yes
            raise Refused(Reason.POLICY_UNAVAILABLE, fault.detail, retry_after_seconds=1) from fault
        decision = decide.judge(
            raw_answer,
            policy_digest=self._ports.policy.policy_digest,
            input_digest=Digest.of(input_document),
        )
        if decision.reasons == (decide.MALFORMED,):  # no answer either: policy has neither permitted nor denied
            exchange.decision, exchange.policy_input = decision, document
            raise Refused(Reason.POLICY_UNAVAILABLE, decide.MALFORMED, retry_after_seconds=1)
        return decision, document

    async def record_refusal(self, exchange: Exchange, refusal: Refused) -> Refused:
        """Writes the one record of a refusal to a known principal, durably, and returns what to tell the caller: the
        refusal itself, or ``audit-unavailable`` when even that could not be written."""
        if exchange.opened:
            return refusal  # its closed record tells
        try:
            await self._ports.audit.open(
                RefusedRequest(
                    request_id=exchange.request_id,
                    actor=actor_of(exchange.principal),
                    peer=exchange.peer,
                    method=exchange.method,
                    route=exchange.route,
                    model_name=exchange.model_name[:128] if exchange.model_name else None,
                    reason=refusal.reason.code,
                    decision=exchange.decision,
                    policy_input=exchange.policy_input,
                    detail=refusal.detail[:500],
                )
            )
        except Refused as unavailable:
            log.warning("refusal %s of %s was not recorded: %s", refusal, exchange.request_id, unavailable)
            return unavailable
        return refusal


_REFUSED_OUTCOMES: dict[Reason, Outcome] = {
    Reason.RUNNER_LOST: "runner-lost",
    Reason.RUNNER_ERROR: "runner-error",
    Reason.REQUEST_TIMEOUT: "cancelled",
    Reason.TOKEN_INVALID: "cancelled",
    Reason.READER_TOO_SLOW: "cancelled",
    Reason.ANSWER_TOO_LARGE: "cancelled",
}
"""Any other is the runner's no before it began."""


def _hidden(decision: Decision) -> Refused:
    return Refused(Reason.MODEL_NOT_FOUND, f"hidden by policy: {', '.join(decision.reasons)}", param="model")


def actor_of(principal: Principal) -> Actor:
    """The principal as every record names it."""
    return Actor(
        key=principal.key,
        issuer=principal.issuer,
        subject=principal.subject,
        client_id=principal.client_id,
        groups=principal.groups,
        token_id=principal.token_id,
        token_sha256=principal.token_sha256,
        acting=principal.acting,
    )


def _opened(exchange: Exchange, admission: Admission, lease: Lease, reservation: Reservation) -> Opened:
    if exchange.decision is None or exchange.policy_input is None:
        raise RuntimeError("stage 6 before stage 4")
    return Opened(
        request_id=exchange.request_id,
        actor=actor_of(exchange.principal),
        peer=exchange.peer,
        method=exchange.method,
        route=exchange.route,
        model=reference(admission.model),
        runner=lease.facts,
        decision=exchange.decision,
        policy_input=exchange.policy_input,
        reserved_tokens=reservation.tokens,
    )
