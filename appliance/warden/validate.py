"""Judging a GGUF's header in a process of its own: ``appliance.validator``, started for one file and ended after it.

It stands here because the warden is the room that starts processes; the store is given the callable.

Trusts: the installed ``appliance.validator`` package and this interpreter.
Promises: facts, or an exception, within ``WALL_SECONDS``; no process, descriptor or byte of its output is left over.
Not here: the sandbox (``validator.main``, by the process itself); whether the bytes are the signed ones (the store).
"""

import os
import select
import signal
import subprocess
import sys
import time
from typing import Final

from appliance.core.gguf import GgufInvalid
from appliance.core.refusals import Fault
from appliance.core.values import GgufFacts
from appliance.ipc.validation import MAX_ANSWER_BYTES, Facts, Invalid, decode_answer

WALL_SECONDS: Final = 60.0
VALIDATOR_COMMAND: Final = (sys.executable, "-I", "-B", "-m", "appliance.validator")

_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}


class SandboxedValidator:
    """Callable with a descriptor; safe to use from several threads."""

    def __init__(
        self,
        *,
        allow_degraded: frozenset[str] = frozenset(),
        command: tuple[str, ...] = VALIDATOR_COMMAND,
        wall_seconds: float = WALL_SECONDS,
    ) -> None:
        self._command = (*command, "--degraded", ",".join(sorted(allow_degraded)))
        self._wall_seconds = wall_seconds

    def __call__(self, fd: int) -> GgufFacts:
        """The facts of the file behind ``fd``, whose offset stays.

        Raises ``GgufInvalid`` when the header is unsound, or when it made the validator die, hang or babble; ``Fault``
        when this host cannot judge.
        """
        try:
            process = subprocess.Popen(
                self._command,
                stdin=fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
            )
        except OSError as error:
            raise Fault(f"the validator cannot be started: {error}") from error
        with process:
            try:
                data = _read(process, time.monotonic() + self._wall_seconds)
            finally:
                process.kill()  # no effect on one that has ended by itself
        return _judged(data, process.returncode)


def _read(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """Its whole answer, once it has ended. Raises ``GgufInvalid``."""
    assert process.stdout is not None  # noqa: S101 - for the type checker: Popen was given PIPE
    pipe = process.stdout.fileno()
    readable = select.poll()
    readable.register(pipe, select.POLLIN)
    data = b""
    while len(data) <= MAX_ANSWER_BYTES:
        left_ms = 1000 * (deadline - time.monotonic())
        if left_ms <= 0 or not readable.poll(left_ms):
            raise GgufInvalid("gguf-validator-overrun", "judging the header took too long")
        piece = os.read(pipe, MAX_ANSWER_BYTES)
        if not piece:
            _wait(process, deadline)
            return data
        data += piece
    raise GgufInvalid("gguf-validator-overrun", "the validator said too much")


def _wait(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its pipe and stayed
        raise GgufInvalid("gguf-validator-overrun", "the validator did not end") from None


def _judged(data: bytes, status: int) -> GgufFacts:
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
