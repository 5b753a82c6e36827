"""What is drawn from few tokens is what would be drawn from all: with the same seed, the same tokens."""

import contextlib
import itertools

import msgspec
import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.runner.engine.candidates import Candidates, Rules, lower_bound
from appliance.runner.engine.sampling import NOT_FINITE, NOTHING_ALLOWED, Sampler, biases_fit, draw_rows, is_finite
from appliance.runner.engine.vocabulary import Vocabulary
from tests.support.plain_sampling import Chained, Written

SIZE = 9_000
ENDS = (7, 4_000, 8_999)
NO_PROMPT = np.zeros(0, np.int32)
GREEDY = Sampling(temperature=0.0)


def vocabulary(size: int = SIZE, **more: object) -> Vocabulary:
    return Vocabulary(size=size, **more)


def rows(count: int, size: int = SIZE) -> np.ndarray:
    """Logits with a head that settings tell apart: a few good tokens above a noisy rest."""
    random = np.random.default_rng(5)
    made = random.normal(0, 2, (count, size)).astype(np.float32)
    for row in made:
        row[random.integers(0, size, 30)] += random.uniform(2, 9, 30).astype(np.float32)
    return made


def draws(sampling: Sampling, some: np.ndarray, prompt: np.ndarray = NO_PROMPT, choice: int = 0) -> list[int]:
    candidates = Candidates(vocabulary(some.shape[1], ends=np.array(ENDS)))
    with contextlib.closing(Sampler(sampling, prompt, None, candidates, choice)) as sampler:
        return [drawn.token for row in some if (drawn := sampler.draw(row))]


SETTINGS = {
    "default": Sampling(),
    "flat": Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0),
    "cold": Sampling(temperature=0.1),
    "one": Sampling(top_k=1),
    "top-k": Sampling(top_k=1000, top_p=1.0, min_p=0.0, temperature=1.9),
    "top-p": Sampling(top_p=0.3, min_p=0.0, top_k=0),
    "min-p": Sampling(top_p=1.0, min_p=0.3, top_k=0),
    "typical": Sampling(typical_p=0.4),
    "typical-alone": Sampling(typical_p=0.2, top_p=1.0, min_p=0.0, top_k=200, temperature=1.5),
    "typical-greedy": Sampling(typical_p=0.3, temperature=0.0),
    "repeat": Sampling(repeat_penalty=1.3),
    "repeat-long": Sampling(repeat_penalty=1.9, repeat_last_n=1024, top_k=900),
    "repeat-none": Sampling(repeat_penalty=1.9, repeat_last_n=0),
    "repeat-wanted": Sampling(repeat_penalty=0.2, repeat_last_n=200, top_k=5),
    "presence": Sampling(presence_penalty=2.0, frequency_penalty=0.7, top_k=5),
    "frequency-wanted": Sampling(frequency_penalty=-2.0, top_k=20),
    "presence-wanted": Sampling(presence_penalty=-0.5, frequency_penalty=1.0, repeat_penalty=1.1),
    "penalties-greedy": Sampling(temperature=0.0, presence_penalty=1.5, repeat_penalty=1.2),
    "lifted-greedy": Sampling(temperature=0.0, frequency_penalty=-2.0),
    "mirostat": Sampling(mirostat=1),
    "mirostat-strict": Sampling(mirostat=1, mirostat_tau=0.5, mirostat_eta=1.0),
    "mirostat-2": Sampling(mirostat=2, top_k=1, typical_p=0.1),
    "mirostat-2-loose": Sampling(mirostat=2, mirostat_tau=12.0, mirostat_eta=0.9, temperature=1.7),
    "mirostat-penalties": Sampling(mirostat=2, mirostat_tau=2.0, repeat_penalty=1.5),
    "mirostat-greedy": Sampling(mirostat=1, temperature=0.0),
    "bias": Sampling(logit_bias=((3, 9.5), (4_500, 11.0), (8_998, -3.0)), top_k=3),
    "bias-down": Sampling(logit_bias=tuple((token, -60.0) for token in range(100, 140)), top_k=20, min_p=0.0),
    "bias-greedy": Sampling(temperature=0.0, logit_bias=((3, 12.0),)),
    "bias-penalties": Sampling(logit_bias=((3, 12.0), (5, 12.0)), repeat_penalty=1.8, presence_penalty=1.0),
    "bias-mirostat": Sampling(mirostat=2, mirostat_tau=3.0, logit_bias=((3, 12.0), (5, 12.0))),
    "bias-many": Sampling(logit_bias=tuple((token, 7.0) for token in range(0, 5_120, 10)), top_k=1000),
    "banned": Sampling(logit_bias=tuple((token, -100.0) for token in range(512)), top_k=2),
    "ignore-eos": Sampling(ignore_eos=True, top_k=10),
    "ignore-eos-greedy": Sampling(ignore_eos=True, temperature=0.0),
    "everything": Sampling(
        typical_p=0.9, repeat_penalty=0.9, presence_penalty=0.5, logit_bias=((1, 5.0), (2, -100.0)), ignore_eos=True
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_few_candidates_do_not_change_what_is_drawn(name: str) -> None:
    some = rows(12)
    some[:, ENDS[1]] += 8.0
    some[:, 100:140] += 5.0
    prompt = np.concatenate((np.arange(0, SIZE, 6), np.arange(100, 140))).astype(np.int32)
    for seed in (0, 1, 2**32 - 2):
        given = msgspec.structs.replace(SETTINGS[name], seed=seed)
        drawn = draws(given, some, prompt)
        with contextlib.closing(Chained(given, prompt, SIZE, ENDS)) as chained:
            assert drawn == [chained.draw(row) for row in some]
        written = Written(given, prompt, ENDS)
        assert drawn == [written.draw(row) for row in some]


@pytest.mark.parametrize("setting", ["default", "typical", "repeat-wanted", "mirostat", "mirostat-2", "bias"])
@pytest.mark.parametrize("size", [3, 300, 1_023, 4_095])
def test_small_vocabulary_is_no_exception(setting: str, size: int) -> None:
    some = rows(8, size)
    given = msgspec.structs.replace(SETTINGS[setting], seed=3, logit_bias=((1, 2.0),))
    candidates = Candidates(vocabulary(size))
    with (
        contextlib.closing(Sampler(given, NO_PROMPT, None, candidates)) as sampler,
        contextlib.closing(Chained(given, (), size)) as chained,
    ):
        for row in some:
            drawn = sampler.draw(row)
            assert drawn is not None and drawn.token == chained.draw(row)


@pytest.mark.parametrize("depth", [1, 40, 104, 256, 257, 1064, 2048])
def test_candidates_never_leave_out_one_of_the_best(depth: int) -> None:
    candidates = Candidates(vocabulary(20_000))
    for row in rows(5, 20_000):
        ids = candidates.near(row, depth, Rules())
        assert set(np.argsort(row)[-depth:]) <= set(ids)
        assert depth > 1000 or len(ids) < 5_000


@pytest.mark.parametrize("depth", [1, 40, 1000])
@pytest.mark.parametrize("banned", [1, 15, 17, 400, 1500])
def test_banned_tokens_do_not_hide_the_best_of_the_others(depth: int, banned: int) -> None:
    candidates = Candidates(vocabulary(20_000))
    for row in rows(3, 20_000):
        order = np.argsort(-row)
        ids = candidates.near(row, depth, Rules(never=np.sort(order[:banned]), always=np.array([1, 2])))
        assert set(order[banned:][:depth]) <= set(ids)
        assert not set(order[:banned]) & set(ids)


def test_equal_logits_are_all_candidates() -> None:
    assert len(Candidates(vocabulary(20_000)).near(np.zeros(20_000, np.float32), 40, Rules())) == 20_000


@pytest.mark.parametrize("size", [1, 512, 1023])
def test_small_vocabulary_has_no_bound(size: int) -> None:
    assert lower_bound(np.zeros(size, np.float32), 1) is None


def test_greedy_does_not_miss_the_best() -> None:
    some = rows(5)
    assert draws(GREEDY, some) == some.argmax(axis=1).tolist()
    assert draws(Sampling(temperature=1e-30, min_p=0.0), some) == some.argmax(axis=1).tolist()


MIXED = {
    "alike": [Sampling(seed=seed) for seed in range(8)],
    "different depths": [Sampling(seed=1, top_k=top_k, presence_penalty=0.1 * (top_k % 2)) for top_k in range(1, 190)],
    "deep": [Sampling(seed=seed, top_k=200 + seed, presence_penalty=1.0) for seed in range(8)],
    "greedy": [GREEDY] * 8,
    "mixed": [GREEDY, *(Sampling(seed=1), Sampling(seed=2, mirostat=2), Sampling(seed=3, frequency_penalty=-1.0)) * 2],
    "two": [Sampling(seed=seed) for seed in range(2)],
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("size", [1_023, SIZE, 70_000])
def test_rows_are_not_mixed_up(name: str, size: int) -> None:
    settings = MIXED[name]
    some = rows(len(settings), size)
    candidates = Candidates(vocabulary(size))
    samplers = [Sampler(sampling, np.array([5, 6]), None, candidates) for sampling in settings]
    for _ in range(2):
        together = [drawn.token for drawn in draw_rows(samplers, some) if drawn]
    alone = [draws(s, np.stack([row, row]), np.array([5, 6]))[1] for s, row in zip(settings, some, strict=True)]
    assert together == alone
    for sampler in samplers:
        sampler.close()


def test_row_that_is_not_finite_does_not_spoil_the_others() -> None:
    some = rows(8)
    some[3], some[5, ::2] = np.nan, np.inf
    candidates = Candidates(vocabulary())
    samplers = [Sampler(Sampling(seed=seed), NO_PROMPT, None, candidates) for seed in range(8)]
    drawn = draw_rows(samplers, some)
    assert [number for number, each in enumerate(drawn) if each is None] == [3, 5]
    for sampler in samplers:
        sampler.close()


def test_row_of_equals_or_of_few_tokens_does_not_spoil_the_others() -> None:
    some = rows(8)
    some[2] = 1.0
    some[4, 5:] = -np.inf
    settings = [Sampling(seed=seed) for seed in range(8)]
    candidates = Candidates(vocabulary())
    samplers = [Sampler(sampling, NO_PROMPT, None, candidates) for sampling in settings]
    together = [drawn.token for drawn in draw_rows(samplers, some) if drawn]
    assert together == [draws(sampling, row[None])[0] for sampling, row in zip(settings, some, strict=True)]
    for sampler in samplers:
        sampler.close()


def test_no_rows_are_no_draws() -> None:
    assert draw_rows([], np.zeros((0, SIZE), np.float32)) == []


@pytest.mark.parametrize("repeated", [(), tuple(range(30))])
def test_prompt_counts_for_the_penalties(repeated: tuple[int, ...]) -> None:
    row = np.zeros((1, SIZE), np.float32)
    row[0, :30], row[0, 40] = 5.0, 4.0
    drawn = draws(Sampling(temperature=0.0, presence_penalty=2.0), row, np.array(repeated, np.int32))
    assert (drawn == [40]) is bool(repeated)


def test_prompt_before_the_window_does_not_count() -> None:
    row = np.zeros((1, SIZE), np.float32)
    row[0, 3], row[0, 40] = 5.0, 4.0
    prompt = np.array([3] + [50] * 8, np.int32)
    penalised = Sampling(temperature=0.0, presence_penalty=2.0, repeat_last_n=8)
    assert draws(penalised, row, prompt) == [3]
    assert draws(penalised, row, prompt[:-1]) == [40]


def test_choices_of_one_seed_differ_and_repeat() -> None:
    some = rows(8)
    flat = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=2**32 - 2)
    drawn = [draws(flat, some, choice=choice) for choice in range(3)]
    assert all(a != b for a, b in itertools.combinations(drawn, 2))
    assert drawn == [draws(flat, some, choice=choice) for choice in range(3)]
    assert drawn[1] == draws(msgspec.structs.replace(flat, seed=0), some)


def test_unseeded_requests_do_not_share_a_seed() -> None:
    flat = np.zeros((1, SIZE), np.float32)
    assert len({draws(Sampling(top_k=0, top_p=1.0), flat)[0] for _ in range(8)}) > 1


def test_ignored_ends_never_come() -> None:
    row = np.zeros((1, SIZE), np.float32)
    row[0, list(ENDS)] = 50.0
    for setting in ("default", "cold", "mirostat", "ignore-eos-greedy", "presence-wanted"):
        ignoring = msgspec.structs.replace(SETTINGS[setting], ignore_eos=True)
        assert draws(ignoring, row)[0] not in ENDS
        assert draws(msgspec.structs.replace(ignoring, ignore_eos=False), row)[0] in ENDS


def test_tokens_that_the_model_suppresses_never_come() -> None:
    row = np.zeros(SIZE, np.float32)
    row[11] = 50.0
    candidates = Candidates(vocabulary(suppressed=np.array([11])))
    for sampling in (GREEDY, Sampling(), Sampling(mirostat=1), Sampling(logit_bias=((11, 100.0),))):
        with contextlib.closing(Sampler(sampling, NO_PROMPT, None, candidates)) as sampler:
            drawn = sampler.draw(row)
            assert drawn is not None and drawn.token != 11


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=1), GREEDY, Sampling(mirostat=1)], ids=["drawn", "best", "mirostat"]
)
def test_nothing_is_drawn_when_everything_is_banned(sampling: Sampling) -> None:
    banned = msgspec.structs.replace(sampling, logit_bias=tuple((token, -100.0) for token in range(300)))
    sampler = Sampler(banned, NO_PROMPT, None, Candidates(vocabulary(300)))
    assert sampler.draw(np.zeros(300, np.float32)) is None
    assert sampler.failure == NOTHING_ALLOWED
    sampler.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(seed=1),
        Sampling(mirostat=1),
        Sampling(mirostat=2),
        Sampling(typical_p=0.5, repeat_penalty=0.5, logit_bias=((3, 1.0),)),
        Sampling(temperature=0.0, logprobs=2),
    ],
)
@pytest.mark.parametrize("size", [300, SIZE])
def test_logits_that_are_not_finite_draw_nothing(bad: float, sampling: Sampling, size: int) -> None:
    row = np.full(size, bad, np.float32)
    sampler = Sampler(sampling, NO_PROMPT, None, Candidates(vocabulary(size)))
    assert sampler.draw(row) is None
    assert sampler.failure == NOT_FINITE
    sampler.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [300, SIZE])
def test_one_logit_that_is_no_number_does_not_end_the_process(bad: float, size: int) -> None:
    for setting in SETTINGS.values():
        row = rows(1, size)[0]
        row[17] = bad
        within = tuple((token, bias) for token, bias in setting.logit_bias if token < size)
        given = msgspec.structs.replace(setting, logit_bias=within)
        sampler = Sampler(given, NO_PROMPT, None, Candidates(vocabulary(size)))
        drawn = sampler.draw(row)
        assert drawn is None or np.isfinite(row[drawn.token])
        sampler.close()


def test_minus_infinity_is_never_drawn() -> None:
    row = np.full((1, 300), -np.inf, np.float32)
    row[0, 5] = 1.0
    for setting in ("default", "typical", "mirostat", "mirostat-2", "ignore-eos-greedy", "repeat"):
        candidates = Candidates(vocabulary(300))
        with contextlib.closing(Sampler(SETTINGS[setting], NO_PROMPT, None, candidates)) as sampler:
            drawn = sampler.draw(row[0])
            assert drawn is not None and drawn.token == 5


def test_impossible_tokens_do_not_spoil_typicality() -> None:
    row = np.full((1, 300), -np.inf, np.float32)
    row[0, 10:12] = np.log([0.6, 0.4])
    assert draws(Sampling(typical_p=0.2), row) == [10]  # 0.6 is nearest to the mean surprise


@pytest.mark.parametrize("wish", [{"repeat_penalty": 0.1}, {"frequency_penalty": -2.0}, {"presence_penalty": -2.0}])
def test_wanted_repetition_is_found_wherever_it_stands(wish: dict[str, float]) -> None:
    row = np.zeros((1, SIZE), np.float32)
    row[0, :3_000], row[0, 5_000] = 5.0, 3.5
    for temperature in (0.0, 0.01):
        sampling = Sampling(temperature=temperature, top_k=5, **wish)
        assert draws(sampling, row, np.full(3, 5_000, np.int32)) == [5_000]
        assert draws(sampling, row) != [5_000]


def test_huge_logits_do_not_end_the_process() -> None:
    row = np.full(SIZE, 3e38, np.float32)
    row[:10] = -3e38
    for setting in SETTINGS.values():
        sampler = Sampler(setting, NO_PROMPT, None, Candidates(vocabulary()))
        sampler.draw(row)
        sampler.close()


NUMBERS = [name for name in Sampling.__struct_fields__ if isinstance(getattr(Sampling(), name), float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_nan_is_not_a_sampling_setting(name: str) -> None:
    assert is_finite(Sampling()) and len(NUMBERS) == 9
    for bad in (float("nan"), float("inf")):
        assert not is_finite(Sampling(**{name: bad}))
        assert not is_finite(Sampling(logit_bias=((1, 0.0), (2, bad))))


def test_bias_on_a_token_that_does_not_exist_is_found() -> None:
    assert biases_fit(Sampling(logit_bias=((299, 1.0),)), 300)
    assert not biases_fit(Sampling(logit_bias=((0, 1.0), (300, 1.0))), 300)
