"""``paddock sandbox probe``: prints what ``sandbox_probe`` found.

Trusts: the launcher, which starts what the appliance would start.
Promises: exit status 0 only if every attempt ended as expected.
Not here: the attempts.
"""

import asyncio
import json

import msgspec

from appliance.cli.sandbox_probe import ProbeOutcome, run_probe, run_without_filters
from appliance.settings import Settings
from appliance.warden.launch_spawn import SpawnLauncher
from appliance.warden.starter_client import Starter


def probe(config: Settings, *, as_json: bool) -> int:
    """Tries every attempt in live runners on this host, then those of the other layers with the filters left out."""
    with Starter(allow_degraded=frozenset(config.sandbox.allow_degraded)) as starter:
        inside = asyncio.run(run_probe(SpawnLauncher(starter)))
    beneath = run_without_filters(config.sandbox.allow_degraded)
    outcomes = [*inside, *beneath]
    good = bool(inside) and all(outcome.ok for outcome in outcomes)
    if as_json:
        report = {"ok": good, "in_a_live_runner": inside, "without_filters": beneath}
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print("in a live runner, one process for each", inside)
        _print("by the other layers, with the filters left out", beneath)
        print(f"\n{sum(outcome.ok for outcome in outcomes)} of {len(outcomes)} attempts ended as expected.")
    return 0 if good else 1


def _print(title: str, outcomes: list[ProbeOutcome]) -> None:
    print(f"\n{title}")
    for outcome in outcomes:
        print(f"  {'ok  ' if outcome.ok else 'FAIL'} {outcome.name:32} {outcome.observed}")
