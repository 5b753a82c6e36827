"""What a peer may not do to a connection."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core.values import Message, Sampling
from appliance.ipc import connection as ipc
from appliance.ipc.frames import MAX_FRAME_BYTES, MAX_TOGETHER, FrameDecoder, FrameError, encode, join
from appliance.ipc.messages import (
    Conversation,
    Failed,
    FromWarden,
    ListModels,
    Submit,
    ToRunner,
    ToWarden,
)


class Side:
    def __init__(self, sock: socket.socket, union: Any, *, accepts_fds: bool = False) -> None:
        self.messages: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.connection: ipc.Connection[Any] = ipc.Connection(
            sock,
            FrameDecoder(union),
            on_message=lambda message, fds: self.messages.put_nowait((message, fds)),
            on_closed=self.closed.set_result,
            accepts_fds=accepts_fds,
        )


def run(scenario: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(limited())


def test_message_and_descriptor_arrive_together() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, ToWarden), Side(right, ToWarden, accepts_fds=True)
        read_end, write_end = os.pipe()
        a.connection.send(ListModels(call=1), [read_end])
        message, fds = await b.messages.get()
        assert message == ListModels(call=1)
        os.write(write_end, b"x")
        assert os.read(fds[0], 1) == b"x"
        assert not os.get_inheritable(fds[0])
        for fd in (*fds, read_end, write_end):
            os.close(fd)
        a.connection.close()
        assert await b.closed == "the peer closed"

    run(scenario)


@pytest.mark.parametrize(
    "junk", [b"\xc1", b"junk", b"\x81" * 5000, b"\x91" * 100_000, b"\x80", b"\x00" * MAX_FRAME_BYTES]
)
def test_malformed_frame_ends_the_connection(junk: bytes) -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        b = Side(right, ToWarden)
        await asyncio.get_running_loop().sock_sendall(left, junk)
        assert "not a valid frame" in await b.closed
        left.close()

    run(scenario)


def test_two_descriptors_end_the_connection_and_leak_nothing() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        b = Side(right, ToWarden)
        read_end, write_end = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(left, [encode(ListModels(call=1))], [read_end, write_end, read_end, write_end])
        assert "cut short" in await b.closed
        assert len(os.listdir("/proc/self/fd")) == before - 1  # its own socket
        for fd in (read_end, write_end):
            os.close(fd)
        left.close()

    run(scenario)


def test_largest_frame_passes_and_a_larger_one_is_refused() -> None:
    def submit(size: int) -> Submit:
        return Submit(
            request_id="r",
            prompt=Conversation(messages=(Message(role="user", content="x" * size),)),
            sampling=Sampling(),
            max_prompt_tokens=1,
            max_completion_tokens=1,
            cache_partition="",
        )

    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, ToRunner), Side(right, ToRunner)
        overhead = len(encode(submit(70_000))) - 70_000
        a.connection.send(submit(MAX_FRAME_BYTES - overhead))
        message, _fds = await b.messages.get()
        assert len(message.prompt.messages[0].content) == MAX_FRAME_BYTES - overhead
        with pytest.raises(FrameError, match="larger than"):
            a.connection.send(submit(MAX_FRAME_BYTES - overhead + 1))
        a.connection.close()
        await b.closed

    run(scenario)


def test_peer_that_does_not_read_is_dropped_not_buffered_without_end() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToWarden)
        with pytest.raises(ConnectionError, match="does not read"):
            for number in range(ipc.MAX_QUEUED_FRAMES + 10_000):
                a.connection.send(ListModels(call=number))
        assert await a.closed == "the peer does not read"
        right.close()

    run(scenario)


def test_queued_frames_arrive_in_order_once_the_peer_reads() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToWarden)
        for number in range(2000):
            a.connection.send(ListModels(call=number))
        b = Side(right, ToWarden)
        for number in range(2000):
            message, _ = await b.messages.get()
            assert message.call == number
        a.connection.close()
        await b.closed

    run(scenario)


def test_foreign_uid_is_turned_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        listening = ipc.listen(path, mode=0o600)
        assert path.stat().st_mode & 0o777 == 0o600
        welcomed: list[socket.socket] = []
        task = asyncio.create_task(
            ipc.accept_forever(listening, allowed_uids=frozenset({os.getuid() + 1}), welcome=welcomed.append)
        )
        sock = await ipc.connect(path, None)
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        assert welcomed == []
        task.cancel()
        sock.close()
        listening.close()

    run(scenario)


def test_caller_is_told_when_the_peer_goes_away() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        caller: ipc.Caller[Any] = ipc.Caller()
        connection: ipc.Connection[Any] = ipc.Connection(
            left, FrameDecoder(FromWarden), on_message=caller.answered, on_closed=caller.disconnected
        )
        asked = asyncio.create_task(caller.ask(connection, ListModels(call=caller.next_call()), timeout_seconds=5))
        await asyncio.sleep(0)
        right.close()
        with pytest.raises(ipc.CallFailed, match=r"peer closed|reset by peer"):
            await asked

    run(scenario)


def test_answer_to_nobody_is_dropped() -> None:
    caller: ipc.Caller[Any] = ipc.Caller()
    caller.answered(Failed(call=99, reason="x", detail=""), [])


def test_descriptor_where_none_belongs_is_closed_and_ends_the_connection() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        b = Side(right, ToWarden)
        read_end, write_end = os.pipe()
        socket.send_fds(left, [encode(ListModels(call=1))], [read_end])
        os.close(read_end)
        assert await b.closed == "a descriptor where none belongs"
        assert b.messages.empty()
        with pytest.raises(BrokenPipeError):
            os.write(write_end, b"x")
        os.close(write_end)
        left.close()

    run(scenario)


def test_few_large_frames_pile_up_no_further_than_many_small_ones() -> None:
    huge = Submit(
        request_id="r",
        prompt=Conversation(messages=(Message(role="user", content="x" * 300_000),)),
        sampling=Sampling(),
        max_prompt_tokens=1,
        max_completion_tokens=1,
        cache_partition="",
    )

    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToRunner)
        sent = 0
        with pytest.raises(ConnectionError, match="does not read"):
            for _ in range(ipc.MAX_QUEUED_FRAMES):
                a.connection.send(huge)
                sent += 1
        assert sent * 300_000 < ipc.MAX_QUEUED_BYTES + 4 * ipc.SOCKET_BUFFER_BYTES
        right.close()

    run(scenario)


def test_room_comes_back_when_the_peer_reads() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToWarden)
        for number in range(2000):
            a.connection.send(ListModels(call=number))
        b = Side(right, ToWarden)
        for _ in range(2000):
            await b.messages.get()
        assert a.connection._outgoing_bytes == 0
        a.connection.close()
        await b.closed

    run(scenario)


def test_answer_that_comes_as_its_caller_is_cancelled_leaves_no_descriptor_open() -> None:
    """The answer and the cancellation in one turn of the loop: nobody else would ever close what came."""

    async def scenario() -> None:
        left, right = ipc.channel_pair()
        caller: ipc.Caller[Any] = ipc.Caller()
        connection: ipc.Connection[Any] = ipc.Connection(
            left, FrameDecoder(FromWarden), on_message=caller.answered, accepts_fds=True
        )
        call = caller.next_call()
        asking = asyncio.create_task(caller.ask_with_fds(connection, ListModels(call=call), timeout_seconds=5))
        await asyncio.sleep(0)
        read_end, write_end = os.pipe()
        caller.answered(Failed(call=call, reason="x", detail=""), [read_end])
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(BrokenPipeError):
            os.write(write_end, b"x")
        os.close(write_end)
        connection.close()
        right.close()

    run(scenario)


def test_what_a_decoder_quotes_of_its_peer_does_not_break_a_line() -> None:
    with pytest.raises(FrameError) as caught:
        FrameDecoder[Any](ToWarden).decode(msgspec.msgpack.encode({"type": "x\ny\x1b[2J" + "z" * 10_000}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_no_message_changes_when_the_next_comes_into_the_same_memory() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, FromWarden), Side(right, FromWarden)
        sent = [Failed(call=number, reason="x" * (500 - 100 * number), detail=str(number) * 300) for number in range(5)]
        for message in sent:
            a.connection.send(message)
        assert [(await b.messages.get())[0] for _ in sent] == sent
        a.connection.close()

    run(scenario)


def test_caller_is_told_when_no_answer_comes_in_time() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, FromWarden), Side(right, ToWarden)
        caller: ipc.Caller[Any] = ipc.Caller()
        question = ListModels(call=caller.next_call())
        with pytest.raises(TimeoutError):
            await caller.ask(a.connection, question, timeout_seconds=0.01)
        assert caller._waiting == {}
        a.connection.close()
        b.connection.close()

    run(scenario)


# --- several messages in one frame ----------------------------------------------------------------------------------


def datagrams(sock: socket.socket) -> list[tuple[int, ...]]:
    """What lies in a socket: the numbers of the calls in each datagram."""
    decoder: FrameDecoder[Any] = FrameDecoder(ToWarden)
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(MAX_FRAME_BYTES):
            found.append(tuple(message.call for message in decoder.decode_all(data)))
    return found


def test_messages_that_have_time_travel_with_the_next_in_order() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToWarden)
        a.connection.send_soon(ListModels(call=1), within_seconds=60)
        a.connection.send_soon(ListModels(call=2), within_seconds=60)
        assert datagrams(right) == []
        a.connection.send(ListModels(call=3))
        a.connection.send(ListModels(call=4))
        assert datagrams(right) == [(1, 2, 3), (4,)]
        a.connection.close()
        right.close()

    run(scenario)


def test_message_that_has_time_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, ToWarden), Side(right, ToWarden)
        for call in range(200):
            a.connection.send_soon(ListModels(call=call))
        assert [(await b.messages.get())[0].call for _ in range(200)] == list(range(200))
        a.connection.send_soon(ListModels(call=200), within_seconds=0.01)
        assert (await b.messages.get())[0] == ListModels(call=200)
        a.connection.close()
        await b.closed

    run(scenario)


def test_held_messages_fill_no_frame_beyond_its_largest_size() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, FromWarden), Side(right, FromWarden)
        answers = [Failed(call=call, reason="r", detail="x" * 2000) for call in range(MAX_TOGETHER * 4)]
        large = Failed(call=0, reason="r", detail="")
        for answer in (*answers, large):
            a.connection.send_soon(answer, within_seconds=60)
        a.connection.send(large)
        for answer in (*answers, large, large):
            assert (await b.messages.get())[0] == answer
        a.connection.close()
        await b.closed

    run(scenario)


def test_descriptor_belongs_to_one_message_alone() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a, b = Side(left, ToWarden), Side(right, ToWarden, accepts_fds=True)
        end, other = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        a.connection.send_soon(ListModels(call=1), within_seconds=60)
        a.connection.send(ListModels(call=2), [end])
        assert await b.messages.get() == (ListModels(call=1), [])
        message, (fd,) = await b.messages.get()
        assert message == ListModels(call=2)
        os.close(fd)
        socket.send_fds(left, [join([encode(ListModels(call=n)) for n in range(2)])], [end])
        assert await b.closed == "a descriptor of several messages"
        assert len(os.listdir("/proc/self/fd")) == before - 1  # its own socket
        a.connection.close()
        os.close(end)
        os.close(other)

    run(scenario)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdc\x00\x00",
        b"\xdc\x00\x02" + encode(ListModels(call=1)),
        b"\xdc\x00\x01\xdc\x00\x01" + encode(ListModels(call=1)),
        b"\xdc\x00\x02" + encode(ListModels(call=1)) + encode(Failed(call=1, reason="r", detail="")),
        join([encode(ListModels(call=1))] * (MAX_TOGETHER + 1)),
    ],
    ids=["none", "cut", "nested", "of-another-channel", "too-many"],
)
def test_malformed_frame_of_several_ends_the_connection_and_none_of_it_is_heard(frame: bytes) -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        b = Side(right, ToWarden)
        await asyncio.get_running_loop().sock_sendall(left, frame)
        assert "not a valid frame" in await b.closed
        assert b.messages.empty()
        left.close()

    run(scenario)


def test_nothing_of_a_frame_is_heard_after_its_hearer_has_closed() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        heard: list[Any] = []

        def hear(message: Any, _fds: list[int]) -> None:
            heard.append(message)
            connection.close()

        connection: ipc.Connection[Any] = ipc.Connection(right, FrameDecoder(ToWarden), on_message=hear)
        left.send(join([encode(ListModels(call=n)) for n in range(3)]))
        while not connection.closed:
            await asyncio.sleep(0)
        assert heard == [ListModels(call=0)]
        left.close()

    run(scenario)


def test_message_is_not_held_for_a_peer_that_is_gone() -> None:
    async def scenario() -> None:
        left, right = ipc.channel_pair()
        a = Side(left, ToWarden)
        a.connection.send_soon(ListModels(call=1))
        right.close()
        assert "send failed" in await a.closed or "closed" in await a.closed
        with pytest.raises(ConnectionError, match="is closed"):
            a.connection.send_soon(ListModels(call=2))

    run(scenario)
