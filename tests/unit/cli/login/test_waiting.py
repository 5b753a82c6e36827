"""The pace of a device's questions (RFC 8628 section 3.5)."""

import pytest

from appliance.cli.login.answers import Declined, DeviceAuthorization
from appliance.cli.login.waiting import MAX_FAILURES, MAX_WAIT_SECONDS, Waiting
from appliance.core.refusals import Fault
from appliance.identity.https import Unreachable

PENDING = Declined("authorization_pending", "")
SLOW_DOWN = Declined("slow_down", "")


def waiting(**changes: object) -> Waiting:
    fields = {"device_code": "d", "user_code": "u", "verification_uri": "https://a/", "expires_in": 600} | changes
    return Waiting(DeviceAuthorization(**fields), began_seconds=1000.0)  # type: ignore[arg-type]


def test_interval_is_the_providers_or_five_seconds() -> None:
    assert waiting().pause_seconds(1000.0) == 5
    assert waiting(interval=17).pause_seconds(1000.0) == 17


def test_provider_that_wants_no_pause_is_still_not_asked_without_one() -> None:
    assert waiting(interval=0).pause_seconds(1000.0) == 1


def test_slow_down_is_for_good_and_each_time_five_seconds_more() -> None:
    one = waiting()
    one.declined(SLOW_DOWN)
    one.declined(PENDING)
    assert one.pause_seconds(1000.0) == 10
    one.declined(SLOW_DOWN)
    assert one.pause_seconds(1000.0) == 15


def test_no_answer_makes_the_pauses_twice_as_long_until_it_is_given_up() -> None:
    one = waiting()
    for expected in (10, 20, 40, 80):
        one.unanswered(Unreachable("away"))
        assert one.pause_seconds(1000.0) == expected
    with pytest.raises(Fault, match="does not answer: away"):
        one.unanswered(Unreachable("away"))


def test_failures_that_are_not_in_a_row_do_not_end_the_waiting() -> None:
    one = waiting()
    for _ in range(MAX_FAILURES * 2):
        one.unanswered(Unreachable("away"))
        one.declined(PENDING)


@pytest.mark.parametrize("error", ["access_denied", "expired_token", "invalid_grant", "server_error", ""])
def test_any_other_error_ends_the_waiting(error: str) -> None:
    with pytest.raises(Fault):
        waiting().declined(Declined(error, ""))


def test_nothing_is_asked_after_the_code_has_expired() -> None:
    one = waiting(expires_in=30)
    assert one.pause_seconds(1025.0) == 5
    with pytest.raises(Fault, match="before the code expired"):
        one.pause_seconds(1025.1)


def test_person_is_not_waited_for_without_end() -> None:
    one = waiting(expires_in=10**9)
    with pytest.raises(Fault, match="before the code expired"):
        one.pause_seconds(1000.0 + MAX_WAIT_SECONDS)
