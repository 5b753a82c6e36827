"""``paddock status``: what is loaded, and behind which fences; what could be, and what failed.

Trusts: the warden, who starts the runners and vouches for them.
Promises: for each loaded model its digest, signer, seal mode, sandbox layers and filter digest, what it takes and how
    long it stays; for each other what it would take, and why it cannot be loaded if it cannot.
Not here: the past, which the audit log tells.
"""

import json

import msgspec

from appliance.cli.ask import ask
from appliance.core.codec import enc_hook
from appliance.core.memory import mib, spelt
from appliance.core.refusals import Fault
from appliance.core.values import AdapterFacts, VerifiedModel
from appliance.ipc.messages import (
    AskStatus,
    FailedModel,
    FromWarden,
    LoadedModel,
    MemoryBudget,
    PlannedModel,
    WardenStatus,
)
from appliance.settings import Settings


def show(config: Settings, *, as_json: bool) -> int:
    """Prints the status. Raises ``Fault`` when the warden does not answer."""
    status = whole_status(config)
    if as_json:
        print(json.dumps(msgspec.to_builtins(status, enc_hook=enc_hook), indent=2))
        return 0
    adapters = sum(model.is_adapter for model in status.models)
    beside = f"; LoRA adapters: {adapters}" if adapters else ""
    print(f"{len(status.models) - adapters} verified models, {len(status.loaded)} loaded{beside}")
    if status.memory is not None:
        print(f"memory    {mib(status.memory.planned_bytes)} planned of {mib(status.memory.budget_bytes)}")
    for loaded in status.loaded:
        _print(loaded)
    with_a_runner = {loaded.model.name for loaded in status.loaded}
    planned = {one.name: one for one in status.planned}
    for model in status.models:
        if model.name not in with_a_runner:
            print(f"\n{model.name}  {model.digest}\n  {_what(model)}")
            _print_files(model)
            if plan := planned.get(model.name):
                print(f"  memory    {f'cannot be loaded: {plan.unfit}' if plan.unfit else f'needs {spelt(plan.plan)}'}")
    for failed in status.failed:
        print(f"\n{failed.name}\n  failed    {failed.reason}: {failed.detail}")
    return 0


def whole_status(config: Settings) -> WardenStatus:
    """Page after page. A model that changes between two of them is in one, or in the next status."""
    models: list[VerifiedModel] = []
    loaded: list[LoadedModel] = []
    failed: list[FailedModel] = []
    planned: list[PlannedModel] = []
    memory: MemoryBudget | None = None
    after, more = "", True
    while more:
        page = ask(config, "warden", AskStatus(call=1, after=after), FromWarden)
        if not isinstance(page, WardenStatus):
            raise Fault("the warden answered something else")
        models += page.models
        loaded += page.loaded
        failed += page.failed
        planned += page.planned
        memory = page.memory
        names = [one.name for one in page.models] + [one.name for one in page.failed]
        last = max([*names, *(one.model.name for one in page.loaded)], default="")
        if page.more and last <= after:
            raise Fault("a page of the warden's answer does not go on")
        after, more = last, page.more
    return WardenStatus(
        call=1,
        models=tuple(models),
        loaded=tuple(loaded),
        failed=tuple(failed),
        planned=tuple(planned),
        memory=memory,
    )


def _print(loaded: LoadedModel) -> None:
    model, runner = loaded.model, loaded.runner
    print(f"\n{model.name}  {model.digest}")
    print(f"  signer    {model.signer.name}  {model.signer.fingerprint}")
    _print_files(model)
    print(f"  runner    {runner.runner_id}, {runner.slots} slots of {runner.context_tokens} tokens")
    if loaded.options is not None:
        print(f"  cache     {loaded.options.kv_type}, {_stay(loaded)}")
    print(f"  memory    {_memory(loaded)}")
    print(f"  seal      {runner.seal_mode}")
    print(f"  layers    {', '.join(runner.layers)}")
    print(f"  degraded  {', '.join(runner.degraded) or 'none'}")
    print(f"  filters   {runner.filter_digest}")


def _what(model: VerifiedModel) -> str:
    if model.facts.adapter is None:
        return "verified, not loaded"
    return f"verified; {described(model.facts.architecture, model.facts.adapter)}"


def described(architecture: str, adapter: AdapterFacts) -> str:
    """An adapter, for an operator."""
    return f"a LoRA adapter for {architecture} models, {adapter.pairs} matrices, rank {adapter.rank}"


def _print_files(model: VerifiedModel) -> None:
    """Those that a name stands on, where it is not simply the name of one."""
    if model.base:
        print(f"  base      {model.base}")
    for one in model.companions:
        scale = "" if one.scale_thousandths is None else f"  scale {one.scale_thousandths / 1000:g}"
        print(f"  {one.kind:9} {one.name}  {one.digest}{scale}  signed by {one.signer.name}")


def _memory(loaded: LoadedModel) -> str:
    parts = []
    if loaded.plan is not None:
        parts.append(f"planned {spelt(loaded.plan)}")
    if loaded.taken is not None:
        parts.append(f"has {mib(loaded.taken.private_bytes)} and {mib(loaded.taken.mapped_bytes)} mapped")
    parts.append(f"at most {mib(loaded.memory_limit_bytes)} besides the model")
    return "; ".join(parts)


def _stay(loaded: LoadedModel) -> str:
    if loaded.idle_seconds is None:
        return "busy"
    if loaded.ends_in_seconds is None:
        return f"idle for {loaded.idle_seconds} s, stays"
    return f"idle for {loaded.idle_seconds} s, ends in {loaded.ends_in_seconds} s"
