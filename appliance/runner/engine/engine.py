"""The engine: a loaded model, and one thread that decodes and samples for everybody.

The main thread renders, tokenises, detokenises and talks to the channel; the engine thread does nothing but steps
(``engine.steps``), most of each without the GIL. OpenMP's pool belongs to the thread that first decodes, so the trial
decode of ``warm_up`` runs in the engine thread too.

Trusts: ``Load``, from the warden; jobs, from ``channel``.
Promises: after ``warm_up`` no thread is started and no file opened. An exception in the engine thread ends the process.
Not here: who comes first (``engine.fair``), the sandbox (``sandbox``).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import EngineFigures
from appliance.ipc.messages import Conversation, Load, TextPrompt, TokenPrompt
from appliance.runner.chat.prompt import Prompt, PromptMaker
from appliance.runner.engine.constraint import CompiledConstraint, compile_constraint
from appliance.runner.engine.context import Context
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.panic import end_process
from appliance.runner.engine.speculation import Drafter
from appliance.runner.engine.speculation_choice import drafter_for
from appliance.runner.engine.steps import MOST_WAITING, MOST_WAITING_OF_ONE, Event, Job, Stepper

__all__ = ["MOST_WAITING", "MOST_WAITING_OF_ONE", "Engine", "Event", "Job", "LoadError"]


class Engine:
    """Made by ``load``; serves after ``warm_up``."""

    def __init__(self, model: Model, context: Context, prompts: PromptMaker, drafter: Drafter | None = None) -> None:
        self.slots: Final = context.slots
        self.context_tokens: Final = context.context_tokens
        self.on_events: Callable[[], None] = lambda: None
        """Called in the engine thread whenever there are new events."""
        self.model: Final = model
        self._context = context
        self._prompts = prompts
        self._stepper = Stepper(model, context, drafter=drafter)
        self._inbox: SimpleQueue[tuple[float, *tuple[Job, ...]] | None] = SimpleQueue()
        self._events: deque[list[Event]] = deque()
        self._warmed: SimpleQueue[LoadError | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @classmethod
    def load(cls, model_file: int, load: Load) -> "Engine":
        """Parses the GGUF at the descriptor's present offset. The descriptor stays the caller's to close.

        Raises ``LoadError``, or ``OSError`` when the descriptor cannot be read.
        """
        return cls.of(Model.load(model_file), load)

    @classmethod
    def of(cls, model: Model, load: Load, draft: Model | None = None) -> "Engine":
        """Owns both models from here on. Raises ``LoadError``, also for a model that is not for text, and for a draft
        model that is missing, not asked for, or not for this model."""
        if model.offers != "generate":
            raise LoadError("model-unsupported", "the model is not for text")
        context = Context(model, load, proposed_tokens=0 if load.speculation == "off" else SPECULATED_ROWS)
        return cls(model, context, PromptMaker(model), drafter_for(model, context, load, draft))

    def warm_up(self) -> None:
        """Starts the engine thread and runs every path once, so that serving needs nothing new from the kernel.

        Raises ``LoadError`` for a model whose template or decode fails. The process is of no use afterwards.
        """
        self._prompts.try_out()
        self._thread.start()
        failure = self._warmed.get()
        if failure is not None:
            raise failure

    def prompt(
        self, asked: Conversation | TextPrompt | TokenPrompt, at_most_tokens: int, *, constrained: bool = False
    ) -> Prompt:
        """A prompt that is still to be rendered and tokenised, by calls of ``advance``. ``constrained``: its answer
        must match a grammar of the caller's from its first word on."""
        return self._prompts.prompt(asked, at_most_tokens, constrained=constrained)

    def constraint(self, gbnf: str) -> CompiledConstraint:
        """A grammar that ``runner.grammar`` has checked or made, for one answer. Raises ``ConstraintInvalid``."""
        return compile_constraint(self.model, self._stepper.vocabulary, gbnf)

    def marked_piece(self, token: int) -> bytes:
        """The bytes of a token for a parser of answers, which tells a mark of its family from text that looks like it
        (``chat.answer.sealed``)."""
        sealed = self._prompts.seals.get(token)
        return self.model.piece(token) if sealed is None else sealed

    def submit(self, *choices: Job) -> None:
        """Asks for all answers to one request."""
        self._inbox.put((time.monotonic(), *choices))

    def figures(self) -> EngineFigures:
        """What the engine has done and is doing, without a word about any one caller."""
        return self._stepper.figures()

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events: list[Event] = []
        while self._events:
            events += self._events.popleft()
        return events

    def close(self) -> None:
        """Ends the thread and frees the model. Jobs in flight never end; only tests and an idle engine close."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
        self._stepper.close()
        self._context.close()
        self.model.close()

    # --- the engine thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._try_out():
                while self._take():
                    start = time.monotonic()
                    events = self._stepper.step(start)
                    self._stepper.timed(start, time.monotonic())
                    if events:
                        self._events.append(events)
                        self.on_events()
        except BaseException as error:  # noqa: BLE001  a dead engine thread must not leave a live channel behind
            end_process(error)

    def _try_out(self) -> bool:
        try:
            self._stepper.trial()
        except LoadError as failure:
            self._warmed.put(failure)
            return False
        self._warmed.put(None)
        return True

    def _take(self) -> bool:
        """Moves new jobs to the stepper, waiting for one when there is nothing to do. False when asked to end."""
        try:
            while True:
                submitted = self._inbox.get() if not self._stepper.busy else self._inbox.get_nowait()
                if submitted is None:
                    return False
                self._stepper.add(*submitted)
        except Empty:
            return True
