"""What a runner does with a request for text: prompt, grammar, jobs of the engine, answer.

Work on the prompts is done in small steps between the answers' words (``advance``): one block of one prompt at a time.

What the numbers of an answer mean. ``RunnerStarted.prompt_tokens`` and ``RunnerEnd.prompt_tokens`` are the rendered
prompt, once, however many choices there are. ``RunnerDelta.tokens`` counts the sampled tokens that this delta and
nothing before it covers; ``RunnerEnd.completion_tokens`` counts all of them, also those of which nothing was sent: held
back for a stop string, half a character. The token that ends an answer is not counted, since it is not told. A request
that is cancelled before its prompt was whole costs what is known of it.

``RunnerStarted`` is said when the first choice has a slot: until then a request can still be refused.

Trusts: the peer, as ``channel`` does.
Promises: every ``Submit`` gets ``RunnerRefused``, or ``RunnerStarted`` and exactly one ``RunnerEnd``, unless a
``Reset`` comes first.
Not here: the socket (``channel``), whose turn it is for a slot (``engine.fair``), one choice's text (``answer``).
"""

import time
from typing import Final

from appliance.core.values import Constraint, GbnfGrammar, JsonObject, JsonSchema, SampledToken
from appliance.ipc.messages import Conversation, RunnerDelta, RunnerStarted, Submit, TextPrompt
from appliance.runner.answer import Answer, Choice
from appliance.runner.chat.answer import may_be_seal
from appliance.runner.chat.prompt import Prompt, PromptError, PromptTooLong
from appliance.runner.engine.constraint import CompiledConstraint, ConstraintInvalid
from appliance.runner.engine.engine import MOST_WAITING, MOST_WAITING_OF_ONE, Engine, Event, Job
from appliance.runner.engine.logprobs import sampled_token
from appliance.runner.engine.sampling import biases_fit, is_finite
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.schema import SchemaInvalid, json_object_gbnf, to_gbnf
from appliance.runner.outbox import Outbox
from appliance.runner.rounds import Rounds

_MAX_LOGPROB_PIECE_BYTES: Final = 256
"""With 20 alternatives a token's probabilities must fit a frame."""
_ECHO_CHARACTERS: Final = 16 * 1024
PATIENCE_SECONDS: Final = 0.1
"""Between two pieces of a patient answer, which otherwise would wake the gateway for each of its tokens."""


class _NotOurs(Exception):
    """The request cannot be done. The text is for the operator."""


class _Preparing:
    """A request whose prompt is not whole yet."""

    __slots__ = ("cancelled", "constraint", "prompt", "submit")

    def __init__(self, submit: Submit, prompt: Prompt, constraint: CompiledConstraint | None) -> None:
        self.submit = submit
        self.prompt = prompt
        self.constraint = constraint
        self.cancelled = False


class GenerationDesk:
    """One for each channel whose model is for text. The main thread only."""

    def __init__(self, engine: Engine, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox
        self._preparing: Rounds[_Preparing] = Rounds()
        self._answers: dict[str, Answer] = {}

    @property
    def preparing(self) -> bool:
        """Whether ``advance`` has anything to do."""
        return bool(self._preparing)

    def holds(self, request_id: str) -> bool:
        return request_id in self._preparing or request_id in self._answers

    def accept(self, submit: Submit) -> None:
        """A request whose id is not in use."""
        if self._is_one_too_many(submit):
            return None
        try:
            constraint = self._checked(submit)
        except (_NotOurs, GrammarInvalid, SchemaInvalid, ConstraintInvalid) as error:
            return self._outbox.refuse(submit.request_id, "field-invalid", str(error))
        at_most_tokens = min(submit.max_prompt_tokens, self._engine.context_tokens - 1)
        prompt = self._engine.prompt(submit.prompt, at_most_tokens, constrained=constraint is not None)
        self._preparing.put(submit.request_id, submit.principal, _Preparing(submit, prompt, constraint))
        return None

    def _is_one_too_many(self, submit: Submit) -> bool:
        """Whether no more can be taken, or no more of its principal. Then it is refused."""
        here = len(self._preparing) + len(self._answers)
        mine = self._preparing.of(submit.principal)
        mine += sum(answer.choices[0].job.principal == submit.principal for answer in self._answers.values())
        slots = self._engine.slots
        if here >= MOST_WAITING + slots:
            ahead, detail = here, f"{here} requests are already here"
        elif mine >= MOST_WAITING_OF_ONE + slots:
            ahead, detail = mine, f"{mine} requests of the same principal are already here"
        else:
            return False
        retry = self._engine.retry_after_seconds
        self._outbox.refuse(submit.request_id, "overloaded", detail, retry_after_seconds=retry, ahead=ahead)
        return True

    def advance(self) -> None:
        """One block of the prompt whose turn it is."""
        request_id, principal, preparing = self._preparing.take()
        try:
            if preparing.cancelled or preparing.prompt.advance():
                self._start(preparing)
            else:
                self._preparing.put(request_id, principal, preparing)
        except PromptTooLong as error:
            self._outbox.refuse(request_id, "prompt-too-long", str(error))
        except (PromptError, _NotOurs, GrammarInvalid, SchemaInvalid, ConstraintInvalid) as error:
            self._outbox.refuse(request_id, "field-invalid", str(error))

    def cancel(self, request_id: str) -> None:
        """No effect on a request that has just ended, or is another's."""
        if preparing := self._preparing.get(request_id):
            preparing.cancelled = True
        elif answer := self._answers.get(request_id):
            answer.cancel()

    def reset(self) -> None:
        """Forgets every request."""
        self.leave()
        self._answers.clear()
        self._preparing.clear()

    def leave(self) -> None:
        """Nobody is there to be told any more."""
        for answer in self._answers.values():
            answer.cancel()

    # --- from a request to jobs -------------------------------------------------------------------------------------

    def _checked(self, submit: Submit) -> CompiledConstraint | None:
        """What llama.cpp would abort at, or compute nonsense from, does not reach it."""
        if not is_finite(submit.sampling):
            raise _NotOurs("a sampling number is not finite")
        if not biases_fit(submit.sampling, self._engine.model.vocabulary_tokens):
            raise _NotOurs("a biased token is outside the vocabulary")
        if any(map(may_be_seal, submit.sampling.stop)):
            raise _NotOurs("a stop string has a character of the first plane for private use")
        if submit.echo and isinstance(submit.prompt, Conversation):
            raise _NotOurs("a conversation is not echoed")
        if submit.constraint is None:
            return None
        if submit.sampling.ignore_eos:
            raise _NotOurs("an answer that has a form must be able to end")
        return self._compiled(submit.constraint)

    def _compiled(self, constraint: Constraint) -> CompiledConstraint:
        return self._engine.constraint(_gbnf(constraint))

    def _start(self, preparing: _Preparing) -> None:
        submit, prompt = preparing.submit, preparing.prompt
        echo = self._echo(submit.prompt, prompt) if submit.echo else ""
        answer = Answer(submit.request_id, self._choices(preparing), echo, patient=submit.patient)
        self._answers[submit.request_id] = answer
        if preparing.cancelled or not answer.choices[0].job.max_tokens:
            self._begin(answer)
            for choice in answer.choices:
                self._tell(answer, choice.finish("cancelled" if preparing.cancelled else "length"))
            self._end(answer)
            return
        self._engine.submit(*(choice.job for choice in answer.choices))

    def _choices(self, preparing: _Preparing) -> list[Choice]:
        """Each has an equal share of what was paid for. Only the first one's wait is bounded: the rest would answer a
        request that has begun."""
        submit, prompt, constraint = preparing.submit, preparing.prompt, preparing.constraint
        tokens = prompt.tokens
        if prompt.constraint is not None and not preparing.cancelled:
            constraint = self._compiled(prompt.constraint)
        room = min(submit.max_completion_tokens // submit.choices, self._engine.context_tokens - len(tokens))
        choices = []
        for number in range(submit.choices):
            job = Job(
                submit.request_id,
                tokens,
                submit.sampling,
                max(0, room),
                principal=submit.principal,
                weight=submit.weight,
                partition=submit.cache_partition,
                queue_ms=0 if number else submit.queue_ms,
                choice=number,
                constraint=constraint.clone() if constraint is not None else None,
            )
            parser = None if preparing.cancelled else prompt.parser(_call_id(submit.request_id, number))
            choices.append(Choice(job, submit.sampling.stop, parser))
        return choices

    def _echo(self, asked: object, prompt: Prompt) -> str:
        if isinstance(asked, TextPrompt):
            return asked.text
        return b"".join(map(self._engine.model.piece, prompt.tokens.tolist())).decode("utf-8", "replace")

    # --- from the engine's events to an answer ----------------------------------------------------------------------

    def take_events(self) -> None:
        """Tells what the engine has computed."""
        for event in self._engine.take_events():
            job = event.job
            answer = self._answers.get(job.request_id)
            choice = answer.choice_of(job) if answer is not None else None
            if answer is None or choice is None or choice.reason is not None:
                continue  # forgotten, or ended by a stop string; the engine learns of it at its next step
            if event.begun:
                self._begin(answer)
            elif event.refused:
                self._turn_away(answer, choice, event)
            elif event.ended is not None:
                self._begin(answer)
                answer.detail = answer.detail or event.detail
                self._tell(answer, choice.finish(event.ended))
            else:
                self._tell(answer, choice.feed(self._piece(choice, event.token), self._sampled(event)))
            if answer.whole:
                self._end(answer)

    def _turn_away(self, answer: Answer, choice: Choice, event: Event) -> None:
        if answer.begun:
            answer.detail = answer.detail or event.detail
            self._tell(answer, choice.finish("error"))
            return
        answer.cancel()
        del self._answers[answer.request_id]
        self._outbox.refuse(
            answer.request_id,
            "overloaded",
            event.detail,
            retry_after_seconds=event.retry_after_seconds,
            ahead=event.ahead,
        )

    def _piece(self, choice: Choice, token: int) -> bytes:
        return self._engine.marked_piece(token) if choice.has_parser else self._engine.model.piece(token)

    def _sampled(self, event: Event) -> SampledToken | None:
        if event.logprobs is None:
            return None
        return sampled_token(event.logprobs, lambda token: self._engine.model.piece(token)[:_MAX_LOGPROB_PIECE_BYTES])

    # --- what is said -----------------------------------------------------------------------------------------------

    def _begin(self, answer: Answer) -> None:
        if answer.begun:
            return
        answer.begun = True
        job = answer.choices[0].job
        self._outbox.put(
            RunnerStarted(
                request_id=answer.request_id,
                prompt_tokens=answer.prompt_tokens,
                queue_position=job.queue_position,
                queued_ms=round(job.queued_seconds * 1000),
            )
        )
        places = range(0, len(answer.echo), _ECHO_CHARACTERS)
        pieces = [answer.echo[place : place + _ECHO_CHARACTERS] for place in places]
        for choice in answer.choices:
            for text in pieces:
                delta = RunnerDelta(request_id=answer.request_id, text=text, choice=choice.job.choice, tokens=0)
                self._tell(answer, [delta])

    def _tell(self, answer: Answer, deltas: list[RunnerDelta]) -> None:
        """The first at once, so that when an answer began is known; of a patient one the rest in few pieces."""
        answer.held += deltas
        if answer.held and (not answer.patient or time.monotonic() >= answer.told_at + PATIENCE_SECONDS):
            self._release(answer)

    def _release(self, answer: Answer) -> None:
        for delta in answer.held:
            self._outbox.put_delta(delta)
        answer.held.clear()
        answer.told_at = time.monotonic()

    def _end(self, answer: Answer) -> None:
        if self._answers.pop(answer.request_id, None) is answer:
            self._release(answer)
            self._outbox.put(answer.end())


def _gbnf(constraint: Constraint) -> str:
    """Raises ``GrammarInvalid``, ``SchemaInvalid``."""
    match constraint:
        case GbnfGrammar():
            check(constraint.text)
            return constraint.text
        case JsonObject():
            return json_object_gbnf()
        case JsonSchema():
            return to_gbnf(constraint.schema)


def _call_id(request_id: str, choice: int) -> str:
    """Letters and digits, unlike those of any other choice that an application may see beside it."""
    return f"{request_id}-{choice}" if choice else request_id
