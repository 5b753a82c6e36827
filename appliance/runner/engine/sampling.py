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

With a constraint a token is drawn first and checked alone; only when it is not allowed, the best 1,000 or more are, and
the whole vocabulary only if too few of these are allowed. What comes out is what a check of all would have given.

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
from appliance.runner.engine.candidates import MAX_DEPTH, MAX_SHARED_DEPTH, Candidates, Row, Rules
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.logprobs import Logprobs, logprobs_of
from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.native import llama, short_call
from appliance.runner.engine.vocabulary import NO_IDS, Ids, Vocabulary

MAX_TOP_K: Final = 1000
CHECKED_FIRST: Final = 1000
"""How many of the best tokens, at least, a grammar looks at before it looks at all."""
FORBIDDING_BIAS: Final = -100.0
NOT_FINITE: Final = "the model's logits are not finite"
NOTHING_ALLOWED: Final = "nothing that the request allows can come next"

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
        return self.drawn(row, self._choose(row))

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

    def _choose(self, row: Row) -> int | None:
        token = self._choose_freely(row)
        if token is None or self._constraint is None or self._constraint.allows(token):
            return token
        return self._choose_among(row, self._allowed(self._constraint, row))

    def _choose_freely(self, row: Row) -> int | None:
        if self._takes_best:
            best = int(row.argmax())
            if best not in self._never:
                return best if math.isfinite(row[best]) else None
        return self._choose_among(row, self._near(row, self._keep))

    def _choose_among(self, row: Row, ids: Ids) -> int | None:
        return self.candidates.choose(self.chain, row, ids, self._rules)

    def _allowed(self, constraint: CompiledConstraint, row: Row) -> Ids:
        """Ids, rising, that the constraint allows: all that can be among the best of those."""
        depth = max(CHECKED_FIRST, 2 * self._keep)
        if depth <= MAX_DEPTH:
            allowed = constraint.allowed(self._near(row, depth))
            if len(allowed) >= self._keep:
                return allowed
        return constraint.all_allowed(self._rules.never)

    def _near(self, row: Row, depth: int) -> Ids:
        rules = self._rules
        if self._window:
            rules = rules._replace(always=np.union1d(rules.always, np.array(self._window)))
        return self.candidates.near(row, depth, rules)

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


def draw_rows(samplers: Sequence[Sampler], rows: NDArray[np.float32]) -> list[Draw | None]:
    """The next token of every answer of a step. ``rows`` are their logits in the same order: (answers, vocabulary).

    All samplers have the same ``candidates``.
    """
    depths = {sampler.shared_depth for sampler in samplers}
    if len(samplers) > 1 and len(depths) == 1 and (depth := depths.pop()):
        tokens = samplers[0].candidates.draw_each([sampler.chain for sampler in samplers], rows, depth)
        if tokens is not None:
            return [sampler.drawn(row, token) for sampler, row, token in zip(samplers, rows, tokens, strict=True)]
    return [sampler.draw(row) for sampler, row in zip(samplers, rows, strict=True)]


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
