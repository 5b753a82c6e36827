"""How much belongs into a step, by what steps take."""

import pytest

from appliance.runner.engine.economy import Economy

MOST = 512


def taught(of_step: float, of_token: float) -> Economy:
    economy = Economy()
    for tokens, prompt_tokens in ((2, 0), (130, 128), (1, 0), (65, 64)):
        economy.learn(tokens, prompt_tokens, of_step + tokens * of_token)
    return economy


@pytest.mark.parametrize(
    ("of_step", "of_token", "worthwhile"),
    [(0.03, 0.008, 4), (0.008, 0.0001, 80), (0.008, 0.00001, MOST), (0.0, 0.01, 0)],
    ids=["processor", "small-accelerator", "accelerator", "steps-cost-nothing"],
)
def test_prompt_does_not_join_where_its_tokens_cost_more_than_a_step(
    of_step: float, of_token: float, worthwhile: int
) -> None:
    assert taught(of_step, of_token).worthwhile(MOST) == worthwhile


def test_nothing_is_held_back_before_both_kinds_of_steps_were_seen() -> None:
    economy = Economy()
    assert economy.worthwhile(MOST) == MOST
    economy.learn(128, 128, 1.0)
    assert economy.worthwhile(MOST) == MOST
    economy.learn(1, 0, 0.1)
    assert economy.worthwhile(MOST) < MOST


@pytest.mark.parametrize(
    ("plain", "prompted"),
    [((32, 1.0), (36, 1.1)), ((1, 1.0), (129, 1.0)), ((1, 1.0), (129, 0.5)), ((64, 0.1), (20, 0.5))],
    ids=["too-alike", "as-long", "shorter", "fewer"],
)
def test_chance_teaches_nothing(plain: tuple[int, float], prompted: tuple[int, float]) -> None:
    economy = Economy()
    economy.learn(plain[0], 0, plain[1])
    economy.learn(prompted[0], prompted[0], prompted[1])
    assert economy.worthwhile(MOST) == MOST


def test_steps_without_tokens_or_time_do_not_count() -> None:
    economy = taught(0.03, 0.008)
    economy.learn(0, 0, 100.0)
    economy.learn(128, 128, 0.0)
    assert economy.worthwhile(MOST) == 4


def test_what_a_machine_took_once_does_not_count_for_ever() -> None:
    economy = taught(0.03, 0.008)
    for _ in range(16):
        economy.learn(1, 0, 0.0081)
        economy.learn(128, 128, 0.0208)
    assert economy.worthwhile(MOST) == 80
