"""A runner without its sandbox, for tests of the engine: loads a model and serves a channel.

python -m tests.support.runner_child CHANNEL_FD MODEL LOAD_AS_JSON [companion:PATH ...]
    [fail-after-steps N | count-grammars]

With ``count-grammars`` it says on stderr, when its channel is closed, how many tokens grammars were asked about in the
step with the most of them, and how many steps a request's token took at most: a JSON object.
"""

import json
import os
import socket
import sys
from collections import Counter

import msgspec

from appliance.ipc.messages import Load
from appliance.runner import bindings, channel
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.jobs import Event
from appliance.runner.engine.steps import Stepper
from appliance.runner.engine.vocabulary import Ids


def _fail_after(steps: int) -> None:
    whole = Stepper.step
    left = iter(range(steps))

    def step(self: Stepper, now: float) -> object:
        if next(left, None) is None:
            raise RuntimeError("the prompt was: secret")
        return whole(self, now)

    Stepper.step = step  # type: ignore[method-assign,assignment]


class _Counting:
    """What ``count-grammars`` counts."""

    def __init__(self) -> None:
        self.asked = self.most_asked = self.steps = 0
        self.told_at: dict[str, int] = {}
        self.most_steps: Counter[str] = Counter()

    def install(self) -> None:
        step, allowed = Stepper.step, CompiledConstraint.allowed

        def counting_step(stepper: Stepper, now: float) -> list[Event]:
            self.asked = 0
            events = step(stepper, now)
            self.steps += 1
            self.most_asked = max(self.most_asked, self.asked)
            for event in events:
                if event.token >= 0:
                    name = event.job.request_id
                    self.most_steps[name] = max(self.most_steps[name], self.steps - self.told_at.get(name, self.steps))
                    self.told_at[name] = self.steps
            return events

        def counting_allowed(constraint: CompiledConstraint, ids: Ids) -> Ids:
            self.asked += len(ids)
            return allowed(constraint, ids)

        Stepper.step = counting_step  # type: ignore[method-assign]
        CompiledConstraint.allowed = counting_allowed  # type: ignore[method-assign]

    def tell(self) -> None:
        told = {"most_asked": self.most_asked, "most_steps": self.most_steps}
        sys.stderr.write(json.dumps(told))
        sys.stderr.flush()


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    load = msgspec.json.decode(sys.argv[3].encode(), type=Load)
    if "fail-after-steps" in sys.argv:
        _fail_after(int(sys.argv[-1]))
    counting = _Counting()
    if "count-grammars" in sys.argv:
        counting.install()
    companions = [word.removeprefix("companion:") for word in sys.argv if word.startswith("companion:")]
    files = [os.open(path, os.O_RDONLY) for path in (sys.argv[2], *companions)]
    try:
        engine = bindings.load_engine(files, load)
        engine.warm_up()
    except bindings.LoadError as error:
        sys.stderr.write(f"{error.reason}\n")
        os._exit(72)
    counting.most_asked = 0
    channel.serve(connection, engine, lambda name: f"tried {name}")
    if "count-grammars" in sys.argv:
        counting.tell()
    os._exit(0)


main()
