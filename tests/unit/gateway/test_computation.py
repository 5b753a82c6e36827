"""Vectors, scores and tokens: no status line before the answer is whole, and everything settled whatever happens."""

import asyncio
import base64
import json
import threading
from struct import pack
from typing import Any, ClassVar

import pytest

from appliance.core.records import Closed
from appliance.core.refusals import Reason, Refused
from appliance.core.values import End, Ids, Rows, Started, TextPrompt, TokenPrompt, Vectors, Written
from appliance.gateway.answering import BodyLimits
from appliance.gateway.asgi import DEPARTURE, Departure
from appliance.gateway.computation import ComputationRoute
from appliance.gateway.surfaces.vectors import EmbeddingsSurface, RerankSurface
from appliance.gateway.surfaces.vocabulary import DetokenizeSurface, TokenizeSurface
from appliance.ipc.messages import MAX_EMBED_INPUTS
from tests.fakes.world import World
from tests.support.made_values import model
from tests.support.scenario import run, until

STARTED = Started(prompt_tokens=9)
END = End(reason="stop", prompt_tokens=9, completion_tokens=0)
EMBED: dict[str, Any] = {"model": "demo", "input": ["a", "b"]}
RERANK: dict[str, Any] = {"model": "demo", "query": "q", "documents": ["a", {"text": "b"}, "c"]}


def rows(*numbers: float, width: int = 2) -> Rows:
    return Rows(width=width, data=pack(f"<{len(numbers)}f", *numbers))


class Client:
    """One client's side of the ASGI interface."""

    def __init__(self, body: dict[str, Any], method: str = "POST") -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[Any] = []
        self.departure = Departure()
        headers = [(b"content-type", b"application/json")]
        self.scope = {"method": method, "headers": headers, DEPARTURE: self.departure}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def answer(self) -> Any:
        assert self.sent[0]["status"] == 200
        return json.loads(self.sent[1]["body"])


async def ask(world: World, surface: Any, client: Client) -> None:
    world.models.models = (model("demo", pools=isinstance(surface, EmbeddingsSurface | RerankSurface)),)
    route: ComputationRoute[Any] = ComputationRoute(
        world.pipeline, BodyLimits(max_bytes=262_144, timeout_seconds=5.0), surface
    )
    await route(world.exchange(), client.scope, client.inbox.get, client.send)


def answer_to(surface: Any, body: dict[str, Any], *script: Any) -> Any:
    client = Client(body)

    async def scenario() -> None:
        world = World()
        world.models.script = [list(script)]
        await ask(world, surface, client)

    run(scenario)
    return client.answer


def test_vectors_stand_at_their_inputs_places_whatever_the_pieces() -> None:
    answer = answer_to(EmbeddingsSurface(), EMBED, STARTED, rows(1, 2), rows(3, 4), END)
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 2.0]},
            {"object": "embedding", "index": 1, "embedding": [3.0, 4.0]},
        ],
        "model": "demo",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_base64_is_of_little_endian_floats() -> None:
    answer = answer_to(EmbeddingsSurface(), EMBED | {"encoding_format": "base64"}, STARTED, rows(1, 2, 3, 4), END)
    assert [base64.b64decode(each["embedding"]) for each in answer["data"]] == [pack("<2f", 1, 2), pack("<2f", 3, 4)]


def test_vectors_are_written_beside_the_loop_that_serves_everybody() -> None:
    class Watched(EmbeddingsSurface):
        threads: ClassVar[list[int]] = []

        def body(self, *given: Any) -> bytes:
            self.threads.append(threading.get_ident())
            return super().body(*given)

    answer_to(Watched(), EMBED, STARTED, rows(1, 2, 3, 4), END)
    assert Watched.threads != [threading.get_ident()]


def test_the_best_documents_come_first_by_their_own_index() -> None:
    scores = rows(-1.0, 5.0, 2.0, width=1)
    answer = answer_to(RerankSurface(), RERANK | {"top_n": 2, "return_documents": True}, STARTED, scores, END)
    assert answer["results"] == [
        {"index": 1, "relevance_score": 5.0, "document": {"text": "b"}},
        {"index": 2, "relevance_score": 2.0, "document": {"text": "c"}},
    ]


def test_tokens_and_text_are_joined_from_their_pieces() -> None:
    body = {"model": "demo", "content": "hello"}
    told = answer_to(TokenizeSurface(), body, STARTED, Ids(data=pack("<2i", 1, 2)), Ids(data=pack("<i", 70_000)), END)
    assert told == {"tokens": [1, 2, 70_000], "count": 3}
    body = {"model": "demo", "tokens": [1, 2]}
    text = answer_to(DetokenizeSurface(), body, STARTED, Written(text="h\u00e9"), Written(text="llo"), END)
    assert text == {"content": "h\u00e9llo", "prompt": "h\u00e9llo"}


@pytest.mark.parametrize(
    ("script", "reason", "outcome", "spent"),
    [
        ([[STARTED, rows(1, 2)], Refused(Reason.RUNNER_LOST)], Reason.RUNNER_LOST, "runner-lost", 9),
        ([[STARTED, rows(1, 2), End(reason="error", prompt_tokens=9, completion_tokens=0)]], Reason.RUNNER_ERROR,
         "runner-error", 9),
        ([Refused(Reason.OPERATION_UNSUPPORTED, param="model")], Reason.OPERATION_UNSUPPORTED, "refused", 0),
    ],
)  # fmt: skip
def test_a_broken_answer_has_a_status_of_its_own_and_is_closed(
    script: list[Any], reason: Reason, outcome: str, spent: int
) -> None:
    async def scenario() -> None:
        world, client = World(), Client(EMBED)
        world.models.script = script
        with pytest.raises(Refused) as caught:
            await ask(world, EmbeddingsSurface(), client)
        assert caught.value.reason is reason
        assert client.sent == []
        assert world.budget.left == world.whole - spent
        (closed,) = (record for record in world.audit.records if isinstance(record, Closed))
        assert (closed.outcome, closed.prompt_tokens) == (outcome, spent)

    run(scenario)


def test_a_caller_who_leaves_is_charged_and_told_nothing() -> None:
    async def scenario() -> None:
        world, client = World(), Client(EMBED)
        world.models.script = [[STARTED], None]
        asking = asyncio.create_task(ask(world, EmbeddingsSurface(), client))
        await until(lambda: bool(world.models.answers))
        client.departure.happen()
        await asking
        assert client.sent == []
        assert world.models.answers[0].cancels >= 1
        assert world.budget.left < world.whole

    run(scenario)


def test_another_method_is_refused() -> None:
    async def scenario() -> None:
        with pytest.raises(Refused) as caught:
            await ask(World(), EmbeddingsSurface(), Client(EMBED, "GET"))
        assert caught.value.reason is Reason.METHOD_NOT_ALLOWED

    run(scenario)


# --- what a body may say --------------------------------------------------------------------------------------------


def decoded(surface: Any, body: dict[str, Any]) -> Any:
    return surface.asked(surface.decode(json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", (TextPrompt(text="a"),)),
        ("", (TextPrompt(text=""),)),
        (["a", ""], (TextPrompt(text="a"), TextPrompt(text=""))),
        ([1, 2], (TokenPrompt(ids=(1, 2)),)),
        ([[1, 2], [3]], (TokenPrompt(ids=(1, 2)), TokenPrompt(ids=(3,)))),
        ([0] * (MAX_EMBED_INPUTS + 1), (TokenPrompt(ids=(0,) * (MAX_EMBED_INPUTS + 1)),)),
    ],
)
def test_inputs_are_texts_or_tokens_one_or_many(given: Any, inputs: tuple[Any, ...]) -> None:
    asked = decoded(EmbeddingsSurface(), {"model": "demo", "input": given, "dimensions": 3, "user": "u"})
    assert asked == Vectors(model="demo", kind="embed", inputs=inputs, dimensions=3)


@pytest.mark.parametrize(
    ("surface", "body", "reason", "param"),
    [
        (EmbeddingsSurface(), {"input": ["a", 1]}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": [[1], "a"]}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": []}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": [[]]}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": [-1]}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": [True]}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": {"text": "a"}}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": ["a"] * (MAX_EMBED_INPUTS + 1)}, Reason.FIELD_INVALID, "input"),
        (EmbeddingsSurface(), {"input": "a", "dimensions": 0}, Reason.FIELD_INVALID, "dimensions"),
        (EmbeddingsSurface(), {"input": "a", "encoding_format": "hex"}, Reason.FIELD_INVALID, "encoding_format"),
        (EmbeddingsSurface(), {"input": "a", "pooling": "cls"}, Reason.FIELD_UNKNOWN, None),
        (EmbeddingsSurface(), {}, Reason.FIELD_INVALID, None),
        (RerankSurface(), {"query": "", "documents": ["a"]}, Reason.FIELD_INVALID, "query"),
        (RerankSurface(), {"query": "q", "documents": []}, Reason.FIELD_INVALID, "documents"),
        (RerankSurface(), {"query": "q", "documents": [{"text": "a", "x": 1}]}, Reason.FIELD_INVALID, "documents"),
        (RerankSurface(), {"query": "q", "documents": ["a"], "top_n": 0}, Reason.FIELD_INVALID, "top_n"),
        (TokenizeSurface(), {}, Reason.FIELD_INVALID, "content"),
        (TokenizeSurface(), {"content": "a", "prompt": "b"}, Reason.FIELD_INVALID, "content"),
        (TokenizeSurface(), {"content": "a", "parse_special": True}, Reason.FIELD_UNKNOWN, None),
        (DetokenizeSurface(), {"tokens": [1.5]}, Reason.FIELD_INVALID, "tokens"),
        (DetokenizeSurface(), {"tokens": [2**31]}, Reason.FIELD_INVALID, "tokens"),
    ],
)
def test_a_body_that_is_not_understood_whole_is_refused(
    surface: Any, body: dict[str, Any], reason: Reason, param: str | None
) -> None:
    with pytest.raises(Refused) as caught:
        decoded(surface, {"model": "demo", **body})
    assert (caught.value.reason, caught.value.param) == (reason, param)


@pytest.mark.parametrize("surface", [EmbeddingsSurface(), RerankSurface(), TokenizeSurface(), DetokenizeSurface()])
@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"model":"demo","model":"demo"}', b"{" * 100, b'{"model":NaN}', b"\xff"]
)
def test_a_body_that_is_no_object_is_refused(surface: Any, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        surface.decode(body)
    assert caught.value.reason in {Reason.JSON_INVALID, Reason.FIELD_INVALID}
