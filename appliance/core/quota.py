"""Stage 5, the pure part: token budgets. Reserve the worst case before the work, charge what was spent after it.

A budget is a number of tokens per window of fixed length; windows are aligned to the epoch of the caller's clock.
An account is an explicit value and each function returns the next one. One inequality holds in every account:

    spent + reserved  <=  limit

so any number of parallel requests together cannot spend more than the limit. What follows from it:

* a request may start only if its worst case fits; what it does not use is given back when it settles;
* a reservation that lives on into the next window counts against that one, where it will also be charged;
* a reservation that nobody settles in time is charged in full: nobody said what was spent;
* what a runner claims beyond the reservation is not believed, since the stream was cut there.
"""

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Reservation, Value


class Budget(Value, frozen=True, kw_only=True):
    """The rule: ``limit_tokens`` per window, and how long a reservation may stand before it is charged unseen."""

    limit_tokens: int
    window_seconds: int
    hold_seconds: int


class Hold(Value, frozen=True, kw_only=True):
    """One reservation that has not been settled."""

    request_id: str
    tokens: int
    expires_at_seconds: int


class Account(Value, frozen=True, kw_only=True):
    """What one principal has spent in window number ``window`` and holds beyond it."""

    window: int = 0
    spent_tokens: int = 0
    holds: tuple[Hold, ...] = ()

    @property
    def reserved_tokens(self) -> int:
        return sum(hold.tokens for hold in self.holds)

    @property
    def committed_tokens(self) -> int:
        return self.spent_tokens + self.reserved_tokens


def advance(account: Account, budget: Budget, *, now_seconds: int) -> Account:
    """The account as of now: a new window starts at nothing spent, and what has expired is charged or forgotten.

    A clock that goes backwards changes nothing: the account stays in the later window.
    """
    window = max(account.window, now_seconds // budget.window_seconds)
    expired = [hold for hold in account.holds if hold.expires_at_seconds <= now_seconds]
    if window == account.window and not expired:
        return account
    if window == account.window:
        spent_tokens, charged = account.spent_tokens, expired
    else:
        spent_tokens, charged = 0, [hold for hold in expired if _expires_in(hold, budget) == window]
    return Account(
        window=window,
        spent_tokens=spent_tokens + sum(hold.tokens for hold in charged),
        holds=tuple(hold for hold in account.holds if hold.expires_at_seconds > now_seconds),
    )


def _expires_in(hold: Hold, budget: Budget) -> int:
    return hold.expires_at_seconds // budget.window_seconds


def reserve(
    account: Account, budget: Budget, *, request_id: str, principal_key: str, tokens: int, now_seconds: int
) -> tuple[Account, Reservation]:
    """Sets the worst case of one request aside.

    Raises ``Refused(BUDGET_TOO_SMALL)`` when it could never fit, ``Refused(BUDGET_EXHAUSTED)`` with the seconds to the
    next window when it does not fit now, ``Fault`` for a request without cost or one that already holds tokens.
    """
    if tokens < 1:
        raise Fault("a reservation needs a worst case of at least one token")
    if tokens > budget.limit_tokens:
        raise Refused(Reason.BUDGET_TOO_SMALL, f"{tokens} tokens of a limit of {budget.limit_tokens}")
    account = advance(account, budget, now_seconds=now_seconds)
    if any(hold.request_id == request_id for hold in account.holds):
        raise Fault("this request already holds a reservation")
    if account.committed_tokens + tokens > budget.limit_tokens:
        raise Refused(
            Reason.BUDGET_EXHAUSTED,
            f"{tokens} tokens; {account.spent_tokens} spent and {account.reserved_tokens} reserved "
            f"of {budget.limit_tokens}",
            retry_after_seconds=max(1, (account.window + 1) * budget.window_seconds - now_seconds),
        )
    hold = Hold(request_id=request_id, tokens=tokens, expires_at_seconds=now_seconds + budget.hold_seconds)
    return (
        Account(window=account.window, spent_tokens=account.spent_tokens, holds=(*account.holds, hold)),
        Reservation(request_id=request_id, principal_key=principal_key, tokens=tokens),
    )


def settle(
    account: Account, budget: Budget, *, request_id: str, spent_tokens: int, now_seconds: int
) -> tuple[Account, int]:
    """Charges what a request spent, within what it reserved, and returns how many tokens are given back.

    A request that holds nothing (settled before, or expired and charged) changes nothing and gives back 0.
    """
    account = advance(account, budget, now_seconds=now_seconds)
    hold = next((hold for hold in account.holds if hold.request_id == request_id), None)
    if hold is None:
        return account, 0
    charged_tokens = min(max(spent_tokens, 0), hold.tokens)
    settled = Account(
        window=account.window,
        spent_tokens=account.spent_tokens + charged_tokens,
        holds=tuple(other for other in account.holds if other is not hold),
    )
    return settled, hold.tokens - charged_tokens


def remaining_tokens(account: Account, budget: Budget, *, now_seconds: int) -> int:
    """What may still be reserved in this window."""
    return budget.limit_tokens - advance(account, budget, now_seconds=now_seconds).committed_tokens
