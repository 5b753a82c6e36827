"""The benchmark's end of the load process (``load``)."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from bench.support.exchange import FromLoad, Go, Hello, Outcome, Prepared, Setup, ToLoad, Window

_ROOT: Final = Path(__file__).resolve().parents[2]
_STOP_SECONDS: Final = 30


class LoadProcess:
    """Started by its constructor. Every method raises ``RuntimeError`` when the process has ended, whose stderr is
    ours and says why."""

    def __init__(self, setup: Setup) -> None:
        self._decoder: msgspec.json.Decoder[FromLoad] = msgspec.json.Decoder(FromLoad)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.support.load"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        hello = self._ask(setup)
        assert isinstance(hello, Hello)
        self.runner_pids = hello.runner_pids

    def prepare(self, window: Window) -> None:
        """Connects the callers and lets each ask once."""
        assert isinstance(self._ask(window), Prepared)

    def run(self) -> Outcome:
        """The window that was prepared, to its end."""
        outcome = self._ask(Go())
        assert isinstance(outcome, Outcome)
        return outcome

    def stop(self) -> None:
        """The load process ends when its stdin does, and its runners with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        finally:
            self._process.kill()

    def _ask(self, message: ToLoad) -> FromLoad:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load process ended with status {self._process.wait(_STOP_SECONDS)}")
        return self._decoder.decode(line)
