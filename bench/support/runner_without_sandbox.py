"""The runner's own program with every layer left out: what a runner would cost if nothing protected the host from it.

Started as ``python -I -B runner_without_sandbox.py --channel-fd N``, by the benchmark alone. The product has no switch
for this: the functions that put the layers on are replaced here, in this process, before its program begins.
"""

import runpy

from appliance.core.values import Digest
from appliance.sandbox import layers, seccomp


def nothing(*_arguments: object, **_named: object) -> None:
    """In place of a layer."""


def no_filters(_pid: int) -> seccomp.Filters:
    """Compiling them is part of what the sandbox costs."""
    return seccomp.Filters(stage1=b"", stage2=b"", digest=Digest(hex="0" * 64))


if __name__ == "__main__":
    layers.first_for_the_oom_killer = nothing
    layers.leave_host = nothing
    layers.die_with_parent = nothing
    layers.shut_in = nothing
    layers.memory_limits = nothing
    seccomp.prepare = no_filters
    seccomp.install = nothing
    runpy.run_module("appliance.runner", run_name="__main__", alter_sys=True)
