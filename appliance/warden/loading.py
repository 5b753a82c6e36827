"""How each model is loaded, what that takes, and whether it can ever be: the operator's settings, worked out.

Trusts: the settings; the validator's facts, each within its cap.
Promises: one answer for one model as long as this process lives. No question to the warden changes it, so none makes a
    runner load its model anew.
Not here: what is free now (``places``); the arithmetic (``core.memory``).
"""

import os
from typing import Final

import msgspec

from appliance.core.memory import LoadOptions, MemoryPlan, plan, why_unfit
from appliance.core.values import Value, VerifiedModel
from appliance.ipc.messages import Load, PlannedModel
from appliance.warden import memory

MAX_DEFAULT_THREADS: Final = 8


class PoolSettings(Value, frozen=True, kw_only=True):
    """``options`` are those of every model but the ``named`` ones; 0 ``threads`` is one per core, at most 8."""

    options: LoadOptions
    named: dict[str, LoadOptions] = msgspec.field(default_factory=dict)
    threads: int
    max_loaded: int
    memory_bytes: int
    load_timeout_seconds: float
    runner_memory_bytes: int | None = None


class Loading:
    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._threads = settings.threads or min(os.cpu_count() or 1, MAX_DEFAULT_THREADS)
        self._copied_types = memory.copied_types()

    def options(self, name: str) -> LoadOptions:
        return self._settings.named.get(name, self._settings.options)

    def planned(self, model: VerifiedModel) -> PlannedModel:
        options = self.options(model.name)
        planned = plan(
            model.facts,
            context_tokens=options.context_tokens,
            slots=options.slots,
            threads=self._threads,
            kv_type=options.kv_type,
            speculation=options.speculation,
            copied_types=self._copied_types,
        )
        budget_bytes = self._settings.memory_bytes
        unfit = why_unfit(model.facts, planned, kv_type=options.kv_type, budget_bytes=budget_bytes)
        return PlannedModel(name=model.name, plan=planned, unfit=unfit)

    def order(self, runner_id: str, model: VerifiedModel, planned: MemoryPlan) -> Load:
        """What the runner is told."""
        options = self.options(model.name)
        limit_bytes = memory.limit_bytes(planned, threads=self._threads, host_bytes=memory.host_bytes())
        return Load(
            runner_id=runner_id,
            context_tokens=min(options.context_tokens, model.facts.context_tokens),
            slots=options.slots,
            threads=self._threads,
            kv_type=options.kv_type,
            speculation=options.speculation,
            memory_bytes=self._settings.runner_memory_bytes or limit_bytes,
        )
