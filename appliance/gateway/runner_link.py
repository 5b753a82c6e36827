"""The gateway's end of one runner's channel: many requests over one socket, each with its own queue of events.

Trusts: the warden, who passed the descriptor and vouched for the runner's identity.
Promises: an event reaches only the request that it names, and within what was admitted (``core.answer_check``); so
    is the price that a runner can ask, from both sides. What waits here for a slow reader is bounded in bytes. A runner
    that names a request which it was not given, says what was not asked or paid for, sends a descriptor, falls
    silent, does not stop when told or stops untold is reported to the warden and used no more; its requests end as
    ``runner-lost``.
Not here: what was paid for (``pipeline``); which runner serves which model (``warden_client``).
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final

from appliance.core.answer_check import AnswerCheck
from appliance.core.input_check import InputCheck
from appliance.core.meter import held_bytes
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Delta,
    Detokenisation,
    End,
    EngineFigures,
    Generation,
    RunnerFacts,
    Tokenisation,
    Vectors,
)
from appliance.ipc.connection import Connection
from appliance.ipc.frames import FrameDecoder, FrameError
from appliance.ipc.messages import (
    AnswerMessage,
    AskFigures,
    Cancel,
    Detokenise,
    Detokenised,
    Embed,
    Embedded,
    Figures,
    FromRunner,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Submit,
    Tokenise,
    Tokens,
)

RESET_SECONDS: Final = 10.0
MAX_UNREAD_BYTES: Final = 16 * 2**20
"""Of one answer, decoded: 40,000 tokens of text, or 4,000 with 20 alternatives each. No runner waits for a reader: its
slot would be lost to everybody. So an answer that is not read ends. More than a full socket can bring at once."""
PATIENT_BYTES: Final = 2**20
"""Of one answer, decoded, for which a patient reader is woken before its end."""
_REASONS: Final = {
    "prompt-too-long": Reason.PROMPT_TOO_LONG,
    "overloaded": Reason.OVERLOADED,
    "field-invalid": Reason.FIELD_INVALID,
    "not-offered": Reason.OPERATION_UNSUPPORTED,
}


class RunnerLink:
    """Implements ``core.ports.Lease``. ``on_broken(link, why)`` is called once when the channel is used up.

    ``queue_seconds``: a request that has waited so long for its turn in the runner is refused as overloaded.
    ``keep_alive_seconds``: for how long an idle one is worth keeping; -1 is for ever.
    """

    def __init__(
        self,
        sock: socket.socket,
        facts: RunnerFacts,
        on_broken: Callable[["RunnerLink", str], None],
        *,
        queue_seconds: int,
        keep_alive_seconds: int = -1,
    ) -> None:
        self.keep_alive_seconds: Final = keep_alive_seconds
        self._queue_ms = queue_seconds * 1000
        self._facts = facts
        self._answers: dict[str, LinkAnswer] = {}
        self._nonce = secrets.token_hex(8)
        self._figures_asked = 0
        self._figures: asyncio.Future[EngineFigures | None] | None = None  # while a question is open
        self._reset_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_heard = self._last_leased = time.monotonic()
        self._on_broken = on_broken
        decoder: FrameDecoder[FromRunner] = FrameDecoder(FromRunner)
        self._connection: Connection[FromRunner] = Connection(
            sock, decoder, on_message=self._heard, on_closed=self._broken
        )

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    @property
    def broken(self) -> bool:
        return self._connection.closed

    async def reset(self) -> None:
        """Makes the runner forget what a former gateway asked of it. Raises ``Refused(RUNNER_UNAVAILABLE)``."""
        try:
            self._connection.send(Reset(nonce=self._nonce))
            async with asyncio.timeout(RESET_SECONDS):
                await asyncio.shield(self._reset_done)
        except (ConnectionError, TimeoutError) as error:
            self.give_up("no answer to the reset")
            raise Refused(Reason.RUNNER_UNAVAILABLE, "no answer to the reset", retry_after_seconds=1) from error
        except asyncio.CancelledError:
            self.give_up("the lease was abandoned")  # a forgotten link would take the next one's messages
            raise

    def answer(self, request_id: str, admission: Admission, principal_key: str) -> "LinkAnswer":
        """Submits one request. Raises ``Refused(RUNNER_LOST)`` when the channel is broken already."""
        submit = _submission(request_id, admission, principal_key, self._queue_ms)
        answer = LinkAnswer(lambda: self._cancel(request_id), _check(admission))
        self._answers[request_id] = answer
        if len(self._answers) == 1:
            self._last_heard = time.monotonic()  # silence while nothing was asked is not a fault
        try:
            self._connection.send(submit)
        except FrameError as error:
            del self._answers[request_id]
            raise Refused(Reason.BODY_TOO_LARGE, str(error)) from error
        except ConnectionError as error:
            self._answers.pop(request_id, None)
            raise Refused(Reason.RUNNER_LOST, str(error)) from error
        return answer

    async def figures(self, limit_seconds: float) -> EngineFigures | None:
        """What the runner says of itself, or None when it does not say so in time or is lost.

        At most one question is open, and whoever asks meanwhile waits for the same answer. It neither keeps an idle
        runner nor counts as a word of one that owes answers.
        """
        if self._figures is None:
            try:
                self._connection.send(AskFigures(call=self._figures_asked + 1))
            except ConnectionError:
                return None
            self._figures_asked += 1
            self._figures = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(limit_seconds):
                return await asyncio.shield(self._figures)
        except TimeoutError:
            return None

    def check_silence(self, limit_seconds: float) -> None:
        """Gives the runner up when it owes answers and has said nothing for too long, or goes on after a cancel."""
        latest = time.monotonic() - limit_seconds
        if self._answers and self._last_heard < latest:
            self.give_up(f"silent for {limit_seconds:.0f} s")
        elif any(answer.cancelled_at is not None and answer.cancelled_at < latest for answer in self._answers.values()):
            self.give_up(f"did not stop within {limit_seconds:.0f} s")

    def leased(self) -> None:
        """To be called whenever somebody is given this link: a while may pass until that one asks."""
        self._last_leased = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._answers)

    @property
    def idle_seconds(self) -> float:
        """How long nobody has been given it and it has said nothing; 0 while it owes an answer."""
        return 0.0 if self._answers else time.monotonic() - max(self._last_heard, self._last_leased)

    def retire(self) -> None:
        """Closes this end of an idle link. Nobody is at fault, so nobody is told."""
        self._on_broken = lambda _link, _why: None
        self._connection.close("retired")

    def give_up(self, why: str) -> None:
        """Ends the channel; every request in flight ends as ``runner-lost``."""
        self._connection.close(why)

    def _cancel(self, request_id: str) -> None:
        if request_id in self._answers and not self._connection.closed:
            try:
                self._connection.send(Cancel(request_id=request_id))
            except ConnectionError:
                return  # then _broken has ended the request already

    def _broken(self, why: str) -> None:
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.fail(Refused(Reason.RUNNER_LOST, why))
        if self._figures is not None:
            self._figures.set_result(None)
        self._on_broken(self, why)

    def _heard(self, message: FromRunner, _fds: list[int]) -> None:
        if isinstance(message, Figures) and self._reset_done.done():
            return self._tell_figures(message)
        self._last_heard = time.monotonic()
        if not self._reset_done.done():
            if isinstance(message, ResetDone) and message.nonce == self._nonce:
                self._reset_done.set_result(None)
            return None  # what was under way for a former gateway
        match message:
            case RunnerDelta() | RunnerStarted() | RunnerEnd() | Embedded() | Tokens() | Detokenised():
                self._deliver(message)
            case RunnerRefused():
                answer = self._answers.get(message.request_id)
                if answer is None or answer.started:
                    self.give_up("refused a request that it was not given or had started")
                else:
                    del self._answers[message.request_id]
                    answer.fail(_refusal(message))
            case _:
                self.give_up(f"unexpected {type(message).__name__}")
        return None

    def _tell_figures(self, message: Figures) -> None:
        asked = self._figures
        if asked is None or message.call != self._figures_asked:
            self.give_up("told figures that nobody asked for")
        else:
            self._figures = None
            asked.set_result(message.figures)

    def _deliver(self, event: AnswerMessage) -> None:
        answer = self._answers.get(event.request_id)
        if answer is None:
            self.give_up("spoke of a request that it was not given")
        elif wrong := answer.put(event):
            self.give_up(wrong)
        elif isinstance(event, RunnerEnd):
            del self._answers[event.request_id]


def _check(admission: Admission) -> AnswerCheck | InputCheck:
    request = admission.request
    return AnswerCheck(admission, request) if isinstance(request, Generation) else InputCheck(admission, request)


def _submission(
    request_id: str, admission: Admission, principal_key: str, queue_ms: int
) -> Submit | Embed | Tokenise | Detokenise:
    """The message by which a runner gets what was admitted. All principals weigh the same."""
    match admission.request:
        case Generation():
            return _generation(request_id, admission, admission.request, principal_key, queue_ms)
        case Vectors() as request:
            return Embed(
                request_id=request_id,
                kind=request.kind,
                inputs=request.inputs,
                query=request.query,
                truncate=request.truncate,
                dimensions=request.dimensions,
                max_prompt_tokens=admission.max_prompt_tokens,
                principal=principal_key,
            )
        case Tokenisation() as request:
            return Tokenise(
                request_id=request_id,
                text=request.text,
                add_special=request.add_special,
                max_prompt_tokens=admission.max_prompt_tokens,
                principal=principal_key,
            )
        case Detokenisation() as request:
            return Detokenise(request_id=request_id, ids=request.ids, principal=principal_key)


def _generation(
    request_id: str, admission: Admission, request: Generation, principal_key: str, queue_ms: int
) -> Submit:
    return Submit(
        request_id=request_id,
        prompt=request.prompt,
        sampling=request.sampling,
        constraint=request.constraint,
        choices=request.choices,
        echo=request.echo,
        max_prompt_tokens=admission.max_prompt_tokens,
        max_completion_tokens=admission.max_completion_tokens,
        cache_partition=principal_key,
        principal=principal_key,
        queue_ms=queue_ms,
        patient=not request.stream,
    )


def _refusal(message: RunnerRefused) -> Refused:
    reason, detail = _REASONS[message.reason], message.detail
    match message.reason:
        case "overloaded":
            retry = message.retry_after_seconds or None
            return Refused(reason, detail, retry_after_seconds=retry, ahead=message.ahead)
        case "not-offered":
            return Refused(reason, detail, param="model")
        case _:
            return Refused(reason, detail)


class LinkAnswer:
    """Implements ``core.ports.RunnerAnswer``."""

    def __init__(self, send_cancel: Callable[[], None], check: AnswerCheck | InputCheck) -> None:
        self._send_cancel = send_cancel
        self._check = check
        self._pending: list[AnswerEvent] = []
        self._unread_bytes = 0
        self.cut = False
        self._failure: Refused | None = None
        self.cancelled_at: float | None = None
        self.first_delta_at: float | None = None
        self._wake: asyncio.Future[None] | None = None
        self._is_patient = False  # whoever waits for it
        self._wakes_patient = False  # what has arrived

    @property
    def started(self) -> bool:
        return self._check.started

    async def events(self, *, patient: bool = False) -> list[AnswerEvent]:
        """The next events, at least one. Raises what the runner or the channel refused."""
        if self._failure is None and not (self._wakes_patient if patient else self._pending):
            self._is_patient = patient
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        if self._pending:
            pending, self._pending = self._pending, []
            self._unread_bytes = 0
            self._wakes_patient = False
            return pending
        if self._failure is None:
            raise RuntimeError("woken without a reason")
        raise self._failure

    def cancel(self) -> None:
        if self.cancelled_at is None:
            self.cancelled_at = time.monotonic()
        self._send_cancel()

    def put(self, event: AnswerEvent) -> str:
        """Empty, or what is wrong with it."""
        wrong = self._check.feed(event)
        if isinstance(event, End) and event.reason == "cancelled" and self.cancelled_at is None:
            wrong = wrong or "it stopped and was not told to"
        if not wrong and self._has_room(event):
            self._pending.append(event)
            if self.first_delta_at is None and isinstance(event, Delta):
                self.first_delta_at = time.monotonic()
            self._wakes_patient = isinstance(event, End) or self._unread_bytes > PATIENT_BYTES
            if self._wakes_patient or not self._is_patient:
                self._notify()
        return wrong

    def _has_room(self, event: AnswerEvent) -> bool:
        """Whether an event is to be kept. The first that is not ends the answer; its last word is kept all the same."""
        if isinstance(event, End):
            return True
        if self._pending and not self.cut:
            self._unread_bytes += held_bytes(event)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.cut = True
                self.cancel()
        return not self.cut

    def fail(self, failure: Refused) -> None:
        self._failure = failure
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
