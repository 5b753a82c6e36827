"""One request between ``RunnerStarted`` and ``RunnerEnd``: the tokens of its choices become text, reasoning and calls.

Trusts: the engine's events of a job come in order, and none after its end.
Promises: every token is told in one delta or in the end; a choice that has ended says nothing more.
Not here: frames and the socket (``outbox``, ``channel``), stop strings and characters (``engine.text``), what the text
of a model means (``chat.answer``).
"""

from collections.abc import Iterable
from typing import Final

from appliance.core.values import FinishReason, SampledToken, ToolCallDelta
from appliance.ipc.messages import RunnerDelta, RunnerEnd
from appliance.runner.chat.answer import AnswerParser, Piece, Reasoning, Text
from appliance.runner.engine.engine import Job
from appliance.runner.engine.text import TextStream

MAX_UNTOLD_LOGPROBS: Final = 8
"""With more a delta could outgrow its frame: 21 pieces of 256 bytes for each token."""


class Choice:
    """One of the texts that answer a request. ``parser`` None: it is nothing but text."""

    __slots__ = (
        "_called",
        "_parser",
        "_text",
        "_untold_logprobs",
        "_untold_tokens",
        "completion_tokens",
        "job",
        "reason",
    )

    def __init__(self, job: Job, stops: tuple[str, ...], parser: AnswerParser | None) -> None:
        self.job: Final = job
        self.reason: FinishReason | None = None
        self.completion_tokens = 0
        self._text = TextStream(stops)
        self._parser = parser
        self._called = False
        self._untold_tokens = 0  # sampled, but not yet covered by a delta
        self._untold_logprobs: list[SampledToken] = []

    @property
    def has_parser(self) -> bool:
        return self._parser is not None

    def feed(self, piece: bytes, sampled: SampledToken | None) -> list[RunnerDelta]:
        """One token. Ends the choice when a stop string is complete. Text may be held back for as long as it likes, log
        probabilities may not."""
        self.completion_tokens += 1
        self._untold_tokens += 1
        if sampled is not None:
            self._untold_logprobs.append(sampled)
        text = self._text.feed(piece)
        if self._text.stopped:
            self.job.cancelled = True
            return [*self._say(text), *self._end("stop")]
        deltas = self._say(text)
        if len(self._untold_logprobs) >= MAX_UNTOLD_LOGPROBS:
            deltas.append(self._delta())
        return deltas

    def finish(self, reason: FinishReason) -> list[RunnerDelta]:
        """The engine's last word about it."""
        return [*self._say(self._text.finish()), *self._end(reason)]

    def _end(self, reason: FinishReason) -> list[RunnerDelta]:
        deltas = self._tell(self._parser.finish()) if self._parser else []
        if self._untold_logprobs:  # of tokens that wrote nothing
            deltas.append(self._delta())
        self.reason = "tool-calls" if self._called and reason == "stop" else reason
        return deltas

    def _say(self, text: str) -> list[RunnerDelta]:
        if self._parser is not None:
            return self._tell(self._parser.feed(text))
        return [self._delta(text=text)] if text else []

    def _tell(self, pieces: Iterable[Piece]) -> list[RunnerDelta]:
        deltas = []
        for piece in pieces:
            match piece:
                case Text():
                    deltas.append(self._delta(text=piece.text))
                case Reasoning():
                    deltas.append(self._delta(reasoning=piece.text))
                case ToolCallDelta():
                    self._called = True
                    deltas.append(self._delta(call=piece))
        return deltas

    def _delta(self, *, text: str = "", reasoning: str = "", call: ToolCallDelta | None = None) -> RunnerDelta:
        """Covers what was not yet told."""
        delta = RunnerDelta(
            request_id=self.job.request_id,
            text=text,
            reasoning=reasoning,
            tool_calls=() if call is None else (call,),
            logprobs=tuple(self._untold_logprobs),
            choice=self.job.choice,
            tokens=self._untold_tokens,
        )
        self._untold_tokens = 0
        self._untold_logprobs.clear()
        return delta


class Answer:
    """All choices of one request; ``begun`` once its ``RunnerStarted`` is said. Each begins with ``echo``. Of a
    ``patient`` one, ``held`` is what was not told since ``told_at``, in seconds of the monotonic clock."""

    __slots__ = ("begun", "choices", "detail", "echo", "held", "patient", "request_id", "told_at")

    def __init__(self, request_id: str, choices: list[Choice], echo: str = "", *, patient: bool = False) -> None:
        self.request_id: Final = request_id
        self.choices: Final = choices
        self.echo: Final = echo
        self.patient: Final = patient
        self.held: list[RunnerDelta] = []
        self.told_at = 0.0
        self.begun = False
        self.detail = ""

    @property
    def whole(self) -> bool:
        return all(choice.reason is not None for choice in self.choices)

    @property
    def prompt_tokens(self) -> int:
        """At least one: a prompt that was cancelled before anything of it was known was work too."""
        return max(1, len(self.choices[0].job.prompt))

    def choice_of(self, job: Job) -> Choice | None:
        """None for a job of a request with this one's id that a reset made forgotten."""
        choice = self.choices[job.choice] if job.choice < len(self.choices) else None
        return choice if choice is not None and choice.job is job else None

    def cancel(self) -> None:
        for choice in self.choices:
            choice.job.cancelled = True

    def end(self) -> RunnerEnd:
        """Once it is ``whole``. A request breaks as soon as one of its choices does."""
        reasons = tuple(choice.reason for choice in self.choices if choice.reason is not None)
        broken = next((reason for reason in reasons if reason in {"error", "cancelled"}), None)
        return RunnerEnd(
            request_id=self.request_id,
            reason=broken or reasons[0],
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(choice.completion_tokens for choice in self.choices),
            cached_tokens=min(self.choices[0].job.cached_tokens, self.prompt_tokens),
            choice_reasons=reasons if len(reasons) > 1 else (),
            detail=self.detail,
        )
