"""``paddock status``: what is loaded, and behind which fences; what could be, and what failed.

Trusts: the warden, who starts the runners and vouches for them.
Promises: for each loaded model its digest, signer, seal mode, sandbox layers and filter digest.
Not here: the past, which the audit log tells.
"""

import json

import msgspec

from appliance.cli.ask import ask
from appliance.core.codec import enc_hook
from appliance.core.refusals import Fault
from appliance.core.values import VerifiedModel
from appliance.ipc.messages import AskStatus, FailedModel, FromWarden, LoadedModel, WardenStatus
from appliance.settings import Settings


def show(config: Settings, *, as_json: bool) -> int:
    """Prints the status. Raises ``Fault`` when the warden does not answer."""
    status = whole_status(config)
    if as_json:
        print(json.dumps(msgspec.to_builtins(status, enc_hook=enc_hook), indent=2))
        return 0
    print(f"{len(status.models)} verified models, {len(status.loaded)} loaded")
    for loaded in status.loaded:
        _print(loaded)
    with_a_runner = {loaded.model.name for loaded in status.loaded}
    for model in status.models:
        if model.name not in with_a_runner:
            print(f"\n{model.name}  {model.digest}\n  verified, not loaded")
    for failed in status.failed:
        print(f"\n{failed.name}\n  failed    {failed.reason}: {failed.detail}")
    return 0


def whole_status(config: Settings) -> WardenStatus:
    """Page after page. A model that changes between two of them is in one, or in the next status."""
    models: list[VerifiedModel] = []
    loaded: list[LoadedModel] = []
    failed: list[FailedModel] = []
    after, more = "", True
    while more:
        page = ask(config, "warden", AskStatus(call=1, after=after), FromWarden)
        if not isinstance(page, WardenStatus):
            raise Fault("the warden answered something else")
        models += page.models
        loaded += page.loaded
        failed += page.failed
        names = [one.name for one in page.models] + [one.name for one in page.failed]
        last = max([*names, *(one.model.name for one in page.loaded)], default="")
        if page.more and last <= after:
            raise Fault("a page of the warden's answer does not go on")
        after, more = last, page.more
    return WardenStatus(call=1, models=tuple(models), loaded=tuple(loaded), failed=tuple(failed))


def _print(loaded: LoadedModel) -> None:
    model, runner = loaded.model, loaded.runner
    print(f"\n{model.name}  {model.digest}")
    print(f"  signer    {model.signer.name}  {model.signer.fingerprint}")
    print(f"  runner    {runner.runner_id}, {runner.slots} slots of {runner.context_tokens} tokens")
    print(f"  memory    at most {loaded.memory_limit_bytes / 2**20:.0f} MiB besides the model")
    print(f"  seal      {runner.seal_mode}")
    print(f"  layers    {', '.join(runner.layers)}")
    print(f"  degraded  {', '.join(runner.degraded) or 'none'}")
    print(f"  filters   {runner.filter_digest}")
