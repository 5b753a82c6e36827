"""The engine thread: it takes what is asked, computes step by step, and leaves what happened to be fetched.

OpenMP's pool belongs to the thread that first decodes, so the trial runs here too.

Trusts: its ``Steps`` end every job.
Promises: after ``warm_up`` no thread is started. An exception in the thread ends the process.
Not here: what a step computes (``engine.steps``, ``engine.embedding``).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Generic, Protocol, TypeVar

from appliance.runner.engine.model import LoadError
from appliance.runner.engine.panic import end_process

JobT = TypeVar("JobT")
JobT_contra = TypeVar("JobT_contra", contravariant=True)
EventT = TypeVar("EventT")


class Steps(Protocol[JobT_contra, EventT]):
    """What the thread computes. Nobody else calls these; times are those of ``time.monotonic``."""

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        ...

    def trial(self) -> None:
        """Runs every path once. Raises ``LoadError``."""
        ...

    def add(self, now: float, *jobs: JobT_contra) -> None:
        """Takes the jobs of one request, which came at ``now``."""
        ...

    def step(self, now: float) -> list[EventT]:
        """Computes one batch, and tells what happened. What it raises ends the process."""
        ...

    def timed(self, start: float, end: float) -> None:
        """The last step took from ``start`` to ``end``."""
        ...


class Worker(Generic[JobT, EventT]):
    """One thread over ``steps``; serves after ``warm_up``."""

    def __init__(self, steps: Steps[JobT, EventT]) -> None:
        self.on_events: Callable[[], None] = lambda: None
        """Called in the engine thread whenever there are new events."""
        self._steps: Final = steps
        self._inbox: SimpleQueue[tuple[float, *tuple[JobT, ...]] | None] = SimpleQueue()
        self._events: deque[list[EventT]] = deque()
        self._warmed: SimpleQueue[LoadError | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def warm_up(self) -> None:
        """Starts the thread and runs every path once, so that serving needs nothing new from the kernel.

        Raises ``LoadError``. The process is of no use afterwards.
        """
        self._thread.start()
        failure = self._warmed.get()
        if failure is not None:
            raise failure

    def submit(self, *jobs: JobT) -> None:
        """Asks for all answers to one request."""
        self._inbox.put((time.monotonic(), *jobs))

    def take_events(self) -> list[EventT]:
        """What happened since the last call, in order."""
        events: list[EventT] = []
        while self._events:
            events += self._events.popleft()
        return events

    def close(self) -> None:
        """Ends the thread. Jobs in flight never end; only tests and an idle engine close."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._try_out():
                while self._take():
                    start = time.monotonic()
                    events = self._steps.step(start)
                    self._steps.timed(start, time.monotonic())
                    if events:
                        self._events.append(events)
                        self.on_events()
        except BaseException as error:  # noqa: BLE001  a dead engine thread must not leave a live channel behind
            end_process(error)

    def _try_out(self) -> bool:
        try:
            self._steps.trial()
        except LoadError as failure:
            self._warmed.put(failure)
            return False
        self._warmed.put(None)
        return True

    def _take(self) -> bool:
        """Moves new jobs to the steps, waiting for one when there is nothing to do. False when asked to end."""
        while not self._steps.busy or not self._inbox.empty():
            submitted = self._inbox.get()
            if submitted is None:
                return False
            self._steps.add(*submitted)
        return True
