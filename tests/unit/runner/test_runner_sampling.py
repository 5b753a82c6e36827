"""The prefilter is exact: with it and without it, the same seeds draw the same tokens."""

import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.runner.engine import sampling as module
from appliance.runner.engine.sampling import Candidates, Sampler, is_finite, plausible

VOCABULARY = 20_000
RNG = np.random.default_rng(5)


def rows(count: int, vocabulary: int = VOCABULARY) -> np.ndarray:
    return RNG.normal(0, 3, (count, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("keep", [1, 40, 104, 1064, 2048])
def test_prefilter_never_leaves_out_one_of_the_best(keep: int) -> None:
    for row in rows(5):
        ids = plausible(row, keep)
        assert ids is not None
        assert set(np.argsort(row)[-keep:]) <= set(ids)
        assert keep > 1000 or len(ids) < VOCABULARY / 4


def test_prefilter_does_not_choke_on_equal_logits() -> None:
    ids = plausible(np.zeros(VOCABULARY, np.float32), 40)
    assert ids is not None and len(ids) == VOCABULARY


@pytest.mark.parametrize("vocabulary", [1, 2048, 4095])
def test_small_vocabulary_is_not_filtered(vocabulary: int) -> None:
    assert plausible(np.zeros(vocabulary, np.float32), 1) is None


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0),
        Sampling(temperature=0.0, presence_penalty=1.5),
        Sampling(frequency_penalty=0.7, presence_penalty=2.0, top_k=5),
        Sampling(frequency_penalty=-2.0, top_k=20),
        Sampling(presence_penalty=-0.5, frequency_penalty=1.0),
    ],
)
def test_prefilter_does_not_change_what_is_drawn(settings: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows(8)

    def draw(seed: int) -> list[int | None]:
        given = Sampling(**{name: getattr(settings, name) for name in settings.__struct_fields__} | {"seed": seed})
        sampler = Sampler(given, Candidates(VOCABULARY), VOCABULARY)
        tokens = [sampler.draw(row) for row in some for _ in range(2)]
        sampler.close()
        return tokens

    filtered = [draw(seed) for seed in range(20)]
    top_k = settings.top_k or module.MAX_TOP_K
    assert top_k <= module.MAX_TOP_K
    monkeypatch.setattr(module, "plausible", lambda _row, _keep: None)
    assert [draw(seed) for seed in range(20)] == filtered
    assert None not in filtered[0]


def test_greedy_does_not_miss_the_best() -> None:
    sampler = Sampler(Sampling(temperature=0.0), Candidates(VOCABULARY), VOCABULARY)
    for row in rows(5):
        assert sampler.draw(row) == row.argmax()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocabulary", [300, VOCABULARY])
def test_logits_that_are_not_finite_draw_nothing(bad: float, temperature: float, vocabulary: int) -> None:
    row = np.full(vocabulary, bad, np.float32)
    sampler = Sampler(Sampling(temperature=temperature, seed=1), Candidates(vocabulary), vocabulary)
    assert sampler.draw(row) is None
    sampler.close()


def test_unseeded_requests_do_not_share_a_seed() -> None:
    row = np.zeros(VOCABULARY, np.float32)

    def draw() -> int | None:
        sampler = Sampler(Sampling(top_k=0, top_p=1.0), Candidates(VOCABULARY), VOCABULARY)
        token = sampler.draw(row)
        sampler.close()
        return token

    assert len({draw() for _ in range(8)}) > 1


def test_nan_is_not_a_sampling_setting() -> None:
    assert is_finite(Sampling())
    assert not is_finite(Sampling(temperature=float("nan")))
    assert not is_finite(Sampling(presence_penalty=float("inf")))
