"""Frames for a slow reader: order, growth, no blocking."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.core.values import ToolCallDelta
from appliance.ipc import frames
from appliance.ipc.messages import FromRunner, ResetDone, RunnerDelta, RunnerEnd, RunnerStarted
from appliance.runner.outbox import Outbox

DECODER: Any = frames.FrameDecoder(FromRunner)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    right.settimeout(10)
    with left, right:
        yield left, right


def end(request_id: str) -> RunnerEnd:
    return RunnerEnd(request_id=request_id, reason="stop", prompt_tokens=1, completion_tokens=1)


def test_frames_do_not_overtake_each_other(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox()
    outbox.put(RunnerStarted(request_id="a", prompt_tokens=1))
    outbox.put_delta(RunnerDelta(request_id="a", text="one ", tokens=1))
    outbox.put_delta(RunnerDelta(request_id="b", text="B", tokens=1))
    outbox.put_delta(RunnerDelta(request_id="a", text="two", tokens=2))
    outbox.put(end("a"))
    assert len(outbox) == 4
    assert outbox.flush(pair[0])
    assert [DECODER.decode(pair[1].recv(1000)) for _ in range(4)] == [
        RunnerStarted(request_id="a", prompt_tokens=1),
        RunnerDelta(request_id="a", text="one two", tokens=3),
        RunnerDelta(request_id="b", text="B", tokens=1),
        end("a"),
    ]
    assert len(outbox) == 0


def test_peer_that_does_not_read_does_not_block(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox()
    sent = 0
    while outbox.flush(pair[0]):
        outbox.put_delta(RunnerDelta(request_id="a", text=f"{sent} ", tokens=1))
        sent += 1
    for _ in range(1000):
        outbox.put_delta(RunnerDelta(request_id="a", text=f"{sent} ", tokens=1))
        sent += 1
        assert not outbox.flush(pair[0])
    assert len(outbox) <= 2
    text, tokens = "", 0
    while tokens < sent:
        delta = DECODER.decode(pair[1].recv(frames.MAX_FRAME_BYTES))
        text, tokens = text + delta.text, tokens + delta.tokens
        outbox.flush(pair[0])
    assert text == "".join(f"{number} " for number in range(sent))


def test_delta_does_not_outgrow_a_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox()
    for _ in range(100):
        outbox.put_delta(RunnerDelta(request_id="a", text="😀" * 1000, tokens=1))
    assert len(outbox) > 5
    total = 0
    while total < 100:
        outbox.flush(pair[0])
        data = pair[1].recv(frames.MAX_FRAME_BYTES)
        assert len(data) < 80_000
        total += DECODER.decode(data).tokens


def test_kinds_and_choices_do_not_run_together(pair: tuple[socket.socket, socket.socket]) -> None:
    def call(index: int, name: str = "", arguments: str = "") -> tuple[ToolCallDelta, ...]:
        return (ToolCallDelta(index=index, id=f"id-{name}" if name else "", name=name, arguments=arguments),)

    outbox = Outbox()
    for delta in (
        RunnerDelta(request_id="a", reasoning="why", tokens=1),
        RunnerDelta(request_id="a", reasoning=" not", tokens=1),
        RunnerDelta(request_id="a", text="so", tokens=1),
        RunnerDelta(request_id="a", choice=1, text="other", tokens=1),
        RunnerDelta(request_id="a", tool_calls=call(0, "f"), tokens=1),
        RunnerDelta(request_id="a", tool_calls=call(0, arguments="{"), tokens=1),
        RunnerDelta(request_id="a", tool_calls=call(0, arguments="}"), tokens=1),
        RunnerDelta(request_id="a", tool_calls=call(1, "g"), tokens=1),
        RunnerDelta(request_id="a", choice=1, text=" one", tokens=1),
    ):
        outbox.put_delta(delta)
    assert outbox.flush(pair[0])
    assert [DECODER.decode(pair[1].recv(1000)) for _ in range(4)] == [
        RunnerDelta(request_id="a", reasoning="why not", tokens=2),
        RunnerDelta(request_id="a", text="so", tokens=1),
        RunnerDelta(request_id="a", choice=1, text="other one", tokens=2),
        RunnerDelta(request_id="a", tool_calls=_called(), tokens=4),
    ]


def _called() -> tuple[ToolCallDelta, ...]:
    return (
        ToolCallDelta(index=0, id="id-f", name="f", arguments="{}"),
        ToolCallDelta(index=1, id="id-g", name="g"),
    )


def test_cleared_frames_are_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox()
    while outbox.flush(pair[0]):
        outbox.put(end("old"))
    outbox.put_delta(RunnerDelta(request_id="old", text="text", tokens=1))
    outbox.clear()
    outbox.put_delta(RunnerDelta(request_id="old", text="new", tokens=1))
    outbox.put(ResetDone(nonce="n"))
    seen: list[Any] = [None]
    while seen[-1] != ResetDone(nonce="n"):
        outbox.flush(pair[0])
        seen.append(DECODER.decode(pair[1].recv(1000)))
    assert seen[-2] == RunnerDelta(request_id="old", text="new", tokens=1)


def test_peer_that_has_gone_is_not_silent(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    outbox = Outbox()
    outbox.put(end("a"))
    with pytest.raises(OSError, match="pipe"):
        outbox.flush(pair[0])
