"""The engine: a loaded model, and one thread that decodes and samples for everybody.

The main thread renders, tokenises, detokenises and talks to the channel; the engine thread (``engine.worker``) does
nothing but steps (``engine.steps``), most of each without the GIL.

Trusts: ``Load``, from the warden; jobs, from ``channel``.
Promises: after ``warm_up`` no thread is started and no file opened.
Not here: who comes first (``engine.fair``), the sandbox (``sandbox``).
"""

from typing import Final

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import EngineFigures
from appliance.ipc.messages import Conversation, Load, TextPrompt, TokenPrompt
from appliance.runner.chat.prompt import Prompt, PromptMaker
from appliance.runner.engine.constraint import CompiledConstraint, compile_constraint
from appliance.runner.engine.context import Context
from appliance.runner.engine.jobs import Event, Job
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.slots import MOST_WAITING, MOST_WAITING_OF_ONE
from appliance.runner.engine.speculation import Drafter
from appliance.runner.engine.speculation_choice import drafter_for
from appliance.runner.engine.steps import Stepper
from appliance.runner.engine.worker import Worker

__all__ = ["MOST_WAITING", "MOST_WAITING_OF_ONE", "Engine", "Event", "Job", "LoadError"]


class Engine(Worker[Job, Event]):
    """Made by ``load``; serves after ``warm_up``."""

    def __init__(self, model: Model, context: Context, prompts: PromptMaker, drafter: Drafter | None = None) -> None:
        self._stepper = Stepper(model, context, drafter=drafter)
        super().__init__(self._stepper)
        self.slots: Final = context.slots
        self.context_tokens: Final = context.context_tokens
        self.model: Final = model
        self._context = context
        self._prompts = prompts

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
        """Raises ``LoadError`` for a model whose template or decode fails. The process is of no use afterwards."""
        self._prompts.try_out()
        super().warm_up()

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

    def figures(self) -> EngineFigures:
        """What the engine has done and is doing, without a word about any one caller."""
        return self._stepper.figures(self._inbox.qsize())

    @property
    def retry_after_seconds(self) -> int:
        """A guess of when a request that came now would have a slot."""
        return self._stepper.retry_after_seconds

    def close(self) -> None:
        """Frees the model too."""
        super().close()
        self._stepper.close()
        self._context.close()
        self.model.close()
