"""Two slow ways to draw tokens, to compare the runner's with: both look at the whole vocabulary at every token.

``Written`` is written out in double precision from the papers' formulas and the order of llama.cpp's server; it knows
nothing of llama.cpp but its random numbers (``std::mt19937``, two words for one double). ``Chained`` is llama.cpp's own
chain over all tokens.
"""

import ctypes
import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from appliance.core.values import Sampling
from appliance.runner.engine.native import llama

MOST = 1000


class Uniform:
    """``std::generate_canonical<double, 53>`` over ``std::mt19937``."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        self._words._legacy_seeding(seed)

    def __call__(self) -> float:
        low, high = (int(word) for word in self._words.random_raw(2))
        return (low + high * 2.0**32) / 2.0**64


class Written:
    def __init__(self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int] = ()) -> None:
        self.s = sampling
        self.ends = list(ends)
        self.window = deque(prompt, maxlen=sampling.repeat_last_n)
        self.uniform = Uniform(sampling.seed)
        self.mu = 2 * sampling.mirostat_tau

    def draw(self, row: np.ndarray) -> int:
        s, logits = self.s, row.astype(np.float64)
        for token, bias in s.logit_bias:
            logits[token] += bias if bias > -100 else -np.inf
        if s.ignore_eos:
            logits[self.ends] = -np.inf
        for token, count in Counter(self.window).items():
            logits[token] *= s.repeat_penalty if logits[token] <= 0 else 1 / s.repeat_penalty
            logits[token] -= count * s.frequency_penalty + s.presence_penalty
        order = np.argsort(-logits, kind="stable")
        order = order[np.isfinite(logits[order])]
        mirostat = s.mirostat if s.temperature else 0
        if mirostat:
            token = self._mirostat(logits / s.temperature, order[:MOST])
        else:
            token = self._usual(logits, order[: s.top_k or MOST])
        self.window.append(token)
        return token

    def _usual(self, logits: np.ndarray, order: np.ndarray) -> int:
        s = self.s
        if s.typical_p < 1:
            p = softmax(logits[order])
            entropy = -(p * np.log(p)).sum()
            typical = np.argsort(np.abs(-np.log(p) - entropy), kind="stable")
            total = np.cumsum(p[typical])
            order = order[typical[: 1 + np.argmax(total > s.typical_p) if total[-1] > s.typical_p else None]]
        if s.top_p < 1:
            order = order[np.argsort(-logits[order], kind="stable")]
            total = np.cumsum(softmax(logits[order]))
            order = order[: 1 + np.argmax(total >= s.top_p) if total[-1] >= s.top_p else None]
        if s.min_p:
            order = order[logits[order] >= logits[order].max() + math.log(s.min_p)]
        if not s.temperature:
            return int(order[np.argmax(logits[order])])
        return int(order[self._pick(softmax(logits[order] / s.temperature))])

    def _pick(self, p: np.ndarray) -> int:
        return int(np.argmax(np.cumsum(p) >= self.uniform() * p.sum()))

    def _mirostat(self, logits: np.ndarray, order: np.ndarray) -> int:
        s, p = self.s, softmax(logits[order])
        if s.mirostat == 1:
            t = np.log(np.arange(2, 101) / np.arange(1, 100))[: len(p) - 1]
            b = np.log(p[:-1] / p[1:])[:99]
            s_hat = (t * b).sum() / (t * t).sum()
            epsilon = s_hat - 1
            k = ((epsilon * 2**self.mu) / (1 - len(logits) ** -epsilon)) ** (1 / s_hat)
            kept = max(int(k), 1) if k < 2**31 else 1  # an int that overflows is INT_MIN there
        else:
            kept = max(int((-np.log2(p) <= self.mu).sum()), 1)
        p = softmax(logits[order[:kept]])
        chosen = self._pick(p) if kept > 1 else 0  # std::discrete_distribution draws nothing for one
        self.mu -= s.mirostat_eta * (-math.log2(p[chosen]) - s.mirostat_tau)
        return int(order[chosen])


class Chained:
    """Biases and the ends that may not come are the chain's own biases here."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocabulary: int, ends: Sequence[int] = ()) -> None:
        s = sampling
        greedy = s.temperature == 0
        biases = [(t, b if b > -100 else -math.inf) for t, b in s.logit_bias]
        biases += [(t, -math.inf) for t in ends] if s.ignore_eos else []
        given = (llama.llama_logit_bias * max(len(biases), 1))(*biases)
        penalties = (s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
        parts = [
            llama.llama_sampler_init_logit_bias(vocabulary, len(biases), given),
            llama.llama_sampler_init_penalties(vocabulary, *penalties),
        ]
        if s.mirostat and not greedy:
            parts += [llama.llama_sampler_init_top_k(MOST), llama.llama_sampler_init_temp(s.temperature)]
            tau, eta = s.mirostat_tau, s.mirostat_eta
            if s.mirostat == 1:
                parts.append(llama.llama_sampler_init_mirostat(vocabulary, s.seed, tau, eta, 100))
            else:
                parts.append(llama.llama_sampler_init_mirostat_v2(s.seed, tau, eta))
        else:
            parts += [
                llama.llama_sampler_init_top_k(s.top_k or MOST),
                llama.llama_sampler_init_typical(s.typical_p, 0),
                llama.llama_sampler_init_top_p(s.top_p, 0),
                llama.llama_sampler_init_min_p(s.min_p, 0),
                llama.llama_sampler_init_temp(s.temperature),
                llama.llama_sampler_init_dist(s.seed),
            ]
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for part in parts:
            llama.llama_sampler_chain_add(self._chain, part)
        for token in prompt:
            llama.llama_sampler_accept(self._chain, int(token))

    def draw(self, row: np.ndarray) -> int:
        """What can never be drawn is left out: typical-p makes NaN of it."""
        ids = np.flatnonzero(row != -np.inf)
        entries = np.zeros(len(ids), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        entries["id"], entries["logit"] = ids, row[ids]
        data = ctypes.cast(entries.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(data, len(ids), -1, False)
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()
