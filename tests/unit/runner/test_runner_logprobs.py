"""Log probabilities are those of the model, not those of the settings, and add up."""

import contextlib
import math

import numpy as np
import pytest

from appliance.core.values import Sampling, TokenLogprob
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.logprobs import Logprobs, logprobs_of, sampled_token
from appliance.runner.engine.sampling import NOT_FINITE, Draw, Sampler
from appliance.runner.engine.vocabulary import Vocabulary

NO_PROMPT = np.zeros(0, np.int32)


def rows(size: int) -> np.ndarray:
    return np.random.default_rng(9).normal(0, 4, (4, size)).astype(np.float32)


def exact(row: np.ndarray) -> np.ndarray:
    double = row.astype(np.float64)
    return double - double.max() - np.log(np.exp(double - double.max()).sum())


def draw(row: np.ndarray, **settings: object) -> Draw | None:
    candidates = Candidates(Vocabulary(size=len(row)))
    with contextlib.closing(Sampler(Sampling(**settings), NO_PROMPT, None, candidates)) as sampler:
        drawn = sampler.draw(row)
        assert drawn is not None or sampler.failure == NOT_FINITE
        return drawn


@pytest.mark.parametrize("size", [1, 15, 300, 30_000])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_do_not_differ_from_a_softmax_in_double_precision(size: int, count: int) -> None:
    for row in rows(size):
        expected = exact(row)
        got = logprobs_of(row, size // 2, count, np.empty(size, np.float32))
        assert got is not None and got.token == size // 2
        assert math.isclose(got.logprob, expected[size // 2], rel_tol=1e-6, abs_tol=1e-6)
        best = np.argsort(-row, kind="stable")[:count]
        assert [token for token, _ in got.alternatives] == best.tolist()
        assert np.allclose([logprob for _, logprob in got.alternatives], expected[best], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.1, "top_k": 1},
        {"temperature": 2.0, "mirostat": 2},
        {"repeat_penalty": 2.0, "logit_bias": ((5, 100.0), (6, -100.0))},
    ],
)
def test_settings_do_not_change_logprobs(settings: dict[str, object]) -> None:
    row = rows(5_000)[0]
    before = row.copy()
    drawn = draw(row, seed=1, logprobs=3, **settings)
    assert drawn is not None and drawn.logprobs is not None
    assert drawn.logprobs.token == drawn.token
    assert math.isclose(drawn.logprobs.logprob, exact(row)[drawn.token], rel_tol=1e-6)
    assert [token for token, _ in drawn.logprobs.alternatives] == np.argsort(-row)[:3].tolist()
    assert np.array_equal(row, before)


def test_nobody_gets_logprobs_unasked() -> None:
    drawn = draw(rows(300)[0])
    assert drawn is not None and drawn.logprobs is None


def test_impossible_tokens_are_no_alternatives() -> None:
    row = np.full(300, -np.inf, np.float32)
    row[[7, 9]] = 1.0
    assert logprobs_of(row, 7, 5, np.empty(300, np.float32)) == Logprobs(
        7, pytest.approx(math.log(0.5)), ((7, pytest.approx(math.log(0.5))), (9, pytest.approx(math.log(0.5))))
    )
    assert logprobs_of(row, 8, 5, np.empty(300, np.float32)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [300, 5_000])
def test_logits_that_are_not_finite_have_no_logprobs(bad: float, size: int) -> None:
    row = rows(size)[0]
    row[3] = bad
    assert logprobs_of(row, 7, 5, np.empty(size, np.float32)) is None
    assert draw(row, logprobs=2, seed=1) is None


def test_huge_logits_do_not_overflow() -> None:
    row = np.full(300, -3e38, np.float32)
    row[4] = 3e38
    got = logprobs_of(row, 4, 1, np.empty(300, np.float32))
    assert got == Logprobs(4, 0.0, ((4, 0.0),))


def test_pieces_on_the_wire_are_bytes() -> None:
    told = sampled_token(Logprobs(1, -0.5, ((2, -0.25), (1, -0.5))), lambda token: bytes([0xE0 + token]))
    assert told.chosen == TokenLogprob(piece=b"\xe1", logprob=-0.5)
    assert [each.piece for each in told.alternatives] == [b"\xe2", b"\xe1"]
