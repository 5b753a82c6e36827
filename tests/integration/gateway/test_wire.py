"""No state of a connection lasts, none holds much, and an answer's end is known however its client behaves.

The gateway's own server in this process, on real sockets, with times short enough for a test.
"""

import asyncio
import json
import time
from typing import Any

import pytest

from appliance.gateway.asgi import REFUSED_ON_WIRE
from appliance.gateway.wire import MAX_FRAMING_BYTES
from tests.fakes.models import STARTED, delta
from tests.fakes.world import World
from tests.support.scenario import run, until
from tests.support.wire_server import App, Client, gate_around, served

GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
BODY = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer good\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class Reading(App):
    """Reads the whole body first."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.begun.append(scope)
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body, more = body + message["body"], message["more_body"]
            self.bodies.append(body)
        await super().__call__(scope, receive, send)


async def ended_after(client: Client) -> float:
    began = time.monotonic()
    await client.rest()
    return time.monotonic() - began


# --- times ----------------------------------------------------------------------------------------------------------


async def drip(client: Client, data: bytes) -> None:
    for byte in data:
        client.send(bytes([byte]))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "data",
    [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: test\r\nX: ", b"\r\n"],
    ids=["nothing", "target", "header", "CRLF"],
)
def test_headers_that_do_not_end_are_given_up_whatever_arrives(data: bytes) -> None:
    async def scenario() -> None:
        app = App()
        async with served(app, head_seconds=0.2) as server, server.client() as client:
            client.send(data)
            filler = b"\r\n" * 500 if data == b"\r\n" else b"a" * 1000
            dripping = asyncio.create_task(drip(client, filler if data else b""))
            assert 0.1 < await ended_after(client) < 2.0
            dripping.cancel()
        assert app.asked == []

    run(scenario)


@pytest.mark.parametrize("filler", [b"", b"\r\n" * 500, b"GET /" + b"a" * 1000])
def test_connection_is_not_kept_for_ever_after_an_answer(filler: bytes) -> None:
    async def scenario() -> None:
        async with served(App(), keep_alive_seconds=0.2) as server, server.client() as client:
            client.send(GET)
            assert (await client.answer()).endswith(b"ok")
            dripping = asyncio.create_task(drip(client, filler))
            assert 0.1 < await ended_after(client) < 2.0
            dripping.cancel()

    run(scenario)


def test_connection_serves_request_after_request() -> None:
    async def scenario() -> None:
        app = App()
        async with served(app, head_seconds=0.3) as server, server.client() as client:
            for _ in range(6):
                await asyncio.sleep(0.1)
                client.send(GET)
                assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
        assert len(app.asked) == 6

    run(scenario)


def test_reader_that_does_not_read_ends_its_answer_and_frees_its_slot() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], *([delta("x" * 20_000)] for _ in range(200)), None]
        gate = gate_around(world, slots=1)
        async with served(gate, stalled_seconds=0.3) as server, server.client(small_buffer=True) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(POST)
            await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "cancelled"
            assert world.models.answers[0].cancels == 1
            assert world.budget.held == {}
            world.models.script = [[STARTED], [delta("hello")], None]
            async with server.client() as another:
                another.send(POST)
                await until(lambda: len(world.audit.opened) == 2)

    run(scenario)


def test_reader_that_takes_its_time_with_a_long_answer_gets_all_of_it() -> None:
    """Vectors of 2,048 inputs are megabytes."""
    n_bytes = 4 * 2**20

    async def scenario() -> None:
        app = App(answer=bytes(n_bytes))
        async with served(app, stalled_seconds=0.3) as server, server.client(small_buffer=True) as client:
            client.send(GET)
            received = 0
            while received < n_bytes and (piece := await client.some(2**18)):
                received += len(piece)
                await asyncio.sleep(0.04)
            assert received >= n_bytes

    run(scenario)


def test_request_that_outlasts_every_limit_is_cut_and_closed() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], None]
        async with served(gate_around(world), request_seconds=0.3) as server, server.client() as client:
            client.send(POST)
            assert (await client.rest()).startswith(b"HTTP/1.1 200 ")
            await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "cancelled"

    run(scenario)


# --- one request at a time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_client_that_asks_again_and_leaves_stops_its_answer(together: bool) -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [delta("a")], None]
        async with served(gate_around(world)) as server:
            async with server.client() as client:
                client.send(POST + (GET if together else b""))
                await until(lambda: world.steps.seen.count("events") == 3)
                if not together:
                    client.send(GET)
                    await asyncio.sleep(0.05)
                assert world.models.answers[0].cancels == 0
            await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "cancelled"

    run(scenario)


def test_request_sent_before_the_answer_is_not_answered_and_the_answer_is_whole() -> None:
    async def scenario() -> None:
        app = App(held=True)
        async with served(app) as server, server.client() as client:
            client.send(GET + GET)
            await until(lambda: app.asked != [])
            client.send(GET * 1000)
            app.go.set()
            answer = await client.rest()
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.endswith(b"ok")
        assert len(app.asked) == 1

    run(scenario)


# --- sizes ----------------------------------------------------------------------------------------------------------

HEAD = b"GET /healthz HTTP/1.1\r\nHost: test\r\n"
ENDLESS = [
    ("headers", HEAD, b"a: b\r\n" * 10, 431),
    ("a header's value", HEAD + b"a: ", b"a" * 100, 431),
    ("a header's name", HEAD, b"a" * 100, 431),
    ("the target", b"GET /", b"a" * 100, 414),
    ("the query", b"GET /?", b"a" * 100, 414),
    ("the method", b"", b"A" * 100, 400),
    ("empty lines", b"", b"\r\n" * 10, 431),
    ("trailers", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"a: b\r\n" * 10, 400),
    ("a trailer's value", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\na: ", b"a" * 100, 431),
    ("a chunk's extension", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a=", b"a" * 100, 431),
]


@pytest.mark.parametrize(("begin", "more", "status"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
def test_what_does_not_end_is_cut_soon_and_told_why(begin: bytes, more: bytes, status: int) -> None:
    async def scenario() -> None:
        app = Reading()
        async with served(app) as server, server.client() as client:
            reading = asyncio.create_task(client.rest())
            client.send(begin)
            sent = await client.flood(more * 20, 50_000_000)
            answer = await reading
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
            assert answer.count(b"HTTP/1.1 ") == 1
            assert b"cache-control: no-store\r\n" in answer
            assert b"connection: close\r\n" in answer
            assert sent < 50_000_000
        assert app.bodies == []
        handed_over = sum(REFUSED_ON_WIRE in scope for scope in app.begun)
        assert sum(server.refusals.strangers.values()) + handed_over == 1

    run(scenario)


@pytest.mark.parametrize("token", [b"good", b"bad"])
def test_body_that_breaks_its_framing_is_accounted_for_once(token: bytes) -> None:
    """As whoever sends it is identified or not: the request was under way already."""
    head = POST.partition(b"Content-Length")[0].replace(b"good", token) + b"Transfer-Encoding: chunked\r\n\r\n"

    async def scenario() -> None:
        world = World()
        gate = gate_around(world)
        async with served(gate, gate.refusals) as server, server.client() as client:
            client.send(head + b"2\r\n{}}\r\n")
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
            await until(lambda: gate.refusals.totals().total() > 0)
        assert gate.refusals.totals() == {"request-malformed": 1}
        assert [record.reason for record in world.audit.refused] == ["request-malformed"] * (token == b"good")

    run(scenario)


def test_cut_sender_is_not_read_for_long() -> None:
    async def scenario() -> None:
        async with served(App()) as server, server.client() as client:
            client.send(HEAD + b"a: " + b"a" * MAX_FRAMING_BYTES)
            began = time.monotonic()
            await client.rest()
            await client.flood(b"a" * 1000, 10**9)
            assert time.monotonic() - began < 4.0

    run(scenario)


def test_body_of_many_small_pieces_is_whole() -> None:
    async def scenario() -> None:
        app = Reading()
        async with served(app) as server, server.client() as client:
            client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                client.send(b"1\r\na\r\n" * 200)
                await client.writer.drain()
                await asyncio.sleep(0)
            client.send(b"0\r\n\r\n")
            assert (await client.answer()).endswith(b"ok")
        assert app.bodies == [b"a" * 20_000]

    run(scenario)


# --- forms ----------------------------------------------------------------------------------------------------------

MALFORMED = [
    ("absolute form", b"GET http://test/healthz HTTP/1.1\r\nHost: test\r\n\r\n", b"path-invalid"),
    ("another's absolute form", b"GET http://evil.example/healthz HTTP/1.1\r\nHost: test\r\n\r\n", b"path-invalid"),
    ("fragment", b"GET /healthz#x HTTP/1.1\r\nHost: test\r\n\r\n", b"path-invalid"),
    ("star", b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n", b"path-invalid"),
    ("CONNECT", b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n", b"path-invalid"),
    ("not ASCII", b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n", b"request-malformed"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"request-malformed"),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"request-malformed"),
    (
        "both lengths",
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"request-malformed",
    ),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_request_reaches_nobody(data: bytes, code: bytes) -> None:
    async def scenario() -> None:
        app = App()
        async with served(app) as server, server.client() as client:
            client.send(data)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert code in answer
            assert b"x-content-type-options: nosniff\r\n" in answer
        assert app.asked == []
        assert server.refusals.strangers == {code.decode(): 1}

    run(scenario)


def test_garbage_after_an_answer_began_does_not_become_part_of_it() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [delta("a")], None]
        broken = POST.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked").replace(
            BODY, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        )
        async with served(gate_around(world)) as server, server.client() as client:
            client.send(broken)
            await until(lambda: world.steps.seen.count("events") == 3)
            client.send(b"\x00\x01garbage\r\n\r\n")
            client.writer.write_eof()
            answer = await client.rest()
            assert answer.count(b"HTTP/1.1 ") == 1
            await until(lambda: world.audit.closed != [])

    run(scenario)


# --- the crowd ------------------------------------------------------------------------------------------------------


def test_idle_connections_make_room_for_one_that_asks() -> None:
    async def scenario() -> None:
        async with served(App(), connections=4) as server:
            idle = [server.client() for _ in range(12)]
            clients = [await one.__aenter__() for one in idle]
            async with server.client() as client:
                client.send(GET)
                assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
            assert await clients[0].rest() == b""
            for one in idle:
                await one.__aexit__(None, None, None)

    run(scenario)


def test_requests_under_way_are_not_ended_for_a_newcomer() -> None:
    async def scenario() -> None:
        app = App(held=True)
        async with served(app, connections=2) as server, server.client() as first, server.client() as second:
            first.send(GET)
            second.send(GET)
            await until(lambda: len(app.asked) == 2)
            async with server.client() as third:
                refused = await third.rest()
                assert refused.startswith(b"HTTP/1.1 503 ")
                assert b"cache-control: no-store\r\n" in refused
            app.go.set()
            for client in (first, second):
                assert (await client.answer()).endswith(b"ok")
        assert server.refusals.strangers == {"overloaded": 1}

    run(scenario)


def test_room_is_had_again_when_connections_end() -> None:
    async def scenario() -> None:
        async with served(App(), connections=3) as server:
            for _ in range(30):
                async with server.client() as client:
                    client.send(GET)
                    assert (await client.answer()).endswith(b"ok")

    run(scenario)
