"""Nothing that an application says breaks the framing of an answer, and a head never leaves alone."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.gateway.sending import AnswerWriter
from tests.support.scenario import run


class Cycle(SimpleNamespace):
    """As much of uvicorn's as a writer needs."""

    def __init__(self, method: str = "POST", *, keep_alive: bool = True) -> None:
        super().__init__(
            scope={"method": method},
            flow=SimpleNamespace(write_paused=False),
            transport=SimpleNamespace(write=self.written, close=lambda: self.ends.append("closed")),
            default_headers=[(b"date", b"now")],
            message_event=asyncio.Event(),
            on_response=lambda: self.ends.append("complete"),
            keep_alive=keep_alive,
            disconnected=False,
            waiting_for_100_continue=True,
            response_started=False,
            response_complete=False,
            pieces=[],
            ends=[],
        )

    def written(self, data: bytes) -> None:
        self.pieces.append(data)


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sent(cycle: Cycle, *messages: dict[str, Any]) -> list[bytes]:
    async def scenario() -> None:
        writer = AnswerWriter(cast("Any", cycle))
        for message in messages:
            await writer(message)

    run(scenario)
    pieces: list[bytes] = cycle.pieces
    return pieces


def test_whole_answer_is_one_piece() -> None:
    cycle = Cycle()
    (piece,) = sent(cycle, start((b"content-length", b"2")), part(b"ok"))
    assert piece == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 2\r\n\r\nok"
    assert cycle.ends == ["complete"]
    assert cycle.response_complete
    assert cycle.message_event.is_set()


def test_stream_is_chunked_and_its_head_goes_with_an_empty_part_too() -> None:
    head, *pieces = sent(Cycle(), start(), part(b"", more=True), part(b"abc", more=True), part(b"z" * 16))
    assert head == b"HTTP/1.1 200 OK\r\ndate: now\r\ntransfer-encoding: chunked\r\n\r\n"
    assert pieces == [b"3\r\nabc\r\n", b"10\r\n" + b"z" * 16 + b"\r\n0\r\n\r\n"]


@pytest.mark.parametrize("headers", [(), ((b"connection", b"close"),)])
def test_last_answer_of_a_connection_says_so_once_and_closes(headers: Any) -> None:
    cycle = Cycle(keep_alive=bool(headers))
    (piece,) = sent(cycle, start(*headers, (b"content-length", b"0")), part(b""))
    assert piece.count(b"connection: close\r\n") == 1
    assert cycle.ends == ["closed", "complete"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answer_that_has_no_body_gets_none(method: str, status: int) -> None:
    (piece,) = sent(Cycle(method), start(status=status), part(b"no" if method == "HEAD" else b""))
    assert piece.endswith(b"\r\ndate: now\r\n\r\n")


@pytest.mark.parametrize(
    "messages",
    [
        [part(b"")],
        [start(), start()],
        [start(), part(b""), part(b"")],
        [start((b"content-length", b"2")), part(b"abc")],
        [start((b"content-length", b"2")), part(b"a")],
        [start((b"content-length", b"2")), part(b"a", more=True), part(b"bc")],
        [start((b"x", b"a\r\nset-cookie: b"))],
        [start((b"x", b"a\nb"))],
        [start((b"x\r\ny", b"a"))],
        [start((b"x", b"a\0"))],
    ],
)
def test_application_that_would_break_the_framing_is_stopped(messages: Any) -> None:
    cycle = Cycle()
    with pytest.raises(RuntimeError):
        sent(cycle, *messages)
    assert "complete" not in cycle.ends or len(messages) == 3


def test_nothing_is_written_to_a_client_that_left() -> None:
    cycle = Cycle()
    cycle.disconnected = True
    assert sent(cycle, start(), part(b"late")) == []
