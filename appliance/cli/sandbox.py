"""``paddock sandbox probe``: prints what ``sandbox_probe`` found.

Trusts: the launcher, which starts what the appliance would start.
Promises: exit status 0 only if every attempt ended as expected.
Not here: the attempts.
"""

import asyncio
import json

import msgspec

from appliance.cli.sandbox_probe import ProbeOutcome, run_probe
from appliance.warden.launch_spawn import SpawnLauncher


def probe(*, as_json: bool) -> int:
    """Tries every attempt in live runners on this host and prints each outcome."""
    outcomes = asyncio.run(_probe())
    good = all(outcome.ok for outcome in outcomes)
    if as_json:
        print(json.dumps({"ok": good, "attempts": msgspec.to_builtins(outcomes)}, indent=2))
    else:
        for outcome in outcomes:
            print(f"{'ok  ' if outcome.ok else 'FAIL'} {outcome.name:32} {outcome.observed}")
        print(f"\n{sum(outcome.ok for outcome in outcomes)} of {len(outcomes)} attempts ended as expected.")
    return 0 if good and outcomes else 1


async def _probe() -> list[ProbeOutcome]:
    return await run_probe(SpawnLauncher())
