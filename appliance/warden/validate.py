"""Judging a GGUF's header in a process of its own: ``appliance.validator``, started for one file and ended after it.

It stands here because the warden's starter is what starts processes; the store is given the callable.

Trusts: the installed ``appliance.validator`` package, and the starter that starts it.
Promises: facts, or an exception, within ``WALL_SECONDS`` and the few in which the kernel kills; no process, descriptor
    or byte of its output is left over. What ends or stops a validator from outside is never told as the model's fault.
Not here: the sandbox (``validator.main``, by the process itself); whether the bytes are the signed ones (the store).
"""

import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import Final

from appliance.core.gguf import GgufInvalid
from appliance.core.refusals import Fault
from appliance.core.values import GgufFacts
from appliance.ipc.frames import FrameDecoder, encode
from appliance.ipc.starting import MAX_WORD_BYTES, End, Ended, Failed, FromLine, Started, StartValidator
from appliance.ipc.validation import MAX_ANSWER_BYTES, Facts, Invalid, decode_answer
from appliance.warden.starter_client import Starter

WALL_SECONDS: Final = 60.0
_KILLED_SECONDS: Final = 5.0
_DECODER: Final = FrameDecoder[FromLine](FromLine)


class SandboxedValidator:
    """Callable with a descriptor; safe to use from several threads."""

    def __init__(self, starter: Starter, *, wall_seconds: float = WALL_SECONDS) -> None:
        self._starter = starter
        self._wall_seconds = wall_seconds

    def __call__(self, fd: int) -> GgufFacts:
        """The facts of the file behind ``fd``, whose offset stays.

        Raises ``GgufInvalid`` when the header is unsound, or when it made the validator die, hang or babble; ``Fault``
        when this host cannot judge.
        """
        deadline = time.monotonic() + self._wall_seconds
        try:
            answer, theirs = os.pipe()
        except OSError as error:
            raise Fault(f"the validator cannot be started: {error}") from error
        try:
            try:
                line = self._starter.order(StartValidator(), [fd, theirs])
            finally:
                os.close(theirs)
            with line:
                try:
                    _require_started(line, deadline)
                    data = _read(answer, deadline)
                    status = _status(line, deadline)
                except GgufInvalid:
                    _kill(line)
                    raise
        finally:
            os.close(answer)
        return _judged(data, status)


def _require_started(line: socket.socket, deadline: float) -> None:
    """Until then the time that passes is the host's. Raises ``Fault``."""
    try:
        word = _hear(line, deadline)
    except TimeoutError:
        raise Fault("the starter does not answer") from None
    if isinstance(word, Failed):
        raise Fault(f"the validator cannot be started: {word.detail}")
    if not isinstance(word, Started):
        raise Fault(f"the starter says {type(word).__name__} of a validator")


def _read(pipe: int, deadline: float) -> bytes:
    """Its whole answer, to the end of the pipe. Raises ``GgufInvalid``."""
    readable = select.poll()
    readable.register(pipe, select.POLLIN)
    data = b""
    while len(data) <= MAX_ANSWER_BYTES:
        left_ms = 1000 * (deadline - time.monotonic())
        if left_ms <= 0 or not readable.poll(left_ms):
            raise GgufInvalid("gguf-validator-overrun", "judging the header took too long")
        piece = os.read(pipe, MAX_ANSWER_BYTES)
        if not piece:
            return data
        data += piece
    raise GgufInvalid("gguf-validator-overrun", "the validator said too much")


def _status(line: socket.socket, deadline: float) -> int:
    """How the process ended, once it has. Raises ``GgufInvalid`` for one that closed its pipe and stayed."""
    try:
        word = _hear(line, deadline)
    except TimeoutError:
        raise GgufInvalid("gguf-validator-overrun", "the validator did not end") from None
    if not isinstance(word, Ended):
        raise Fault(f"the starter says {type(word).__name__} of a validator")
    return word.status


def _hear(line: socket.socket, deadline: float) -> FromLine:
    """The starter's next word. Raises ``TimeoutError``, or ``Fault`` when it has gone."""
    line.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        data = line.recv(MAX_WORD_BYTES)
    except TimeoutError:
        raise
    except OSError:
        data = b""
    if not data:  # then the kernel ends what it started
        raise Fault("the starter ended before the validator")
    return _DECODER.decode(data)


def _kill(line: socket.socket) -> None:
    """Ends the process and waits for that, as long as the kernel may reasonably take.

    Raises ``Fault`` when nobody tells of its end: what does not answer then is not the validator.
    """
    with suppress(OSError):
        line.send(encode(End()))
    try:
        _status(line, time.monotonic() + _KILLED_SECONDS)
    except GgufInvalid:
        raise Fault("the starter does not tell of the validator's end") from None


def _judged(data: bytes, status: int) -> GgufFacts:
    if status == -signal.SIGTERM:  # what systemd sends to all of a unit that it stops; nothing in a header does
        raise Fault("the validator was told to end")
    if status < 0:
        name = signal.Signals(-status).name
        raise GgufInvalid("gguf-validator-died", f"judging the header ended the validator with {name}")
    if status:
        raise Fault(f"the validator failed with status {status}")
    try:
        answer = decode_answer(data)
    except ValueError:
        raise Fault("the validator did not answer as agreed") from None
    if isinstance(answer, Facts):
        return answer.facts
    if isinstance(answer, Invalid):
        raise GgufInvalid(answer.reason, answer.detail)
    raise Fault(f"the validator cannot judge on this host: {answer.detail}")
