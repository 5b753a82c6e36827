"""Token budgets in this process's memory: ``core.quota`` with a dictionary and a clock.

For one gateway process on one event loop. No method awaits anything between reading an account and writing it back,
so the loop runs each as one step and a hundred parallel requests are a hundred steps in some order. A restart forgets
what was spent.

Trusts: the clock; that ``principal_key`` was made by ``core.claims``, so that there are as many accounts as identities.
Promises: spent and reserved tokens of a principal together never exceed its limit; settling twice charges once.
Not here: the arithmetic (``core.quota``); budgets shared between processes.
"""

from collections.abc import Callable

from appliance.core import quota
from appliance.core.quota import Account, Budget
from appliance.core.refusals import Fault
from appliance.core.values import Reservation


class MemoryTokenBudget:
    """``core.ports.TokenBudget`` with one limit for every principal."""

    def __init__(self, budget: Budget, *, now_seconds: Callable[[], int]) -> None:
        """Raises ``Fault`` for a budget that could never admit or never end anything."""
        if min(budget.limit_tokens, budget.window_seconds, budget.hold_seconds) < 1:
            raise Fault("a token budget needs a limit, a window and a holding time of at least one")
        self._budget = budget
        self._now_seconds = now_seconds
        self._accounts: dict[str, Account] = {}
        self._swept_window = 0

    async def reserve(self, request_id: str, principal_key: str, tokens: int) -> Reservation:
        """Sets tokens aside. Raises ``Refused(BUDGET_EXHAUSTED | BUDGET_TOO_SMALL)``, or ``Fault`` for a misuse."""
        now_seconds = self._now_seconds()
        self._sweep(now_seconds)
        account, reservation = quota.reserve(
            self._account(principal_key),
            self._budget,
            request_id=request_id,
            principal_key=principal_key,
            tokens=tokens,
            now_seconds=now_seconds,
        )
        self._accounts[principal_key] = account
        return reservation

    async def settle(self, reservation: Reservation, spent_tokens: int) -> int:
        """Charges what was spent, at most what was reserved, and returns how many tokens were given back.

        Raises nothing: the second settlement of a request, or one after its reservation expired, gives back 0.
        """
        account, returned_tokens = quota.settle(
            self._account(reservation.principal_key),
            self._budget,
            request_id=reservation.request_id,
            spent_tokens=spent_tokens,
            now_seconds=self._now_seconds(),
        )
        self._accounts[reservation.principal_key] = account
        return returned_tokens

    def remaining(self, principal_key: str) -> int:
        """Tokens that this principal may still reserve in the current window."""
        return quota.remaining_tokens(self._account(principal_key), self._budget, now_seconds=self._now_seconds())

    def _account(self, principal_key: str) -> Account:
        return self._accounts.get(principal_key, Account())

    def _sweep(self, now_seconds: int) -> None:
        """Once a window, forgets the accounts that are as good as new, so that memory follows who is active."""
        window = now_seconds // self._budget.window_seconds
        if window <= self._swept_window:
            return
        self._swept_window = window
        advanced = {
            key: quota.advance(account, self._budget, now_seconds=now_seconds)
            for key, account in self._accounts.items()
        }
        self._accounts = {key: account for key, account in advanced.items() if account.committed_tokens}
