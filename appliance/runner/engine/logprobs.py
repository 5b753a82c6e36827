"""Log probabilities of a token and of the likeliest ones, as the model gave them, before any setting of the request.

Trusts: its caller for a token inside the vocabulary.
Promises: natural logarithms of shares of the whole vocabulary, each at most 0 but for rounding, and finite.
Not here: the pieces of the alternatives at the edge of a channel (``sampled_token`` puts them in).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from appliance.core.values import SampledToken, TokenLogprob
from appliance.runner.engine.candidates import Row, lower_bound


class Logprobs(NamedTuple):
    """Of the token that was drawn, and (id, log probability) of the likeliest, likeliest first."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


def logprobs_of(row: Row, token: int, count: int, scratch: Row) -> Logprobs | None:
    """The log-softmax of a row of logits at ``token`` and at its ``count`` best; None when it is not finite.

    ``scratch`` is as long as the row. Exponentials are taken in single precision and added pairwise: good to 1e-6.
    """
    top = row.max()
    if not np.isfinite(top):
        return None
    with np.errstate(over="ignore"):  # a difference too large for single precision is a probability of 0
        np.subtract(row, top, out=scratch)
    np.exp(scratch, out=scratch)
    total = float(top) + float(np.log(scratch.sum()))
    logprob = float(row[token]) - total
    if not np.isfinite(logprob):
        return None
    best = [(int(near), float(row[near]) - total) for near in _best(row, count)]
    return Logprobs(token, logprob, tuple(pair for pair in best if np.isfinite(pair[1])))


def _best(row: Row, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of the ``count`` best logits, best first; of equal ones the lowest id first."""
    bound = lower_bound(row, count) if count else None
    near = np.arange(len(row)) if bound is None else np.flatnonzero(row >= bound)
    return near[np.argsort(-row[near], kind="stable")[:count]]


def sampled_token(logprobs: Logprobs, piece: Callable[[int], bytes]) -> SampledToken:
    """What goes on the wire. ``piece`` gives the bytes of a token."""
    return SampledToken(
        chosen=TokenLogprob(piece=piece(logprobs.token), logprob=logprobs.logprob),
        alternatives=tuple(
            TokenLogprob(piece=piece(token), logprob=logprob) for token, logprob in logprobs.alternatives
        ),
    )
