"""Vectors, scores and tokens asked of a bare runner over its channel."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.ipc.messages import (
    Detokenise,
    Detokenised,
    Embed,
    Embedded,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    TextPrompt,
    Tokenise,
    TokenPrompt,
    Tokens,
)
from tests.support.runner_client import RunnerClient

PLENTY = 1_000_000


@dataclass
class Told:
    """All that a runner said about one request."""

    started: RunnerStarted | None = None
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    end: RunnerEnd | None = None
    refused: RunnerRefused | None = None

    @property
    def vectors(self) -> NDArray[np.float32]:
        assert self.end is not None and self.end.reason == "stop", self.refused or self.end
        return np.stack(self.rows)

    @property
    def scores(self) -> list[float]:
        return [float(score) for score in self.vectors[:, 0]]

    def add(self, message: Any) -> None:
        assert self.end is None and self.refused is None, f"{message} after the end"
        assert isinstance(message, RunnerStarted | RunnerRefused) == (self.started is None)
        match message:
            case RunnerStarted():
                self.started = message
            case Embedded():
                self.rows += list(np.frombuffer(message.data, "<f4").reshape(-1, message.width))
            case Tokens():
                self.ids += np.frombuffer(message.data, "<i4").tolist()
            case Detokenised():
                self.text += message.text
            case RunnerEnd():
                self.end = message
            case RunnerRefused():
                self.refused = message


class VectorClient:
    """Around a runner's channel; several requests may be under way."""

    def __init__(self, runner: RunnerClient) -> None:
        self.runner = runner
        self.told: dict[str, Told] = {}
        self.ended: list[str] = []

    def send(
        self,
        request_id: str,
        *inputs: str | tuple[int, ...],
        kind: Literal["embed", "rerank"] = "embed",
        max_prompt_tokens: int = PLENTY,
        **options: Any,
    ) -> None:
        prompts = tuple(
            TextPrompt(text=given) if isinstance(given, str) else TokenPrompt(ids=given) for given in inputs
        )
        self.told[request_id] = Told()
        self.runner.send(
            Embed(request_id=request_id, kind=kind, inputs=prompts, max_prompt_tokens=max_prompt_tokens, **options)
        )

    def wait_for(self, *request_ids: str) -> list[Told]:
        while not set(request_ids) <= set(self.ended):
            self.hear()
        return [self.told[request_id] for request_id in request_ids]

    def hear(self) -> None:
        message = self.runner.receive()
        request_id = getattr(message, "request_id", "")
        self.told[request_id].add(message)
        if isinstance(message, RunnerEnd | RunnerRefused):
            self.ended.append(request_id)

    def embed(self, *inputs: str | tuple[int, ...], **options: Any) -> Told:
        request_id = f"v-{len(self.told)}"
        self.send(request_id, *inputs, **options)
        return self.wait_for(request_id)[0]

    def rank(self, query: str, *documents: str, **options: Any) -> Told:
        return self.embed(*documents, kind="rerank", query=query, **options)

    def tokenise(self, text: str, *, add_special: bool = False, max_prompt_tokens: int = PLENTY) -> Told:
        request_id = f"t-{len(self.told)}"
        self.told[request_id] = Told()
        self.runner.send(
            Tokenise(request_id=request_id, text=text, add_special=add_special, max_prompt_tokens=max_prompt_tokens)
        )
        return self.wait_for(request_id)[0]

    def detokenise(self, *ids: int) -> Told:
        request_id = f"d-{len(self.told)}"
        self.told[request_id] = Told()
        self.runner.send(Detokenise(request_id=request_id, ids=ids))
        return self.wait_for(request_id)[0]
