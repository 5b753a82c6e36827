"""When to ask a provider again whether the person has signed in (RFC 8628 section 3.5).

Trusts: the caller, who waits as long as it is told to and passes the clock.
Promises: never sooner than the provider's interval; five seconds more after each ``slow_down``; twice as long after
    each time without an answer; an end, when the code expires or after ``MAX_WAIT_SECONDS``.
Not here: asking (``provider``), sleeping (``session``).
"""

from typing import Final

from appliance.cli.login.answers import Declined, DeviceAuthorization
from appliance.core.refusals import Fault
from appliance.identity.https import Unreachable

MAX_WAIT_SECONDS: Final = 1800
MIN_INTERVAL_SECONDS: Final = 1
MAX_FAILURES: Final = 5
_SLOWER_SECONDS: Final = 5

_ENDS: Final = {
    "access_denied": "the sign-in was refused",
    "expired_token": "the code has expired",
}


class Waiting:
    """For one device code, that was given at ``began_seconds`` of a clock that only goes forward."""

    def __init__(self, given: DeviceAuthorization, *, began_seconds: float) -> None:
        self._interval_seconds = max(given.interval, MIN_INTERVAL_SECONDS)
        self._until_seconds = began_seconds + min(given.expires_in, MAX_WAIT_SECONDS)
        self._failures = 0

    def pause_seconds(self, now_seconds: float) -> float:
        """Until the next question. Raises ``Fault`` when it would come too late."""
        if now_seconds + self._interval_seconds > self._until_seconds:
            raise Fault("nobody signed in before the code expired")
        return self._interval_seconds

    def declined(self, error: Declined) -> None:
        """Raises ``Fault`` unless it is worth asking again."""
        self._failures = 0
        if error.code == "slow_down":
            self._interval_seconds += _SLOWER_SECONDS
        elif error.code != "authorization_pending":
            raise Fault(f"{_ENDS.get(error.code, 'the provider refused')} ({error})")

    def unanswered(self, error: Unreachable) -> None:
        """Raises ``Fault`` when it has happened too often in a row."""
        self._failures += 1
        self._interval_seconds *= 2
        if self._failures >= MAX_FAILURES:
            raise Fault(f"the provider does not answer: {error}")
