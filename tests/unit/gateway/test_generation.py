"""No status line before the runner has begun, and no stream without an end that its reader can tell."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.manifest import accompanied, as_companion
from appliance.core.meter import held_bytes
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    CompanionKind,
    Delta,
    SampledToken,
    Started,
    TextPrompt,
    TokenLogprob,
    ToolCallDelta,
    VerifiedModel,
)
from appliance.gateway import generation
from appliance.gateway.answering import BodyLimits
from appliance.gateway.asgi import DEPARTURE, Departure
from appliance.gateway.generation import GenerationRoute, Head, Surface
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionSurface
from tests.fakes.models import STARTED, WHOLE, delta, end
from tests.fakes.world import World
from tests.support.made_values import adapter, model
from tests.support.scenario import run, until

BODY: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


class Client:
    """One client's side of the ASGI interface."""

    def __init__(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": data, "more_body": False})
        self.sent: list[Any] = []
        self.departure = Departure()
        headers = [(b"content-type", b"application/json")]
        self.scope = {"method": "POST", "headers": headers, DEPARTURE: self.departure}

    async def receive(self) -> dict[str, Any]:
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)

    def leave(self) -> None:
        self.departure.happen()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent[1:]).decode()

    @property
    def events(self) -> list[Any]:
        lines = [line.removeprefix("data: ") for line in self.text.split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def asked(world: World, client: Client, surface: Surface | None = None) -> None:
    limits = BodyLimits(max_bytes=10_000, timeout_seconds=5.0)
    route = GenerationRoute(world.pipeline, limits, surface or ChatSurface())
    await route(world.exchange(), client.scope, client.receive, client.send)


def contents(events: list[Any]) -> str:
    return "".join(
        event["choices"][0]["delta"].get("content", "")
        for event in events
        if event != "[DONE]" and event.get("choices")
    )


@pytest.mark.parametrize("stream", [False, True])
def test_headers_tell_how_the_caller_waited(stream: bool) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": stream})
        started = Started(prompt_tokens=9, queue_position=3, queued_ms=1250)
        world.models.script = [[started], *([event] for event in WHOLE[1:])]
        await asked(world, client)
        headers = dict(client.sent[0]["headers"])
        assert headers[b"x-paddock-queue-position"] == b"3"
        assert headers[b"x-paddock-queue-ms"] == b"1250"

    run(scenario)


def test_nothing_is_told_of_a_wait_that_no_runner_told_of() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": True})
        world.models.script = [[end("error", completion_tokens=0)]]
        await asked(world, client)
        assert not any(name.startswith(b"x-paddock") for name, _value in client.sent[0]["headers"])

    run(scenario)


def test_whole_answer_is_one_object() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY)
        await asked(world, client)
        start, body = client.sent
        assert start["status"] == 200
        assert dict(start["headers"])[b"x-request-id"] == b"r-1"
        assert dict(start["headers"])[b"cache-control"] == b"no-store"
        answer = json.loads(body["body"])
        assert answer["choices"][0]["message"]["content"] == "Hello"
        assert answer["usage"]["total_tokens"] == 11
        assert world.audit.closed[0].outcome == "completed"

    run(scenario)


@pytest.mark.parametrize("usage", [True, False])
def test_stream_has_role_first_finish_without_text_usage_if_asked_and_done(usage: bool) -> None:
    async def scenario() -> None:
        world = World()
        client = Client(BODY | {"stream": True, "stream_options": {"include_usage": usage}})
        await asked(world, client)
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"x-accel-buffering"] == b"no"
        assert b"content-length" not in headers
        *chunks, done = client.events
        assert done == "[DONE]"
        tail = 2 if usage else 1
        assert [chunk["choices"][0]["delta"] for chunk in chunks[:-tail]] == [
            {"role": "assistant", "content": ""},
            {"content": "Hel"},
            {"content": "lo"},
        ]
        finish = chunks[-tail]
        assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
        assert [("usage" in chunk, chunk["choices"] == []) for chunk in chunks[-tail:]] == [
            (False, False),
            *([(True, True)] if usage else []),
        ]
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        assert [message.get("more_body") for message in client.sent[1:]] == [True] * (len(client.sent) - 2) + [False]

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", [Reason.PROMPT_TOO_LONG, Reason.OVERLOADED, Reason.RUNNER_LOST])
def test_runner_that_refuses_sends_no_status_line(stream: bool, reason: Reason) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": stream})
        world.models.script = [Refused(reason, "4711 tokens")]
        with pytest.raises(Refused) as caught:
            await asked(world, client)
        assert caught.value.reason is reason
        assert client.sent == []
        assert len(world.audit.closed) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (Refused(Reason.RUNNER_LOST, "secret detail"), "runner-lost"),
        ([end("error", 1, "secret detail")], "runner-error"),
    ],
)
def test_stream_that_breaks_ends_with_an_error_event_and_without_done(last: Any, code: str) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": True})
        world.models.script = [[STARTED], [delta("Hel")], last]
        await asked(world, client)  # nothing is raised: no answer may follow one that has begun
        assert [record.outcome for record in world.audit.closed] == [code]
        assert world.audit.refused == []
        assert client.events[-1]["error"]["code"] == code
        assert contents(client.events) == "Hel"
        assert "secret" not in client.text
        assert client.sent[-1]["more_body"] is False
        assert "[DONE]" not in client.events

    run(scenario)


def test_whole_answer_that_breaks_is_no_answer() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY)
        world.models.script = [[STARTED], [delta("Hel")], Refused(Reason.RUNNER_LOST)]
        with pytest.raises(Refused):
            await asked(world, client)
        assert client.sent == []

    run(scenario)


def test_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    async def scenario() -> None:
        world, client = World(request_timeout_seconds=0.01), Client(BODY | {"stream": True})
        world.models.script = [[STARTED], None]
        await asked(world, client)
        assert world.audit.closed[0].outcome == "cancelled"
        assert "request-timeout" in world.audit.closed[0].detail
        assert client.events[-1]["error"]["code"] == "request-timeout"

    run(scenario)


@pytest.mark.parametrize("reason", ["cancelled", "stop"])
def test_stream_of_which_a_part_is_missing_never_ends_as_if_it_were_whole(reason: str) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": True})
        world.models.cut = True
        world.models.script = [[STARTED], [delta("Hel")], [end(reason, completion_tokens=7)]]
        await asked(world, client)
        assert client.events[-1]["error"]["code"] == "reader-too-slow"
        assert contents(client.events[:-1]) == "Hel"
        assert world.audit.closed[0].outcome == "cancelled"
        assert "reader-too-slow" in world.audit.closed[0].detail
        assert world.budget.settled == [("r-1", 16)]

    run(scenario)


@pytest.mark.parametrize(("room", "status"), [(4, 200), (3, None)])
def test_whole_answer_is_gathered_up_to_a_bound_and_then_stopped_and_paid(
    room: int, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [STARTED, delta("Hel"), delta("lo")]
    monkeypatch.setattr(generation, "MAX_WHOLE_BYTES", sum(map(held_bytes, [*pieces, end()][:room])))

    async def scenario() -> None:
        world, client = World(), Client(BODY)
        world.models.script = [[one] for one in pieces] + [[end("stop" if status else "cancelled", 7)]]
        if status is not None:
            await asked(world, client)
            assert (client.sent[0]["status"], world.audit.closed[0].outcome) == (status, "completed")
            return
        with pytest.raises(Refused) as caught:
            await asked(world, client)
        assert caught.value.reason is Reason.ANSWER_TOO_LARGE
        assert client.sent == []

    run(scenario)


@pytest.mark.parametrize("last", ["cancelled", "stop"])
def test_answer_too_large_to_gather_is_never_sent_in_part(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_WHOLE_BYTES", held_bytes(STARTED) + held_bytes(delta("Hel")))

    async def scenario() -> None:
        world, client = World(), Client(BODY)
        world.models.script = [[STARTED], [delta("Hel")], [delta("lo")], [delta("!")], [end(last, 7)]]
        with pytest.raises(Refused) as caught:
            await asked(world, client)
        assert caught.value.reason is Reason.ANSWER_TOO_LARGE
        assert client.sent == []
        assert world.models.answers[0].cancels > 0
        [record] = world.audit.closed
        assert (record.outcome, record.detail) == ("cancelled", "answer-too-large")
        assert world.budget.settled == [("r-1", 16)]

    run(scenario)


def test_what_is_gathered_of_an_answer_takes_no_more_than_is_reckoned() -> None:
    """A runner that is taken over tells tokens as long as any may be, and of bytes that JSON writes the longest."""
    longest = TokenLogprob(piece=b"\x01" * MAX_TOKEN_BYTES, logprob=-1.2345678901234567)
    told = SampledToken(chosen=longest, alternatives=(longest,) * 20)
    request = ChatSurface().decode(json.dumps(BODY | {"logprobs": True, "top_logprobs": 20}).encode())
    writer = ChatSurface().whole(Head(request_id="r-1", created=0, fingerprint="", request=request))
    piece = Delta(text="a", tokens=1, logprobs=(told,))
    tracemalloc.start()
    try:
        for _ in range(100):
            writer.add([piece])
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= 100 * held_bytes(piece)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_stops_the_runner_and_pays_for_what_was_made(stream: bool) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": stream})
        world.models.script = [[STARTED], None]
        task = asyncio.create_task(asked(world, client))
        await until(lambda: world.steps.seen.count("events") == 2)
        assert world.models.answers[0].cancels == 0
        client.leave()
        await task
        assert world.models.answers[0].cancels == 1
        assert world.audit.closed[0].outcome == "cancelled"
        assert world.budget.settled == [("r-1", 11)]

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_before_the_answer_begins_stops_the_runner(stream: bool) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": stream})
        world.models.script = [None]
        task = asyncio.create_task(asked(world, client))
        await until(lambda: "events" in world.steps.seen)
        client.leave()
        await task
        assert world.models.answers[0].cancels == 1
        assert world.audit.closed[0].outcome == "cancelled"

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_cancelled_request_leaves_no_task_behind(stream: bool) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": stream})
        world.models.script = [[STARTED], None]
        task = asyncio.create_task(asked(world, client))
        await until(lambda: world.steps.seen.count("events") == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert world.audit.closed[0].outcome == "cancelled"
        assert world.models.answers[0].cancels == 1

    run(scenario)


def test_client_whose_socket_fails_closes_the_record() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": True})

        async def broken(message: Any) -> None:
            raise ConnectionResetError

        client.send = broken  # type: ignore[method-assign]
        with pytest.raises(ConnectionResetError):
            await asked(world, client)
        assert len(world.audit.closed) == 1
        assert world.models.answers[0].cancels == 1

    run(scenario)


def test_silence_is_filled_with_comments_that_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PING_SECONDS", 0.01)

    async def scenario() -> None:
        world, client = World(), Client(BODY | {"stream": True})
        world.models.script = [[STARTED], None]
        task = asyncio.create_task(asked(world, client))
        await until(lambda: client.text.count(": ping\n\n") >= 2)
        client.leave()
        await task
        assert contents(client.events) == ""
        assert client.events[-1] == "[DONE]"

    run(scenario)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "post"])
def test_other_methods_are_refused_before_the_body_is_read(method: str) -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY)
        client.scope["method"] = method
        with pytest.raises(Refused) as caught:
            await asked(world, client)
        assert (caught.value.reason, caught.value.param) == (Reason.METHOD_NOT_ALLOWED, "POST")
        assert client.inbox.qsize() == 1
        assert world.steps.seen == []

    run(scenario)


def test_bad_body_reaches_no_stage() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY | {"tool": []})
        with pytest.raises(Refused) as caught:
            await asked(world, client)
        assert caught.value.reason is Reason.FIELD_UNKNOWN
        assert world.steps.seen == []

    run(scenario)


def test_fingerprint_names_the_verified_model() -> None:
    async def scenario() -> None:
        world, client = World(), Client(BODY)
        await asked(world, client)
        digest = world.audit.opened[0].model.digest.hex
        assert json.loads(client.sent[1]["body"])["system_fingerprint"] == f"sha256-{digest[:16]}"

    run(scenario)


def test_no_fingerprint_is_that_of_the_model_with_other_companions() -> None:
    def served(kind: CompanionKind, file: str, scale: int | None) -> VerifiedModel:
        one = adapter(file) if kind == "adapter" else model(file)
        return accompanied(model("demo"), "demo", (as_companion(one, kind, scale),))

    async def scenario() -> None:
        said = []
        for one in (
            model("demo"),
            served("adapter", "style", 1000),
            served("adapter", "style", 500),
            served("adapter", "tone", 1000),
            served("draft", "style", None),
        ):
            world, client = World(), Client(BODY)
            world.models.models = (one,)
            await asked(world, client)
            said.append(json.loads(client.sent[1]["body"])["system_fingerprint"])
        assert len(set(said)) == len(said)

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_text_is_continued_through_the_same_stages(stream: bool) -> None:
    async def scenario() -> None:
        world = World()
        client = Client({"model": "demo", "prompt": "Once", "stream": stream})
        await asked(world, client, CompletionSurface())
        [(_id, admission, _key)] = world.models.submitted
        assert admission.request.prompt == TextPrompt(text="Once")
        assert world.policy.inputs[0]["action"]["operation"] == "complete"
        assert [record.outcome for record in world.audit.closed] == ["completed"]
        if stream:
            assert [event["choices"][0]["text"] for event in client.events[:-1]] == ["Hel", "lo", ""]
            assert client.events[-1] == "[DONE]"
        else:
            assert json.loads(client.sent[1]["body"])["choices"][0]["text"] == "Hello"

    run(scenario)


def test_text_that_breaks_off_ends_with_an_error_event_and_without_done() -> None:
    async def scenario() -> None:
        world, client = World(), Client({"model": "demo", "prompt": "Once", "stream": True})
        world.models.script = [[STARTED], [delta("Hel")], Refused(Reason.RUNNER_LOST, "secret detail")]
        await asked(world, client, CompletionSurface())
        assert client.events[-1]["error"]["code"] == "runner-lost"
        assert "secret" not in client.text

    run(scenario)


def test_answer_that_is_a_call_is_complete() -> None:
    async def scenario() -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        world, client = World(), Client(BODY | {"tools": tools})
        call = ToolCallDelta(index=0, id="c-1", name="f", arguments="{}")
        world.models.script = [[STARTED, Delta(tool_calls=(call,), tokens=2), end("tool-calls")]]
        await asked(world, client)
        [choice] = json.loads(client.sent[1]["body"])["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        assert world.audit.closed[0].outcome == "completed"
        assert world.policy.inputs[0]["request"]["tools"] == 1

    run(scenario)
