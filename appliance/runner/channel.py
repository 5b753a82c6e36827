"""The runner's whole world: one connected socket, requests in, answers out.

One thread waits for two things, the socket and the engine's wake-up, and does everything that is not decoding:
rendering, tokenising, detokenising, stop strings, counting, sending. It never blocks on the socket, and a long prompt
is tokenised block by block, between the others' words.

What the numbers mean. ``prompt_tokens`` are the tokens of the rendered prompt, the vocabulary's first token included.
``completion_tokens`` are the sampled tokens up to and including the one that completes a stop string, without the
end-of-generation token; a token that the engine sampled after that, before it heard of the stop, is not counted. The
``tokens`` of all deltas add up to at most that number.

Trusts: the peer to be the gateway or the warden, since the socket came connected. A frame that is none of theirs ends
the process.
Promises: every accepted request gets ``RunnerStarted`` and exactly one ``RunnerEnd``, unless a ``Reset`` comes first.
After ``prepare`` only recvfrom, sendto, read, write, close, epoll_ctl and epoll_wait are used.
Not here: who may ask, and for how many tokens (the gateway); what a probe does (``runner.main``).
"""

import os
import select
import socket
from collections.abc import Callable
from typing import Final, Literal

from appliance.core.values import FinishReason, Sampling
from appliance.ipc import frames
from appliance.ipc.messages import (
    Cancel,
    Conversation,
    Detokenise,
    Embed,
    Load,
    Probe,
    ProbeResult,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Submit,
    Tokenise,
    ToRunner,
)
from appliance.runner.chat.prompt import Prompt, PromptError, PromptTooLong
from appliance.runner.embeddings import Asked, Desk
from appliance.runner.engine.embedding import Embedder
from appliance.runner.engine.engine import Engine, Event, Job
from appliance.runner.engine.panic import end_process
from appliance.runner.engine.sampling import is_finite
from appliance.runner.engine.text import TextStream
from appliance.runner.outbox import Outbox

MAX_WAITING: Final = 64
"""Requests that wait for a slot. One more is refused as ``overloaded``."""
MAX_UNSENT_FRAMES: Final = 1024
"""With more than this the channel is not read until the peer reads: it bounds memory against a peer that never does."""
_STEPS_PER_TURN: Final = 4
_MAX_DETAIL: Final = 500

_NOT_YET: Final = ("typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "logit_bias", "logprobs", "ignore_eos")

_DECODER: Final = frames.FrameDecoder[ToRunner](ToRunner)


class _Wakeup:
    """A pipe by which the engine thread wakes the main thread, and the epoll that waits for both."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.reader, self._writer = os.pipe()
        self.epoll.register(self.reader, select.EPOLLIN)
        self._signalled = False

    def signal(self) -> None:
        """Engine thread: there are events. At most one byte is on its way, so this cannot block."""
        if not self._signalled:
            self._signalled = True
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Main thread: before it takes the events. What comes later signals again."""
        os.read(self.reader, 16)
        self._signalled = False

    def close(self) -> None:
        self.epoll.close()
        os.close(self.reader)
        os.close(self._writer)


_prepared: list[_Wakeup] = []


def prepare() -> None:
    """Makes the pipe and the epoll that ``serve`` needs, which no stage of the filter allows.

    ``runner.bindings`` calls it on import.
    """
    if not _prepared:
        _prepared.append(_Wakeup())


def serve(channel: socket.socket, engine: Engine | Embedder, probe: Callable[[str], str]) -> None:
    """Serves one warm engine until the peer closes the channel, then returns; the caller ends the process.

    Anything unexpected, an undecodable frame included, ends the process at once (status 73).
    """
    try:
        wakeup = _prepared.pop() if _prepared else _Wakeup()
        try:
            _Server(channel, engine, probe, wakeup).run()
        finally:
            engine.on_events = _ignore
            wakeup.close()
    except BaseException as error:  # noqa: BLE001  a runner that is not sure of its state must not answer
        end_process(error)


def _ignore() -> None:
    """The channel is closed; nobody is told."""


class _Preparing:
    """A request whose prompt is not whole yet."""

    __slots__ = ("cancelled", "engine", "prompt", "submit")

    def __init__(self, engine: Engine, submit: Submit, prompt: Prompt) -> None:
        self.engine = engine
        self.submit = submit
        self.prompt = prompt
        self.cancelled = False


class _Answer:
    """A request between ``RunnerStarted`` and ``RunnerEnd``."""

    __slots__ = ("completion_tokens", "engine", "job", "text", "untold_tokens")

    def __init__(self, engine: Engine, job: Job, stops: tuple[str, ...]) -> None:
        self.engine = engine
        self.job = job
        self.text = TextStream(stops)
        self.completion_tokens = 0
        self.untold_tokens = 0  # sampled, but not yet covered by a delta


def _unsupported(submit: Submit) -> bool:
    """Whether anything is asked that would be left out of the answer: better no answer than another one."""
    prompt, asked, known = submit.prompt, submit.sampling, Sampling()
    return (
        submit.constraint is not None
        or submit.choices > 1
        or submit.echo
        or (isinstance(prompt, Conversation) and bool(prompt.tools or any(m.role == "tool" for m in prompt.messages)))
        or any(getattr(asked, name) != getattr(known, name) for name in _NOT_YET)
    )


class _PeerGoneError(Exception):
    pass


class _Server:
    def __init__(
        self, channel: socket.socket, engine: Engine | Embedder, probe: Callable[[str], str], wakeup: _Wakeup
    ) -> None:
        self._channel = channel
        self._generator = engine if isinstance(engine, Engine) else None
        self._probe = probe
        self._wakeup = wakeup
        self._outbox = Outbox()
        self._desk = Desk(engine, self._outbox)
        self._preparing: dict[str, _Preparing] = {}  # first in, first to be worked on
        self._answers: dict[str, _Answer] = {}
        self._buffer = bytearray(frames.MAX_FRAME_BYTES + 1)
        self._interest = select.EPOLLIN
        engine.on_events = wakeup.signal

    def run(self) -> None:
        self._wakeup.epoll.register(self._channel.fileno(), self._interest)
        try:
            while True:
                for descriptor, ready in self._wakeup.epoll.poll(
                    0 if self._preparing or self._desk.preparing else None
                ):
                    if descriptor == self._wakeup.reader:
                        self._wakeup.clear()
                        self._take_events()
                    elif ready & ~select.EPOLLOUT:
                        self._read()
                self._prepare()
                self._send()
        except _PeerGoneError:
            self._desk.leave()
            for answer in self._answers.values():
                answer.job.cancelled = True

    # --- the socket -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Handles the frames that have arrived, a few at a time so that answers get their turn."""
        for _ in range(_STEPS_PER_TURN):
            try:
                size = self._channel.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise _PeerGoneError from error
            if size == 0:
                raise _PeerGoneError
            self._handle(_DECODER.decode(bytes(memoryview(self._buffer)[:size])))

    def _send(self) -> None:
        try:
            done = self._outbox.flush(self._channel)
        except OSError as error:
            raise _PeerGoneError from error
        interest = 0 if done else select.EPOLLOUT
        if len(self._outbox) <= MAX_UNSENT_FRAMES:
            interest |= select.EPOLLIN
        if interest != self._interest:
            self._wakeup.epoll.modify(self._channel.fileno(), interest)
            self._interest = interest

    # --- what the peer says -----------------------------------------------------------------------------------------

    def _handle(self, message: ToRunner) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Embed() | Tokenise() | Detokenise():
                self._accept(message)
            case Cancel():
                self._cancel(message.request_id)
            case Reset():
                self._reset(message)
            case Probe():
                outcome = self._probe(message.name)
                self._outbox.put(ProbeResult(name=message.name, outcome=outcome))
            case Load():
                raise RuntimeError("a model is loaded once")

    def _cancel(self, request_id: str) -> None:
        """No effect on a request that has just ended."""
        if preparing := self._preparing.get(request_id):
            preparing.cancelled = True
        elif answer := self._answers.get(request_id):
            answer.job.cancelled = True
        else:
            self._desk.cancel(request_id)

    def _reset(self, message: Reset) -> None:
        for answer in self._answers.values():
            answer.job.cancelled = True
        self._answers.clear()
        self._preparing.clear()
        self._desk.reset()
        self._outbox.clear()
        self._outbox.put(ResetDone(nonce=message.nonce))

    def _accept(self, asked: Asked) -> None:
        self._require_new(asked.request_id)
        self._desk.accept(asked)

    def _require_new(self, request_id: str) -> None:
        if request_id in self._answers or request_id in self._preparing or self._desk.holds(request_id):
            raise RuntimeError("a request id is in use")  # two answers under one name could not be told apart

    def _submit(self, submit: Submit) -> None:
        self._require_new(submit.request_id)
        engine = self._generator
        if engine is None:
            return self._refuse(submit, "not-offered", "the model is not for text")
        present = len(self._answers) + len(self._preparing)
        if present >= engine.slots + MAX_WAITING:
            return self._refuse(submit, "overloaded", f"{present} requests are already here")
        if _unsupported(submit):
            return self._refuse(submit, "field-invalid", "the engine does not offer this yet")
        if not is_finite(submit.sampling):
            return self._refuse(submit, "field-invalid", "a sampling number is not finite")
        at_most_tokens = min(submit.max_prompt_tokens, engine.context_tokens - 1)
        prompt = engine.prompt(submit.prompt, at_most_tokens)
        self._preparing[submit.request_id] = _Preparing(engine, submit, prompt)
        return None

    def _prepare(self) -> None:
        """One block of the prompt that waits longest, and of the next; then it is the turn of what has arrived."""
        for _ in range(min(_STEPS_PER_TURN, len(self._preparing))):
            request_id = next(iter(self._preparing))
            self._advance(request_id, self._preparing.pop(request_id))
        for _ in range(_STEPS_PER_TURN):
            if self._desk.preparing:
                self._desk.advance()

    def _advance(self, request_id: str, preparing: _Preparing) -> None:
        try:
            if preparing.cancelled or preparing.prompt.advance():
                self._start(preparing)
            else:
                self._preparing[request_id] = preparing
        except PromptTooLong as error:
            self._refuse(preparing.submit, "prompt-too-long", str(error))
        except PromptError as error:
            self._refuse(preparing.submit, "field-invalid", str(error))

    def _start(self, preparing: _Preparing) -> None:
        """A prompt that was cancelled before it was whole costs what is known of it, at least one token."""
        engine, submit, tokens = preparing.engine, preparing.submit, preparing.prompt.tokens
        self._outbox.put(RunnerStarted(request_id=submit.request_id, prompt_tokens=max(1, len(tokens))))
        room = engine.context_tokens - len(tokens)
        job = Job(submit.request_id, tokens, submit.sampling, min(submit.max_completion_tokens, room))
        answer = self._answers[submit.request_id] = _Answer(engine, job, submit.sampling.stop)
        if preparing.cancelled:
            self._end(answer, "cancelled")
        elif job.max_tokens:
            engine.submit(job)
        else:
            self._end(answer, "length")

    def _refuse(
        self,
        submit: Submit,
        reason: Literal["prompt-too-long", "overloaded", "field-invalid", "not-offered"],
        detail: str,
    ) -> None:
        self._outbox.put(RunnerRefused(request_id=submit.request_id, reason=reason, detail=detail[:_MAX_DETAIL]))

    # --- what the engine says ---------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        self._desk.take_events()
        for event in self._generator.take_events() if self._generator else ():
            answer = self._answers.get(event.job.request_id)
            if answer is None or answer.job is not event.job:
                continue  # ended by a stop string or a reset; the engine learns of it at its next step
            if event.ended is not None:
                self._finish(answer, event.ended, event.detail)
            else:
                self._continue(answer, event)

    def _continue(self, answer: _Answer, event: Event) -> None:
        answer.completion_tokens += 1
        answer.untold_tokens += 1
        self._tell(answer, answer.text.feed(answer.engine.piece(event.token)))
        if answer.text.stopped:
            answer.job.cancelled = True
            self._end(answer, "stop")

    def _finish(self, answer: _Answer, reason: FinishReason, detail: str) -> None:
        self._tell(answer, answer.text.finish())
        self._end(answer, reason, detail)

    def _tell(self, answer: _Answer, text: str) -> None:
        if text:
            self._outbox.put_delta(
                RunnerDelta(request_id=answer.job.request_id, text=text, tokens=answer.untold_tokens)
            )
            answer.untold_tokens = 0

    def _end(self, answer: _Answer, reason: FinishReason, detail: str = "") -> None:
        del self._answers[answer.job.request_id]
        self._outbox.put(
            RunnerEnd(
                request_id=answer.job.request_id,
                reason=reason,
                prompt_tokens=max(1, len(answer.job.prompt)),
                completion_tokens=answer.completion_tokens,
                detail=detail,
            )
        )
