"""Run as a process: a notary that kills itself at a commit of its registry, before it or after, once it is told to.

``python -m tests.support.dying_notary PLACE before|after|never``; it dies when there is a file ``PLACE/die``, and
prints "ready" when it serves.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from appliance.notary.main import run_notary
from appliance.notary.registry import Registry
from tests.support.notary_client import every_connection_a_process, notary_config


def mortal(place: Path, moment: str) -> None:
    commit = Registry.commit

    def die_then(registry: Registry) -> None:
        dying = (place / "die").exists()
        if dying and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(registry)
        if dying:
            os.kill(os.getpid(), signal.SIGKILL)

    Registry.commit = die_then  # type: ignore[method-assign]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if sys.argv[2] != "never":
        mortal(where, sys.argv[2])
    asyncio.run(
        run_notary(
            notary_config(where),
            stop=asyncio.Event(),
            process_of=every_connection_a_process(),
            on_ready=lambda: print("ready", flush=True),
        )
    )
