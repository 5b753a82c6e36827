"""Everything at once, for as long as one likes, at one runner: and every caller must get its own text.

Each question has a mark in it, and its answer is that mark's script (``marked_model``), whole and of no other: a token
of somebody else's, or a cell of the cache that was another request's, would show.

What happens is drawn: questions of all kinds and lengths in bursts beyond the slots, answers that are drawn, forced to
stop or cut short, callers that leave early, gateways that die (whoever takes the channel over begins with a reset), and
now and then silence until all have ended.
"""

import random
import statistics
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from appliance.core.values import Message, Sampling
from appliance.ipc.messages import Conversation, Submit, TextPrompt, TokenPrompt
from tests.support.live_runner import children, status
from tests.support.marked_model import MARKS, STEPS, filler_token, mark, mark_token, script
from tests.support.runner_client import GREEDY, Answer, RunnerClient

_TENANTS: Final = ("red", "green", "blue")
_ALIKE_BY_CHANCE: Final = 6
_SECONDS_BETWEEN_SAMPLES: Final = 0.25


@dataclass(frozen=True)
class Question:
    """And what has to be the answer. One that is cut short is the beginning of the mark's script: what was held back
    for a stop string is let go then. Those with the same ``document``, 0 is none, begin alike with so many tokens."""

    number: int
    mark: int
    document: int
    document_tokens: int
    prompt: Conversation | TextPrompt | TokenPrompt
    sampling: Sampling
    max_tokens: int
    text: str
    tokens: int
    reason: str


@dataclass
class Report:
    """``megabytes`` of memory, sampled evenly."""

    whole: int = 0
    cancelled: int = 0
    resets: int = 0
    refused: int = 0
    cached_tokens: int = 0
    megabytes: list[float] = field(default_factory=list)

    @property
    def growth_megabytes(self) -> float:
        """From the second quarter of the time to the last: the first is for caches to fill."""
        quarter = len(self.megabytes) // 4
        return statistics.median(self.megabytes[-quarter:]) - statistics.median(self.megabytes[quarter : 2 * quarter])


class Questions:
    """Token ids, texts and conversations; greedy, drawn, and with a stop string. Some begin with a document that others
    ask about too, some have just been asked; documents change, so that there is always one that is new to somebody."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._count = 0
        self._recent: deque[Question] = deque(maxlen=30)
        self._documents = [self._document() for _ in range(6)]

    def draw(self) -> Question:
        if self._recent and self._chance.random() < 0.2:
            return self._chance.choice(self._recent)
        if self._chance.random() < 0.05:
            self._documents[self._chance.randrange(len(self._documents))] = self._document()
        question = self._new()
        self._recent.append(question)
        return question

    def _new(self) -> Question:
        chance, number, document, most = self._chance, self._chance.randrange(MARKS), (0, []), self._most_tokens()
        tokens, reason, sampling = min(most, STEPS), "length" if most <= STEPS else "stop", GREEDY
        text = script(number, tokens)
        if chance.random() < 0.3:
            sampling = Sampling(temperature=0.7, seed=chance.randrange(2**32 - 2))
        elif chance.random() < 0.3:
            step = chance.randrange(STEPS)
            sampling = Sampling(temperature=0.0, presence_penalty=0.5, stop=(f" {number}.{step} ",))
            if step + 1 < tokens:  # the space that ends it is the next token's
                tokens, reason, text = step + 2, "stop", script(number, step)
        kind = chance.random()
        if kind < 0.6:
            document = chance.choice(self._documents)
        return Question(
            number=self._next(),
            mark=number,
            document=document[0],
            document_tokens=len(document[1]),
            prompt=self._prompt(number, kind, document[1]),
            sampling=sampling,
            max_tokens=most,
            text=text,
            tokens=tokens,
            reason=reason,
        )

    def _prompt(self, number: int, kind: float, document: list[int]) -> Conversation | TextPrompt | TokenPrompt:
        if document:
            own = [*self._fillers(0, 30), mark_token(number), *self._fillers(0, 30)]
            return TokenPrompt(ids=tuple(document + own))
        text = "".join(chr(token - filler_token(0)) for token in self._fillers(0, 200))
        text = text[: len(text) // 2] + mark(number) + text[len(text) // 2 :]
        return TextPrompt(text=text) if kind < 0.8 else Conversation(messages=(Message(role="user", content=text),))

    def _most_tokens(self) -> int:
        return self._chance.randint(1, 2 * STEPS)

    def _document(self) -> tuple[int, list[int]]:
        return self._next(), self._fillers(20, 150)

    def _fillers(self, least: int, most: int) -> list[int]:
        return [filler_token(self._chance.randrange(97, 123)) for _ in range(self._chance.randint(least, most))]

    def _next(self) -> int:
        self._count += 1
        return self._count


class Soak:
    """Reproducible by its seed, but for the order in which the runner's frames meet the callers' deeds."""

    def __init__(self, runner: RunnerClient, slots: int, chance: random.Random) -> None:
        self._runner = runner
        self._questions = Questions(chance)
        self._slots = slots
        self._chance = chance
        self._count = 0
        self._open: dict[str, tuple[Question, bool]] = {}  # by request id: what was asked, and whether it was cancelled
        self._tenants: dict[str, str] = {}
        self._asked: dict[str, Counter[int]] = {tenant: Counter() for tenant in _TENANTS}  # documents and questions
        self.report = Report()
        (self._inner,) = children(runner.process.pid)

    def run(self, seconds: float) -> None:
        """Raises ``AssertionError`` as soon as an answer is not the right one, ``TimeoutError`` when one does not
        come."""
        began = sampled = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            if now >= sampled:
                self.report.megabytes.append(int(status(self._inner)["VmRSS"].split()[0]) * 1024 / 1e6)
                sampled += _SECONDS_BETWEEN_SAMPLES
            self._do_something()
        self._settle()

    def calmly(self, questions: int) -> None:
        """As many at a time as there are slots, none cancelled."""
        for _ in range(questions // self._slots):
            for _ in range(self._slots):
                self._submit()
            self._settle()

    # --- deeds ------------------------------------------------------------------------------------------------------

    def _do_something(self) -> None:
        deed = self._chance.random()
        if not self._open or deed < 0.01:
            for _ in range(self._chance.randint(1, 3 * self._slots)):
                self._submit()
        elif deed < 0.10:
            if len(self._open) < 3 * self._slots:
                self._submit()
        elif deed < 0.12:
            self._cancel()
        elif deed < 0.1205:
            self._reset()
        elif deed < 0.122:
            self._settle()
        else:
            self._receive()

    def _submit(self) -> None:
        self._count += 1
        question = self._questions.draw()
        request_id, tenant = f"q-{self._count}", self._chance.choice(_TENANTS)
        self._runner.send(
            Submit(
                request_id=request_id,
                prompt=question.prompt,
                sampling=question.sampling,
                max_prompt_tokens=1000,
                max_completion_tokens=question.max_tokens,
                cache_partition=tenant,
                principal=tenant,
            )
        )
        self._open[request_id] = question, False
        self._tenants[request_id] = tenant
        self._asked[tenant].update({question.number, question.document})

    def _cancel(self) -> None:
        """The caller has gone. The last one may not even have begun."""
        request_id = self._chance.choice([*self._open, next(reversed(self._open))])
        self._runner.cancel(request_id)
        self._open[request_id] = self._open[request_id][0], True

    def _reset(self) -> None:
        """The gateway died with all its callers; another takes the channel over."""
        self._runner.reset(f"n-{self._count}")
        self._open.clear()
        self._tenants.clear()
        self.report.resets += 1

    def _settle(self) -> None:
        while self._open:
            self._receive()

    def _receive(self) -> None:
        message = self._runner.receive()
        request_id = getattr(message, "request_id", "")
        answer = self._runner.answers[request_id]
        if answer.done:
            del self._runner.answers[request_id]
            self._judge(answer, *self._open.pop(request_id), self._tenants.pop(request_id))

    # --- judgements -------------------------------------------------------------------------------------------------

    def _judge(self, answer: Answer, question: Question, cancelled: bool, tenant: str) -> None:
        if answer.refused is not None:
            assert answer.refused.reason == "overloaded", answer.refused
            assert len(self._open) >= self._slots, "refused although there is room"
            self.report.refused += 1
            return
        end = answer.end
        assert end is not None
        if cancelled:
            assert script(question.mark).startswith(answer.text)
        else:
            assert answer.text == question.text
            assert (end.reason, end.completion_tokens) == (question.reason, question.tokens)
        self._judge_cached(end.cached_tokens, question, self._asked[tenant])
        self.report.cached_tokens += end.cached_tokens
        self.report.cancelled += cancelled
        self.report.whole += not cancelled

    def _judge_cached(self, cached: int, question: Question, asked: Counter[int]) -> None:
        """No more than what this tenant asked besides. Two prompts begin alike by chance with a token or two."""
        if question.document and asked[question.number] == 1:
            assert cached <= _ALIKE_BY_CHANCE + (question.document_tokens if asked[question.document] > 1 else 0)
