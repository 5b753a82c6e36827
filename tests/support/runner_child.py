"""A runner without its sandbox, for tests of the engine: loads a model and serves a channel.

python -m tests.support.runner_child CHANNEL_FD MODEL LOAD_AS_JSON [companion:PATH ...] [fail-after-steps N]
"""

import os
import socket
import sys

import msgspec

from appliance.ipc.messages import Load
from appliance.runner import bindings, channel
from appliance.runner.engine.steps import Stepper


def _fail_after(steps: int) -> None:
    whole = Stepper.step
    left = iter(range(steps))

    def step(self: Stepper, now: float) -> object:
        if next(left, None) is None:
            raise RuntimeError("the prompt was: secret")
        return whole(self, now)

    Stepper.step = step  # type: ignore[method-assign,assignment]


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    load = msgspec.json.decode(sys.argv[3].encode(), type=Load)
    if "fail-after-steps" in sys.argv:
        _fail_after(int(sys.argv[-1]))
    companions = [word.removeprefix("companion:") for word in sys.argv if word.startswith("companion:")]
    files = [os.open(path, os.O_RDONLY) for path in (sys.argv[2], *companions)]
    try:
        engine = bindings.load_engine(files, load)
        engine.warm_up()
    except bindings.LoadError as error:
        sys.stderr.write(f"{error.reason}\n")
        os._exit(72)
    channel.serve(connection, engine, lambda name: f"tried {name}")
    os._exit(0)


main()
