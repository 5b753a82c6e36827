"""Drawing the next token.

A request's own llama.cpp chain, in the order of llama.cpp's server (penalties, top-k, typical, top-p, min-p,
temperature, seeded draw; with mirostat penalties, temperature, mirostat), sees only the tokens that can matter
(``engine.candidates``). Their number is exact: top-k, and as many more as there are tokens that a penalty or a bias
can push down; tokens that one can push up are looked at wherever they stand.

Where this is not what llama.cpp does with a whole vocabulary:

- ``top_k`` 0 means 1,000, the largest that the wire accepts, and mirostat chooses among the best 1,000 too: sorting a
  whole vocabulary of 152,000 takes 20 ms per token, and nothing beyond the thousandth has ever mattered.
- A temperature below a millionth is 0, the best token: what is divided by it would leave the range of numbers.
- Penalties hold with mirostat too.

The penalties' window begins with the end of the prompt. Choice ``i`` of a request that names a seed uses ``seed + i``.

With a constraint a token is drawn first and checked alone; only when it is not allowed, what is allowed is searched for
(``engine.search``), and the token drawn again among that. What comes out is what a check of all would have given.

Trusts: ``Sampling`` for its ranges (the message's decoder checked them), for finite numbers and for tokens that exist
(``is_finite`` and ``biases_fit``, which its owner asked).
Promises: a token id below the vocabulary's size that the constraint allows, or none and the reason.
Not here: what ends an answer (``engine.steps``).
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.core.values import Sampling
from appliance.runner.engine.candidates import MAX_SHARED_DEPTH, Candidates, Row, Rules
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.logprobs import Logprobs, logprobs_of
from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.native import llama, short_call
from appliance.runner.engine.search import Goal, Search
from appliance.runner.engine.vocabulary import NO_IDS, Ids, Vocabulary

MAX_TOP_K: Final = 1000
FORBIDDING_BIAS: Final = -100.0
NOT_FINITE: Final = "the model's logits are not finite"
NOTHING_ALLOWED: Final = "nothing that the request allows can come next"

_NO_PART: Final = 25 * math.log(2)
_LEAST_CUT: Final = 1e-6
_SURE_TOP_P: Final = 0.999  # nearer to 1 a sum of rounded probabilities may never reach it
_ROUNDING: Final = 1e-3  # of a logit, beside what single precision makes of one of 10,000
_LEAST_TEMPERATURE: Final = 1e-6
_MIROSTAT_TOKENS: Final = 100  # from which mirostat 1 estimates the distribution, as in its paper and in llama.cpp
_SEEDS: Final = 2**32 - 1  # the one above them all means "random" to llama.cpp, which would open /dev/urandom

_accept = short_call("llama_sampler_accept")


class Draw(NamedTuple):
    token: int
    logprobs: Logprobs | None = None


class Sampler:
    """The sampling state of one answer. ``close`` frees it; only the engine thread touches it.

    The sampler owns ``constraint`` from here on. ``choice`` counts the answers to one request from 0. Raises
    ``MemoryError``.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: TokenIds,
        constraint: CompiledConstraint | None,
        candidates: Candidates,
        choice: int = 0,
    ) -> None:
        self.failure = NOT_FINITE
        """Why the last ``draw`` gave nothing."""
        self._constraint = constraint
        self.candidates: Final = candidates
        self._logprobs = sampling.logprobs
        self._greedy = sampling.temperature < _LEAST_TEMPERATURE
        self._rules = _rules(sampling, constraint, candidates.vocabulary)
        self._never = frozenset(self._rules.never.tolist())
        self._penalised = _penalises(sampling)
        self._window: deque[int] | None = deque(maxlen=sampling.repeat_last_n) if _lifts(sampling) else None
        self._keep = self._best_needed(sampling)
        self._goal = Goal(self._keep, _margin(sampling, greedy=self._greedy))
        self.chain = self._chain_for(sampling, choice)
        self.shared_depth: Final = self._depth_without_rules()
        """Among how many of the best of a row ``chain`` chooses; 0 when there is more to know or to check."""
        self._takes_best = self.chain is None and not len(self._rules.biased)
        if self._penalised:
            for token in prompt[-sampling.repeat_last_n :].tolist():
                self._remember(token)

    def _best_needed(self, sampling: Sampling) -> int:
        best = 1 if self._greedy and sampling.typical_p == 1.0 else sampling.top_k or MAX_TOP_K
        if sampling.mirostat and not self._greedy:
            best = MAX_TOP_K
        window = sampling.repeat_last_n if self._penalised else 0
        return best + window + len(self._rules.biased)

    def _chain_for(self, sampling: Sampling, choice: int) -> Any:
        """None when the best token is wanted and nothing but biases changes the order."""
        if self._greedy and not self._penalised and sampling.typical_p == 1.0:
            return None
        parameters = llama.llama_sampler_chain_default_params()
        parameters.no_perf = True
        chain = llama.llama_sampler_chain_init(parameters)
        try:
            for part in _parts(sampling, self.candidates.vocabulary.size, self._greedy, choice):
                if not part:
                    raise MemoryError("llama.cpp could not make a sampler")
                llama.llama_sampler_chain_add(chain, part)  # the chain owns it from here on
        except BaseException:
            llama.llama_sampler_free(chain)
            raise
        return chain

    def _depth_without_rules(self) -> int:
        free = self.chain is not None and self._window is None and self._constraint is None
        alone = not free or len(self._rules.always) or len(self._rules.never)
        return 0 if alone or self._keep > MAX_SHARED_DEPTH else self._keep

    def draw(self, row: Row) -> Draw | None:
        """One row of logits -> the next token; None when there is none, and ``failure`` says why."""
        return self.finish(self.begin(row))

    def begin(self, row: Row) -> Draw | Search | None:
        """``draw``, or if the constraint does not allow what was drawn, the search for what it does; ``end`` it."""
        token = self._choose_freely(row)
        if token is None or self._constraint is None or self._constraint.allows(token):
            return self.drawn(row, token)
        return Search(row, self._constraint, self.candidates, self._rules_now(), self._goal)

    def end(self, search: Search) -> Draw | None:
        """The draw that a search, which is over, was for."""
        return self.drawn(search.row, self._choose_among(search.row, search.allowed))

    def finish(self, begun: Draw | Search | None) -> Draw | None:
        """What was begun, however long it takes."""
        if not isinstance(begun, Search):
            return begun
        begun.finish()
        return self.end(begun)

    def drawn(self, row: Row, token: int | None) -> Draw | None:
        """``draw``, once ``chain`` has chosen."""
        if token is None:
            self.failure = NOT_FINITE if not np.isfinite(row).all() else NOTHING_ALLOWED
            return None
        drawn = Draw(token)
        if self._logprobs is not None:
            logprobs = logprobs_of(row, token, self._logprobs, self.candidates.numbers)
            if logprobs is None:
                self.failure = NOT_FINITE
                return None
            drawn = Draw(token, logprobs)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._penalised:
            self._remember(token)
        return drawn

    def _choose_freely(self, row: Row) -> int | None:
        if self._takes_best:
            best = int(row.argmax())
            if best not in self._never:
                return best if math.isfinite(row[best]) else None
        return self._choose_among(row, self._near(row, self._keep))

    def _choose_among(self, row: Row, ids: Ids) -> int | None:
        return self.candidates.choose(self.chain, row, ids, self._rules)

    def _near(self, row: Row, depth: int) -> Ids:
        return self.candidates.near(row, depth, self._rules_now())

    def _rules_now(self) -> Rules:
        if not self._window:
            return self._rules
        return self._rules._replace(always=np.union1d(self._rules.always, np.array(self._window)))

    def _remember(self, token: int) -> None:
        if self._window is not None:
            self._window.append(token)
        _accept(self.chain, token)

    def close(self) -> None:
        if self.chain is not None:
            llama.llama_sampler_free(self.chain)
            self.chain = None
        if self._constraint is not None:
            self._constraint.close()
            self._constraint = None


def draw_rows(samplers: Sequence[Sampler], rows: NDArray[np.float32]) -> list[Draw | Search | None]:
    """The next token of every answer of a step, or the search for it: ``Sampler.begin``. ``rows`` are their logits in
    the same order: (answers, vocabulary).

    All samplers have the same ``candidates``.
    """
    depths = {sampler.shared_depth for sampler in samplers}
    if len(samplers) > 1 and len(depths) == 1 and (depth := depths.pop()):
        tokens = samplers[0].candidates.draw_each([sampler.chain for sampler in samplers], rows, depth)
        if tokens is not None:
            return [sampler.drawn(row, token) for sampler, row, token in zip(samplers, rows, tokens, strict=True)]
    return [sampler.begin(row) for sampler, row in zip(samplers, rows, strict=True)]


def is_finite(sampling: Sampling) -> bool:
    """Whether every number is one. msgspec's ranges let NaN through where a comparison decides."""
    numbers = [value for name in sampling.__struct_fields__ if isinstance(value := getattr(sampling, name), float)]
    return all(map(math.isfinite, [*numbers, *(bias for _, bias in sampling.logit_bias)]))


def biases_fit(sampling: Sampling, vocabulary_tokens: int) -> bool:
    """Whether every token that a bias names exists."""
    return all(token < vocabulary_tokens for token, _ in sampling.logit_bias)


def _penalises(sampling: Sampling) -> bool:
    changes = sampling.repeat_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
    return bool(changes and sampling.repeat_last_n)


def _lifts(sampling: Sampling) -> bool:
    """Whether a token can become likelier for having been there."""
    lifts = sampling.repeat_penalty < 1.0 or min(sampling.presence_penalty, sampling.frequency_penalty) < 0.0
    return lifts and _penalises(sampling)


def _margin(sampling: Sampling, *, greedy: bool) -> float:
    """By how much a logit may be below one that may be drawn, and yet matter.

    Greedily nothing below it does. Top-p adds up probabilities in single precision from the best one down: what is less
    than 2**-25 of the first changes no sum (round to even), and is cut off by top-p itself or by min-p. Where only
    min-p cuts, it cuts there.
    """
    if _penalises(sampling) or sampling.typical_p != 1.0:
        return math.inf
    if greedy:
        return 0.0
    if sampling.mirostat:
        return math.inf
    cut = -math.log(sampling.min_p) if sampling.min_p >= _LEAST_CUT else math.inf
    if sampling.top_p == 1.0:
        return cut + _ROUNDING
    return _NO_PART + _ROUNDING if sampling.top_p <= _SURE_TOP_P or cut < _NO_PART else math.inf


def _rules(sampling: Sampling, constraint: CompiledConstraint | None, vocabulary: Vocabulary) -> Rules:
    biases: dict[int, float] = {}
    for token, bias in sampling.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    never = np.concatenate(
        (
            np.array([token for token, bias in biases.items() if bias <= FORBIDDING_BIAS], np.int64),
            vocabulary.suppressed,
            vocabulary.ends if sampling.ignore_eos else NO_IDS,
            NO_IDS if constraint is None else constraint.never,
        )
    )
    biased = sorted(set(biases) - set(never.tolist()))
    return Rules(
        always=np.array(biased, np.int64),
        never=np.unique(never),
        biased=np.array(biased, np.int64),
        biases=np.array([biases[token] for token in biased], np.float32),
    )


def _parts(sampling: Sampling, vocabulary_tokens: int, greedy: bool, choice: int) -> Iterator[Any]:
    """The samplers of a chain. The caller owns each."""
    if _penalises(sampling):
        yield llama.llama_sampler_init_penalties(
            vocabulary_tokens,
            sampling.repeat_last_n,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    if sampling.mirostat and not greedy:
        yield from _mirostat(sampling, vocabulary_tokens, choice)
        return
    yield llama.llama_sampler_init_top_k(sampling.top_k or MAX_TOP_K)
    yield llama.llama_sampler_init_typical(sampling.typical_p, 1)
    if greedy:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    yield llama.llama_sampler_init_dist(_seed(sampling, choice))


def _mirostat(sampling: Sampling, vocabulary_tokens: int, choice: int) -> Iterator[Any]:
    seed, tau, eta = _seed(sampling, choice), sampling.mirostat_tau, sampling.mirostat_eta
    yield llama.llama_sampler_init_top_k(MAX_TOP_K)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    if sampling.mirostat == 1:
        yield llama.llama_sampler_init_mirostat(vocabulary_tokens, seed, tau, eta, _MIROSTAT_TOKENS)
    else:
        yield llama.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _seed(sampling: Sampling, choice: int) -> int:
    seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed + choice
    return seed % _SEEDS
