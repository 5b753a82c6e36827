"""The runner's own program in its whole sandbox, which says on stderr how long each layer took.

Started as ``python -I -B runner_with_clock.py --channel-fd N``. Its one line is a JSON object, step -> milliseconds of
wall time, written once both filters are on.
"""

import json
import os
import runpy
import time
from collections.abc import Callable
from typing import Any

from appliance.sandbox import layers, seccomp

milliseconds: dict[str, float] = {}


def clocked(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
    def measured(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = action(*arguments, **named)
        milliseconds[name] = 1000 * (time.perf_counter() - began)
        return result

    return measured


def main() -> None:
    apply, install = layers.Stack.apply, seccomp.install

    def clocked_apply(stack: layers.Stack, name: str, action: Callable[[], None]) -> None:
        apply(stack, name, clocked(name, action))

    def clocked_install(program: bytes) -> None:
        stage = "seccomp-stage-2" if "seccomp-stage-1" in milliseconds else "seccomp-stage-1"
        clocked(stage, install)(program)
        if stage == "seccomp-stage-2":
            os.write(2, json.dumps(milliseconds).encode() + b"\n")

    layers.Stack.apply = clocked_apply
    os.fork = clocked("fork into the pid namespace", os.fork)  # the clock is the same in parent and child
    layers.memory_limits = clocked("memory limits", layers.memory_limits)
    seccomp.prepare = clocked("compile both filters", seccomp.prepare)
    seccomp.install = clocked_install
    runpy.run_module("appliance.runner", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
