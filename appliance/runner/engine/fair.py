"""Whose turn it is: service is counted per principal, and the one with the least of it comes next.

This is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Every token
computed for a principal adds to its counter, divided by its weight. A principal that comes back from having nothing to
do is lifted to the least counter of those that have, so that idling saves nothing up and costs nothing.

Trusts: the names and weights of principals (the gateway verified them).
Promises: work of another principal is taken before more work of one that has had more service, whatever their numbers.
A full queue of one refuses nothing to the others until the whole is full.
Not here: slots (``engine.slots``) and batches (``engine.filling``); a clock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

_REMEMBERED_IDLERS: Final = 128


class Work(Protocol):
    """What waits. ``weight`` is at least 1; the latest that a principal comes with counts."""

    principal: str
    weight: int


WorkT = TypeVar("WorkT", bound=Work)


class _Account(Generic[WorkT]):
    """One principal. ``taken`` counts its pieces of work that have left the queue and are not done."""

    __slots__ = ("service", "taken", "waiting", "weight")

    def __init__(self) -> None:
        self.service = 0.0
        self.taken = 0
        self.waiting: deque[WorkT] = deque()
        self.weight = 1

    @property
    def idle(self) -> bool:
        return not self.taken and not self.waiting


def _claim(account: _Account[WorkT], more_taken: int = 0, cost: float = 0.0) -> tuple[float, float]:
    """The least comes first: who has had the least service; of two, who has less work in hand. Once so many more
    pieces of its work are taken, at that cost each, it is this."""
    return account.service + more_taken * cost / account.weight, (account.taken + more_taken) / account.weight


class FairQueue(Generic[WorkT]):
    """At most ``most_waiting`` pieces of work, ``most_per_principal`` of one principal; its own are taken in the order
    in which they came."""

    def __init__(self, most_waiting: int, most_per_principal: int) -> None:
        self._most_waiting = most_waiting
        self._most_per_principal = most_per_principal
        self._accounts: dict[str, _Account[WorkT]] = {}
        self._size = 0
        self._charged_tokens = 0.0
        self._done = 0

    def __len__(self) -> int:
        return self._size

    def offer(self, *pieces: WorkT) -> bool:
        """Puts all pieces of one principal at the end of its queue; False when they do not fit, and nothing changed."""
        principal = pieces[0].principal
        account = self._accounts.get(principal)
        mine = len(account.waiting) if account else 0
        if self._size + len(pieces) > self._most_waiting or mine + len(pieces) > self._most_per_principal:
            return False
        if account is None:
            account = self._accounts[principal] = _Account()
        if account.idle:
            account.service = max(account.service, self._least_service())
        account.weight = pieces[0].weight
        account.waiting.extend(pieces)
        self._size += len(pieces)
        return True

    def waiting_of(self, principal: str) -> int:
        """How many pieces of this principal's wait."""
        account = self._accounts.get(principal)
        return len(account.waiting) if account else 0

    def ahead(self, principal: str, own: int) -> int:
        """How many pieces are taken before the one of this principal's that has ``own`` of its own before it, if nobody
        brings more, and each costs what work has cost so far in the mean."""
        mine = self._accounts.get(principal)
        if mine is None:
            return own
        cost = self._charged_tokens / self._done if self._done else 0.0
        claim = _claim(mine, own, cost)
        pieces = own
        wins_ties = False
        for account in self._accounts.values():
            if account is mine:
                wins_ties = True
                continue
            for place in range(len(account.waiting)):
                other = _claim(account, place, cost)
                if other > claim or (wins_ties and other == claim):
                    break
                pieces += 1
        return pieces

    def take(self) -> WorkT | None:
        """The first of whoever has the best claim; None when nothing waits."""
        waiting = [account for account in self._accounts.values() if account.waiting]
        if not waiting:
            return None
        account = min(waiting, key=_claim)
        self._size -= 1
        account.taken += 1
        return account.waiting.popleft()

    def charge(self, principal: str, tokens: float) -> None:
        """Counts what was computed for work of ``principal`` that was taken and is not done, in tokens."""
        account = self._accounts[principal]
        account.service += tokens / account.weight
        self._charged_tokens += tokens

    def done(self, principal: str) -> None:
        """Work of ``principal`` that was taken has ended."""
        self._accounts[principal].taken -= 1
        self._done += 1
        self._forget_idlers()

    def remove(self, leaves: Callable[[WorkT], bool]) -> list[WorkT]:
        """Takes out what need not wait any longer, without counting it as service."""
        removed: list[WorkT] = []
        if not self._size:
            return removed
        for account in self._accounts.values():
            gone = [work for work in account.waiting if leaves(work)]
            if gone:
                account.waiting = deque(work for work in account.waiting if work not in gone)
                removed += gone
        self._size -= len(removed)
        if removed:
            self._forget_idlers()
        return removed

    def order(self, principals: Iterable[str]) -> list[str]:
        """The same, once each, in the order of their claims."""
        return sorted(dict.fromkeys(principals), key=lambda principal: _claim(self._accounts[principal]))

    def _least_service(self) -> float:
        return min((account.service for account in self._accounts.values() if not account.idle), default=0.0)

    def _forget_idlers(self) -> None:
        """An idle account matters only while it has more service than somebody who is not idle. Of those, the ones
        with most are remembered."""
        if all(account.idle for account in self._accounts.values()):
            self._accounts.clear()
        idlers = [(account.service, name) for name, account in self._accounts.items() if account.idle]
        if len(idlers) > 2 * _REMEMBERED_IDLERS:
            for _, name in sorted(idlers)[:-_REMEMBERED_IDLERS]:
                del self._accounts[name]


def deal(budget: int, remaining: Sequence[int]) -> list[int]:
    """How much of ``budget`` each of some pieces of work gets, of which so much is left, the oldest first.

    The least that is left comes first, since that way most are done soonest; a quarter goes to the oldest before, so
    that a long one goes on while short ones keep coming.
    """
    shares = [0] * len(remaining)
    if remaining:
        shares[0] = min(remaining[0], -(-budget // 4))
        budget -= shares[0]
    for place in sorted(range(len(remaining)), key=lambda place: remaining[place] - shares[place]):
        more = min(remaining[place] - shares[place], budget)
        shares[place] += more
        budget -= more
    return shares
