"""Budgets hold: reserved, settled and forgotten in whatever order, spent and reserved stay within the limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core import quota
from appliance.core.quota import Account, Budget
from appliance.core.refusals import Fault, Reason, Refused

BUDGET = Budget(limit_tokens=100, window_seconds=60, hold_seconds=600)
NOW = 6_000


def reserve(account, tokens, *, request_id="r1", now_seconds=NOW, budget=BUDGET):
    return quota.reserve(
        account, budget, request_id=request_id, principal_key="p", tokens=tokens, now_seconds=now_seconds
    )


def settle(account, spent_tokens, *, request_id="r1", now_seconds=NOW, budget=BUDGET):
    return quota.settle(account, budget, request_id=request_id, spent_tokens=spent_tokens, now_seconds=now_seconds)


def remaining(account, now_seconds=NOW, budget=BUDGET):
    return quota.remaining_tokens(account, budget, now_seconds=now_seconds)


def test_what_a_request_does_not_spend_is_given_back():
    account, reservation = reserve(Account(), 80)
    assert (reservation.request_id, reservation.principal_key, reservation.tokens) == ("r1", "p", 80)
    assert remaining(account) == 20
    account, returned_tokens = settle(account, 30)
    assert returned_tokens == 50
    assert remaining(account) == 70


def test_a_second_settlement_charges_nothing():
    account, _ = reserve(Account(), 80)
    account, _ = settle(account, 30)
    again, returned_tokens = settle(account, 30)
    assert again == account
    assert returned_tokens == 0


def test_a_settlement_of_an_unknown_request_changes_nothing():
    account, _ = reserve(Account(), 80)
    again, returned_tokens = settle(account, 10, request_id="r2")
    assert remaining(again) == remaining(account)
    assert returned_tokens == 0


def test_a_reservation_beyond_what_is_left_is_refused_until_the_window_ends():
    account, _ = reserve(Account(), 80)
    with pytest.raises(Refused) as refused:
        reserve(account, 21, request_id="r2", now_seconds=NOW + 15)
    assert refused.value.reason is Reason.BUDGET_EXHAUSTED
    assert refused.value.retry_after_seconds == 45
    assert refused.value.detail == "21 tokens; 0 spent and 80 reserved of 100"


def test_the_last_token_can_be_reserved():
    account, _ = reserve(Account(), 99)
    account, _ = reserve(account, 1, request_id="r2")
    assert remaining(account) == 0


def test_a_request_larger_than_the_whole_budget_is_told_that_waiting_is_vain():
    with pytest.raises(Refused) as refused:
        reserve(Account(), 101)
    assert refused.value.reason is Reason.BUDGET_TOO_SMALL
    assert refused.value.retry_after_seconds is None


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_reservation_without_cost_is_a_fault(tokens):
    with pytest.raises(Fault, match="worst case of at least one token"):
        reserve(Account(), tokens)


def test_one_request_cannot_hold_two_reservations():
    account, _ = reserve(Account(), 10)
    with pytest.raises(Fault, match="already holds"):
        reserve(account, 10)


@pytest.mark.parametrize(("claimed", "charged"), [(-5, 0), (0, 0), (80, 80), (81, 80), (2**40, 80)])
def test_a_claim_beyond_the_reservation_is_not_believed(claimed, charged):
    account, _ = reserve(Account(), 80)
    account, returned_tokens = settle(account, claimed)
    assert returned_tokens == 80 - charged
    assert remaining(account) == 100 - charged


def test_a_new_window_starts_with_nothing_spent():
    account, _ = reserve(Account(), 80)
    account, _ = settle(account, 80)
    assert remaining(account, NOW + 59) == 20
    assert remaining(account, NOW + 60) == 100


def test_a_reservation_that_lives_on_counts_against_the_next_window():
    account, _ = reserve(Account(), 80)
    assert remaining(account, NOW + 60) == 20
    account, _ = settle(account, 50, now_seconds=NOW + 60)
    assert remaining(account, NOW + 60) == 50


def test_a_reservation_that_nobody_settles_is_charged_in_full():
    budget = Budget(limit_tokens=100, window_seconds=60, hold_seconds=10)
    account, _ = reserve(Account(), 80, budget=budget)
    account = quota.advance(account, budget, now_seconds=NOW + 10)
    assert (account.spent_tokens, account.holds) == (80, ())
    account, returned_tokens = settle(account, 0, now_seconds=NOW + 11, budget=budget)
    assert returned_tokens == 0
    assert remaining(account, NOW + 11, budget) == 20
    assert remaining(account, NOW + 60, budget) == 100


def test_what_expired_in_a_window_gone_by_is_not_charged_to_this_one():
    budget = Budget(limit_tokens=100, window_seconds=60, hold_seconds=10)
    account, _ = reserve(Account(), 80, budget=budget)
    assert remaining(account, NOW + 600, budget) == 100


def test_a_clock_that_goes_backwards_gives_nothing_back():
    budget = Budget(limit_tokens=100, window_seconds=60, hold_seconds=10)
    account, _ = reserve(Account(), 80, budget=budget)
    account, _ = settle(account, 80, budget=budget)
    account, _ = reserve(account, 20, request_id="r2", now_seconds=NOW - 3_000, budget=budget)
    assert remaining(account, NOW - 2_000, budget) == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle"]),
        st.integers(min_value=0, max_value=6),
        st.integers(min_value=-10, max_value=130),
        st.integers(min_value=-20, max_value=50),
    ),
    max_size=60,
)


@given(steps=STEPS, hold_seconds=st.integers(min_value=1, max_value=200))
def test_spent_and_reserved_never_exceed_the_limit(steps, hold_seconds):
    budget = Budget(limit_tokens=100, window_seconds=60, hold_seconds=hold_seconds)
    account, now_seconds = Account(), NOW
    for verb, request, tokens, passed_seconds in steps:
        now_seconds += passed_seconds
        try:
            if verb == "reserve":
                account, _ = reserve(account, tokens, request_id=f"r{request}", now_seconds=now_seconds, budget=budget)
            else:
                held = {hold.request_id: hold.tokens for hold in account.holds}.get(f"r{request}", 0)
                account, returned_tokens = settle(
                    account, tokens, request_id=f"r{request}", now_seconds=now_seconds, budget=budget
                )
                assert 0 <= returned_tokens <= held
        except (Refused, Fault):
            pass
        assert account.spent_tokens >= 0
        assert account.committed_tokens <= budget.limit_tokens
        assert 0 <= remaining(account, now_seconds, budget) <= budget.limit_tokens
