"""The runner's whole world: one connected socket, requests in, answers out.

One thread waits for two things, the socket and the engine's wake-up, and does everything that is not decoding:
rendering, tokenising, detokenising, stop strings, counting, sending. It never blocks on the socket. What is asked is
worked off at a desk for its kind: text (``generation``), vectors and the vocabulary (``embeddings``).

Trusts: the peer to be the gateway or the warden, since the socket came connected. A frame that is none of theirs ends
the process.
Promises: no desk keeps another waiting for longer than a few of its steps. After ``prepare`` only recvfrom, sendto,
write, close, epoll_ctl and epoll_wait are used.
Not here: who may ask, and for how many tokens (the gateway); what a probe does (``runner.main``).
"""

import os
import select
import socket
from collections.abc import Callable
from typing import Final

from appliance.ipc import frames
from appliance.ipc.messages import (
    AskFigures,
    Cancel,
    Detokenise,
    Embed,
    Figures,
    Load,
    Probe,
    ProbeResult,
    Reset,
    ResetDone,
    Submit,
    Tokenise,
    ToRunner,
)
from appliance.runner.embeddings import Asked, Desk
from appliance.runner.engine.embedding import Embedder
from appliance.runner.engine.engine import Engine
from appliance.runner.engine.panic import end_process
from appliance.runner.generation import GenerationDesk
from appliance.runner.outbox import Outbox

MAX_UNSENT_FRAMES: Final = 1024
"""With more than this the channel is not read until the peer reads: it bounds memory against a peer that never does."""
_STEPS_PER_TURN: Final = 4

_DECODER: Final = frames.FrameDecoder[ToRunner](ToRunner)


class _Wakeup:
    """A counter by which the engine thread wakes the main thread, and the epoll that waits for it and for the socket.

    The epoll tells of each change of the counter once (``EPOLLET``, epoll(7)), so nobody has to read it.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.counter = os.eventfd(0, os.EFD_CLOEXEC)
        self.epoll.register(self.counter, select.EPOLLIN | select.EPOLLET)
        self._signalled = False

    def signal(self) -> None:
        """Engine thread: there are events. It blocks only when the counter is full, which takes 2**64 - 1 calls."""
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self.counter, 1)

    def clear(self) -> None:
        """Main thread: before it takes the events. What comes later signals again."""
        self._signalled = False

    def close(self) -> None:
        self.epoll.close()
        os.close(self.counter)


_prepared: list[_Wakeup] = []


def prepare() -> None:
    """Makes the counter and the epoll that ``serve`` needs, which no stage of the filter allows.

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


class _PeerGoneError(Exception):
    pass


class _Server:
    def __init__(
        self, channel: socket.socket, engine: Engine | Embedder, probe: Callable[[str], str], wakeup: _Wakeup
    ) -> None:
        self._channel = channel
        self._engine = engine
        self._probe = probe
        self._wakeup = wakeup
        self._outbox = Outbox()
        self._texts = GenerationDesk(engine, self._outbox) if isinstance(engine, Engine) else None
        self._vectors = Desk(engine, self._outbox)
        self._desks = (self._vectors,) if self._texts is None else (self._texts, self._vectors)
        self._buffer = bytearray(frames.MAX_FRAME_BYTES + 1)
        self._interest = select.EPOLLIN
        engine.on_events = wakeup.signal

    def run(self) -> None:
        self._wakeup.epoll.register(self._channel.fileno(), self._interest)
        try:
            while True:
                busy = any(desk.preparing for desk in self._desks)
                for descriptor, ready in self._wakeup.epoll.poll(0 if busy else None):
                    if descriptor == self._wakeup.counter:
                        self._wakeup.clear()
                        for desk in self._desks:
                            desk.take_events()
                    elif ready & ~select.EPOLLOUT:
                        self._read()
                self._advance()
                self._send()
        except _PeerGoneError:
            for desk in self._desks:
                desk.leave()

    def _advance(self) -> None:
        """A few steps at each desk; then it is the turn of what has arrived."""
        for desk in self._desks:
            for _ in range(_STEPS_PER_TURN):
                if not desk.preparing:
                    break
                desk.advance()

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
            case Submit() | Embed() | Tokenise() | Detokenise():
                self._accept(message)
            case Cancel():
                for desk in self._desks:
                    desk.cancel(message.request_id)
            case Reset():
                for desk in self._desks:
                    desk.reset()
                self._outbox.clear()
                self._outbox.put(ResetDone(nonce=message.nonce))
            case Probe():
                outcome = self._probe(message.name)
                self._outbox.put(ProbeResult(name=message.name, outcome=outcome))
            case AskFigures():
                self._outbox.put(Figures(call=message.call, figures=self._engine.figures()))
            case Load():
                raise RuntimeError("a model is loaded once")

    def _accept(self, asked: Submit | Asked) -> None:
        if any(desk.holds(asked.request_id) for desk in self._desks):
            raise RuntimeError("a request id is in use")  # two answers under one name could not be told apart
        if not isinstance(asked, Submit):
            self._vectors.accept(asked)
        elif self._texts is not None:
            self._texts.accept(asked)
        else:
            self._outbox.refuse(asked.request_id, "not-offered", "the model is not for text")
