"""``core.ports.Models`` with one runner whose events the test writes."""

import asyncio
import time

from appliance.core.refusals import Refused
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Delta,
    End,
    RunnerFacts,
    RunnerReport,
    SealMode,
    Started,
    VerifiedModel,
)
from tests.fakes.steps import Steps
from tests.support import made_values

STARTED = Started(prompt_tokens=9)


def delta(text: str, tokens: int = 1) -> Delta:
    return Delta(text=text, tokens=tokens)


def end(reason: str = "stop", completion_tokens: int = 2, detail: str = "") -> End:
    return End(reason=reason, prompt_tokens=9, completion_tokens=completion_tokens, detail=detail)  # type: ignore[arg-type]


WHOLE: tuple[AnswerEvent, ...] = (STARTED, delta("Hel"), delta("lo"), end())


class FakeAnswer:
    """``core.ports.RunnerAnswer``.

    Each item of the script is one call's events, or what it raises, or ``None``: it waits for a cancel.
    """

    def __init__(self, steps: Steps, script: list[list[AnswerEvent] | Refused | None], *, cut: bool = False) -> None:
        self._steps = steps
        self._script = script
        self._cut = cut
        self._cancelled = asyncio.Event()
        self._first_delta_at: float | None = None
        self.cancels = 0

    @property
    def cut(self) -> bool:
        return self._cut

    @property
    def first_delta_at(self) -> float | None:
        return self._first_delta_at

    async def events(self, *, patient: bool = False) -> list[AnswerEvent]:
        await self._steps.reach("events")
        item = self._script.pop(0) if self._script else None
        if item is None:
            await self._cancelled.wait()
            return [end("cancelled")]
        if isinstance(item, Refused):
            raise item
        if self._first_delta_at is None and any(isinstance(event, Delta) for event in item):
            self._first_delta_at = time.monotonic()
        return item

    def cancel(self) -> None:
        self._steps.note("cancel")
        self.cancels += 1
        self._cancelled.set()


class FakeLease:
    """``core.ports.Lease``."""

    def __init__(self, models: "FakeModels", of: VerifiedModel) -> None:
        self._models = models
        self._facts = made_values.runner_facts(of, seal_mode=models.seal_mode)

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    def answer(self, request_id: str, admission: Admission, principal_key: str) -> FakeAnswer:
        self._models.steps.note("submit")
        self._models.submitted.append((request_id, admission, principal_key))
        answer = FakeAnswer(self._models.steps, list(self._models.script), cut=self._models.cut)
        self._models.answers.append(answer)
        return answer


class FakeModels:
    def __init__(
        self,
        steps: Steps,
        catalogue: tuple[VerifiedModel, ...] = (made_values.model("demo"), made_values.model("secret")),
    ) -> None:
        self.steps = steps
        self.models = catalogue
        self.script: list[list[AnswerEvent] | Refused | None] = [[event] for event in WHOLE]
        self.submitted: list[tuple[str, Admission, str]] = []
        self.answers: list[FakeAnswer] = []
        self.seal_mode: SealMode = "sealed-memfd"
        self.cut = False
        self.told: tuple[RunnerReport, ...] = ()

    async def catalogue(self) -> tuple[VerifiedModel, ...]:
        await self.steps.reach("catalogue")
        return self.models

    async def lease(self, model: VerifiedModel) -> FakeLease:
        await self.steps.reach("lease")
        return FakeLease(self, model)

    async def reports(self) -> tuple[RunnerReport, ...]:
        await self.steps.reach("reports")
        return self.told
