"""No body is read beyond its size, its time or its media type."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from appliance.core.refusals import Reason, Refused
from appliance.gateway.asgi import BODY_IS_HERE, Departure, peer_of, read_body
from tests.support.scenario import run

JSON = (b"content-type", b"application/json")


def receiving(*messages: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Gives out the messages, then waits for ever."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def part(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def read(
    *messages: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...] = (JSON,), is_here: bool = False
) -> bytes | Reason:
    outcome: list[bytes | Reason] = []

    async def scenario() -> None:
        try:
            scope = {"headers": headers, BODY_IS_HERE: is_here}
            outcome.append(await read_body(scope, receiving(*messages), max_bytes=10, timeout_seconds=0.05))
        except Refused as refused:
            outcome.append(refused.reason)

    run(scenario)
    return outcome[0]


def test_parts_are_joined_and_the_last_may_be_empty() -> None:
    assert read(part(b"12345", more=True), part(b"67890", more=True), part(b"")) == b"1234567890"
    assert read({"type": "http.request"}) == b""


def test_one_byte_too_many_is_refused_before_the_end() -> None:
    assert read(part(b"12345", more=True), part(b"678901", more=True)) is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize(
    "length",
    [
        b"11",
        b"99999999999999",
        b"9" * 5000,
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"",
        b"1,1",
        b"0x1",
        b"\xb2",
        b"\xb9",
        b"1_0",
        b"1e1",
    ],
)
def test_declared_length_that_is_too_large_or_no_number_is_refused_unread(length: bytes) -> None:
    assert read(headers=(JSON, (b"content-length", length))) is Reason.BODY_TOO_LARGE


def test_declared_length_is_not_trusted_to_be_true() -> None:
    assert read(part(b"x" * 11), headers=(JSON, (b"content-length", b"1"))) is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"application/json+x",
        b"application/jsonp",
        b"*/*",
        b"json",
        b";application/json",
    ],
)
def test_other_media_types_are_refused_unread(value: bytes) -> None:
    assert read(headers=((b"content-type", value),)) is Reason.MEDIA_TYPE_UNSUPPORTED


def test_route_may_take_another_media_type_instead() -> None:
    async def scenario() -> None:
        form = "application/x-www-form-urlencoded"
        for sent, wanted in ((form, form), ("application/json", form)):
            scope = {"headers": ((b"content-type", sent.encode()),)}
            reading = read_body(scope, receiving(part(b"a=1")), max_bytes=10, timeout_seconds=0.05, media_type=wanted)
            if sent == wanted:
                assert await reading == b"a=1"
            else:
                with pytest.raises(Refused):
                    await reading

    run(scenario)


def test_absent_media_type_is_refused() -> None:
    assert read(part(b"{}"), headers=()) is Reason.MEDIA_TYPE_UNSUPPORTED


@pytest.mark.parametrize("value", [b"application/json; charset=utf-8", b"Application/JSON", b" application/json "])
def test_spelling_of_the_media_type_does_not_matter(value: bytes) -> None:
    assert read(part(b"{}"), headers=((b"content-type", value),)) == b"{}"


def test_slow_and_vanished_senders_are_given_up() -> None:
    assert read(part(b"1", more=True)) is Reason.BODY_TIMEOUT
    assert read(part(b"1", more=True), {"type": "http.disconnect"}) is Reason.BODY_TIMEOUT


def test_body_that_is_here_is_bounded_too() -> None:
    assert read(part(b"1234567890"), is_here=True) == b"1234567890"
    assert read(part(b"12345678901"), is_here=True) is Reason.BODY_TOO_LARGE
    assert read({"type": "http.disconnect"}, is_here=True) is Reason.BODY_TIMEOUT
    assert read(part(b"{}"), headers=((b"content-type", b"text/plain"),), is_here=True) is Reason.MEDIA_TYPE_UNSUPPORTED


def test_departure_is_told_once_whenever_it_was_and_to_nobody_who_has_stopped_listening() -> None:
    departure, heard = Departure(), list[str]()
    with departure.told(lambda: heard.append("nobody left")):
        pass
    with departure.told(lambda: heard.append("while it listens")):
        departure.happen()
        departure.happen()
    with departure.told(lambda: heard.append("before it listened")):
        assert heard == ["while it listens", "before it listened"]
    departure.happen()
    assert len(heard) == 2


def test_peer_is_the_sockets_and_no_headers() -> None:
    forged = [(b"x-forwarded-for", b"10.0.0.1"), (b"forwarded", b"for=10.0.0.1")]
    peer = peer_of({"client": ("192.0.2.7", 4711), "headers": forged})
    assert (peer.address, peer.port) == ("192.0.2.7", 4711)
    assert peer_of({"client": None, "headers": forged}).address == "unix"
    assert peer_of({"headers": forged}).address == "unix"
    assert peer_of({"client": ("unix", None), "headers": forged}).port == 0
