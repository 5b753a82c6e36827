"""What a runner does besides generating: vectors, scores, and the two directions of its vocabulary.

Every request is worked off in small steps between the others' words (``advance``): one block of one input at a time is
tokenised. A request that is whole goes to the engine, or is answered at once where the vocabulary is the answer.

What the numbers mean. ``prompt_tokens`` are those of all inputs, special tokens included, for a score the query's
with every document again; for a ``Detokenise`` the ids. A request that is cancelled costs what is known of it.

Trusts: the peer, as ``channel`` does.
Promises: every accepted request gets ``RunnerStarted`` and exactly one ``RunnerEnd``, unless a ``Reset`` comes first;
all its rows, ids or characters come between them, in order, in frames that fit.
Not here: the socket (``channel``), the batches (``engine.embedding``).
"""

from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from appliance.core.values import FinishReason
from appliance.ipc.messages import (
    Detokenise,
    Detokenised,
    Embed,
    Embedded,
    RunnerEnd,
    RunnerStarted,
    TextPrompt,
    Tokenise,
    TokenPrompt,
    Tokens,
)
from appliance.runner.chat.prompt import PromptError, PromptTooLong
from appliance.runner.engine.embedding import Embedder, VectorJob
from appliance.runner.engine.engine import Engine
from appliance.runner.engine.model import Model, TokenIds
from appliance.runner.outbox import Outbox
from appliance.runner.rounds import Rounds

Asked = Embed | Tokenise | Detokenise

MAX_WAITING: Final = 64
"""Requests here at once. One more is refused as ``overloaded``."""
MAX_WAITING_OF_ONE: Final = 16
"""Of one principal, so that nobody fills the place for the others."""
_FRAME_BYTES: Final = 64 * 1024
_IDS_PER_STEP: Final = 4096
_NOTHING: Final[TokenIds] = np.zeros(0, np.int32)


class _Work:
    """A request that is not whole yet. ``known_tokens`` counts what is known of its price."""

    __slots__ = ("known_tokens", "request_id", "steps")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.known_tokens = 0
        self.steps: Iterator[None] = iter(())


class Desk:
    """One for each channel. The main thread only."""

    def __init__(self, engine: Engine | Embedder, outbox: Outbox) -> None:
        self._model: Model = engine.model
        self._embedder = engine if isinstance(engine, Embedder) else None
        self._outbox = outbox
        self._works: Rounds[_Work] = Rounds()
        self._jobs: dict[str, VectorJob] = {}

    @property
    def preparing(self) -> bool:
        """Whether ``advance`` has anything to do."""
        return bool(self._works)

    def holds(self, request_id: str) -> bool:
        return request_id in self._works or request_id in self._jobs

    def accept(self, asked: Asked) -> None:
        """A request whose id is not in use."""
        if len(self._works) + len(self._jobs) >= MAX_WAITING:
            detail = f"{MAX_WAITING} requests are already here"
            return self._outbox.refuse(asked.request_id, "overloaded", detail, ahead=MAX_WAITING)
        mine = sum(job.principal == asked.principal for job in self._jobs.values())
        if self._works.of(asked.principal) + mine >= MAX_WAITING_OF_ONE:
            detail = f"{MAX_WAITING_OF_ONE} requests of the same principal are already here"
            return self._outbox.refuse(asked.request_id, "overloaded", detail, ahead=MAX_WAITING_OF_ONE)
        if isinstance(asked, Embed) and asked.kind != self._model.offers:
            return self._outbox.refuse(asked.request_id, "not-offered", f"the model is not for {asked.kind}")
        work = _Work(asked.request_id)
        self._works.put(asked.request_id, asked.principal, work)
        match asked:
            case Embed():
                work.steps = self._embed(work, asked)
            case Tokenise():
                work.steps = self._tokenise(work, asked)
            case Detokenise():
                work.steps = self._detokenise(work, asked)
        return None

    def advance(self) -> None:
        """One step of the request whose turn it is."""
        request_id, principal, work = self._works.take()
        try:
            next(work.steps)
        except StopIteration:
            return
        except PromptTooLong as error:
            self._outbox.refuse(request_id, "prompt-too-long", str(error))
        except (PromptError, ValueError) as error:
            self._outbox.refuse(request_id, "field-invalid", str(error))
        else:
            self._works.put(request_id, principal, work)

    def cancel(self, request_id: str) -> None:
        """No effect on a request that has just ended, or is another's."""
        if work := self._works.pop(request_id):
            work.steps = iter(())
            self._start(work)
            self._end(request_id, work.known_tokens, "cancelled")
        elif job := self._jobs.get(request_id):
            job.cancelled = True

    def reset(self) -> None:
        """Forgets every request."""
        self.leave()
        self._jobs.clear()
        self._works.clear()

    def leave(self) -> None:
        """Nobody is there to be told any more."""
        for job in self._jobs.values():
            job.cancelled = True

    def take_events(self) -> None:
        """Tells what the engine has computed."""
        if self._embedder is None:
            return
        rows: dict[str, list[bytes]] = {}
        for event in self._embedder.take_events():
            job = event.job
            if self._jobs.get(job.request_id) is not job:
                continue  # forgotten by a reset
            if event.row is not None:
                rows.setdefault(job.request_id, []).append(event.row.astype("<f4").tobytes())
            if event.ended is not None:
                self._tell_rows(job.request_id, rows.pop(job.request_id, []))
                del self._jobs[job.request_id]
                self._end(job.request_id, _tokens_of(job.inputs), event.ended, event.detail)
        for request_id, ready in rows.items():
            self._tell_rows(request_id, ready)

    # --- the three kinds of work ------------------------------------------------------------------------------------

    def _embed(self, work: _Work, asked: Embed) -> Iterator[None]:
        embedder = self._embedder
        if embedder is None or asked.dimensions > embedder.width:
            raise PromptError(f"{asked.dimensions} dimensions of a model that has fewer")
        at_most = min(embedder.context_tokens, asked.max_prompt_tokens)
        inputs: list[TokenIds] = []
        query: tuple[TokenIds, ...] = ()
        if asked.kind == "rerank":
            query = ((yield from self._text(asked.query, at_most, truncate=False)),)
        for given in asked.inputs:
            room = embedder.context_tokens - len(self._model.framed(*query, _NOTHING))
            if isinstance(given, TextPrompt):
                tokens = self._model.framed(*query, (yield from self._text(given.text, room, truncate=asked.truncate)))
            else:
                tokens = self._ids(given, embedder.context_tokens, truncate=asked.truncate)
            if not len(tokens):
                raise PromptError("an input is empty")
            inputs.append(tokens)
            work.known_tokens += len(tokens)
            _require_paid(work, asked.max_prompt_tokens)
            yield
        job = self._jobs[asked.request_id] = VectorJob(asked.request_id, asked.principal, inputs, asked.dimensions)
        self._start(work)
        embedder.submit(job)

    def _tokenise(self, work: _Work, asked: Tokenise) -> Iterator[None]:
        tokens = yield from self._text(asked.text, asked.max_prompt_tokens, truncate=False)
        tokens = self._model.framed(tokens) if asked.add_special else tokens
        work.known_tokens = len(tokens)
        _require_paid(work, asked.max_prompt_tokens)
        self._start(work)
        ids = tokens.astype("<i4").tobytes()
        for start in range(0, len(ids), _FRAME_BYTES):
            self._outbox.put(Tokens(request_id=asked.request_id, data=ids[start : start + _FRAME_BYTES]))
        self._end(asked.request_id, work.known_tokens, "stop")

    def _detokenise(self, work: _Work, asked: Detokenise) -> Iterator[None]:
        if max(asked.ids, default=0) >= self._model.vocabulary_tokens:
            raise PromptError("a token id is outside the vocabulary")
        pieces: list[bytes] = []
        for start in range(0, len(asked.ids), _IDS_PER_STEP):
            pieces += map(self._model.piece, asked.ids[start : start + _IDS_PER_STEP])
            yield
        work.known_tokens = len(asked.ids)
        self._start(work)
        text = b"".join(pieces).decode("utf-8", "replace")
        for start in range(0, len(text), _FRAME_BYTES // 4):
            self._outbox.put(Detokenised(request_id=asked.request_id, text=text[start : start + _FRAME_BYTES // 4]))
        self._end(asked.request_id, work.known_tokens, "stop")

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _text(self, text: str, at_most: int, *, truncate: bool) -> Generator[None, None, TokenIds]:
        """Block by block; gives the tokens, at most so many. Raises ``PromptTooLong``, ``ValueError``."""
        known, size = [_NOTHING], 0
        if text:
            for block in self._model.content_tokens(text, first=True):
                known.append(block)
                size += len(block)
                if size > at_most:
                    break
                yield
        return _cut(np.concatenate(known), at_most, truncate=truncate)

    def _ids(self, given: TokenPrompt, at_most: int, *, truncate: bool) -> TokenIds:
        """Token ids as a caller gave them. Raises ``PromptError``: llama.cpp refuses a whole batch for one outside the
        vocabulary."""
        if self._model.offers == "rerank":
            raise PromptError("a document is a text")
        if max(given.ids) >= self._model.vocabulary_tokens:
            raise PromptError("a token id is outside the vocabulary")
        return _cut(np.array(given.ids, np.int32), at_most, truncate=truncate)

    # --- what is said -----------------------------------------------------------------------------------------------

    def _start(self, work: _Work) -> None:
        self._outbox.put(RunnerStarted(request_id=work.request_id, prompt_tokens=max(1, work.known_tokens)))

    def _tell_rows(self, request_id: str, rows: list[bytes]) -> None:
        if not rows:
            return
        at_once = max(1, _FRAME_BYTES // len(rows[0]))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            self._outbox.put(Embedded(request_id=request_id, width=len(some[0]) // 4, data=b"".join(some)))

    def _end(self, request_id: str, tokens: int, reason: FinishReason, detail: str = "") -> None:
        self._outbox.put(
            RunnerEnd(
                request_id=request_id,
                reason=reason,
                prompt_tokens=max(1, tokens),
                completion_tokens=0,
                detail=detail,
            )
        )


def _tokens_of(inputs: list[TokenIds]) -> int:
    return sum(len(tokens) for tokens in inputs)


def _cut(tokens: TokenIds, at_most: int, *, truncate: bool) -> TokenIds:
    if len(tokens) > at_most and not (truncate and at_most > 0):
        raise PromptTooLong(f"an input has more than {max(0, at_most)} tokens")
    return tokens[:at_most]


def _require_paid(work: _Work, max_prompt_tokens: int) -> None:
    if work.known_tokens > max_prompt_tokens:
        raise PromptTooLong(f"the inputs have more than {max_prompt_tokens} tokens")
