"""Orders on the registry, a turn at a time: judged, put on record, committed, answered; in that order and no other.

What waits is taken together and judged in one transaction, each order seeing what those before it changed: of two
refreshes of one token, the second is a reuse. Then their records are made durable, then the transaction, then all are
answered. So nobody holds a token that is not on record. What a crash loses:

=====================  ==========================================================================================
between                is lost
=====================  ==========================================================================================
judgement and records  everything, and nobody was answered
records and commit     what changed: a token on record that nobody has, a refresh token that can be used once more
commit and answer      the answer: the next refresh token is gone, and using the one before it ends the family
=====================  ==========================================================================================

Trusts: that one event loop's thread calls it.
Promises: ``done`` is called once for each order, with its answer or a ``Refused``, after what the orders before it
    changed was told and before what those after it did. A record or a commit that fails takes back the whole turn:
    ``Refused(AUDIT_UNAVAILABLE)`` for all that are in it.
Not here: the orders themselves (``notary.granting``, ``notary.operating``).
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from appliance.core.refusals import Fault, Misconfigured, Reason, Refused
from appliance.notary.clock import Clock
from appliance.notary.granting import Deed
from appliance.notary.journal import Journal
from appliance.notary.registry import Registry

MAX_WAITING: Final = 256
OPERATORS_PLACES: Final = 64
"""Beside those: a gateway that asks without end, for whoever took it over, keeps no operator from ending tokens."""
_TURN: Final = 64

Work = Callable[[int], Deed]
"""Given the time in seconds, in the office's own thread. May raise ``Refused``."""
Done = Callable[[Any], None]

_log = logging.getLogger(__name__)


class Office:
    """``carried_out`` sees each deed when it counts; ``start_over`` is called when the registry was read again, since
    nobody knows what came of the last turn."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        clock: Clock,
        *,
        carried_out: Callable[[Deed], None],
        start_over: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._carried_out = carried_out
        self._start_over = start_over
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")

    def submit(self, work: Work, done: Done, *, of_operator: bool = False) -> None:
        if len(self._waiting) >= MAX_WAITING + of_operator * OPERATORS_PLACES:
            done(Refused(Reason.AUDIT_UNAVAILABLE, "too many orders wait"))
            return
        self._waiting.append((work, done))
        self._arrived.set()

    async def run(self) -> None:
        """Until cancelled. Raises ``Misconfigured`` when the registry was damaged while we ran."""
        while True:
            await self._arrived.wait()
            turn = [self._waiting.popleft() for _ in range(min(_TURN, len(self._waiting)))]
            if not self._waiting:
                self._arrived.clear()
            await self._take(turn)

    def close(self) -> None:
        """Waits for what its thread still does; a turn without its commit is taken back."""
        self._thread.shutdown()
        self._registry.close()

    async def _take(self, turn: list[tuple[Work, Done]]) -> None:
        try:
            deeds = await self._in_thread(self._judge, [work for work, _ in turn], self._clock.wall_seconds())
            await self._put_on_record(deeds)
            await self._in_thread(self._registry.commit)
        except (sqlite3.Error, Fault) as error:
            if isinstance(error, Misconfigured):
                raise
            _log.warning("an order could not be carried out: %s (%d in this turn)", error, len(turn))
            await self._abandon()
            for _, done in turn:
                done(Refused(Reason.AUDIT_UNAVAILABLE, f"the registry or the log cannot be written: {error}"))
            return
        for (_, done), deed in zip(turn, deeds, strict=True):
            self._carried_out(deed)  # in the order of judgement: an answer knows of the deeds before it, of none after
            done(deed.answer)

    def _judge(self, works: list[Work], now_seconds: int) -> list[Deed]:
        """In the office's thread. Raises ``sqlite3.Error``."""
        self._registry.begin(now_seconds)
        return [self._judge_one(work, now_seconds) for work in works]

    def _judge_one(self, work: Work, now_seconds: int) -> Deed:
        try:
            with self._registry.step():
                return work(now_seconds)
        except Refused as refused:
            return Deed(refused)
        except sqlite3.Error:
            raise
        except Exception:  # noqa: BLE001 - an order that we did not expect must not take the log down with it
            _log.exception("an order failed")
            return Deed(Refused(Reason.AUDIT_UNAVAILABLE, "the order failed"))

    async def _put_on_record(self, deeds: list[Deed]) -> None:
        """Raises ``Fault`` when any record could not be written."""
        records = [record for deed in deeds for record in deed.records]
        outcomes = await asyncio.gather(*map(self._journal.append, records), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _abandon(self) -> None:
        """Raises ``Misconfigured`` when what is on disk is damaged. While it cannot be read, the next turn fails in its
        place and asks again."""
        try:
            await self._in_thread(self._registry.abandon)
        except Fault as fault:
            if isinstance(fault, Misconfigured):
                raise
            _log.warning("the registry cannot be read: %s", fault)
            return
        self._start_over()

    async def _in_thread(self, call: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *given)
