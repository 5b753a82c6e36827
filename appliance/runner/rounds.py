"""Requests that are being prepared: a step for everybody in turn, whatever number of requests each has brought.

Trusts: its caller for request ids that are not in use.
Promises: between two steps of a principal's requests comes at most one of every other principal's; among its own they
come in turn too.
Not here: what a step is (``generation``, ``embeddings``); whose turn it is for the engine (``engine.fair``).
"""

from typing import Generic, TypeVar

WorkT = TypeVar("WorkT")


class Rounds(Generic[WorkT]):
    """Work by request id, and by whose it is."""

    def __init__(self) -> None:
        self._principals: dict[str, str] = {}  # by request id
        self._waiting: dict[str, dict[str, WorkT]] = {}  # by principal; first in, first to come

    def __len__(self) -> int:
        return len(self._principals)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._principals

    def of(self, principal: str) -> int:
        """How many are this principal's."""
        return len(self._waiting.get(principal, ()))

    def get(self, request_id: str) -> WorkT | None:
        principal = self._principals.get(request_id)
        return None if principal is None else self._waiting[principal][request_id]

    def put(self, request_id: str, principal: str, work: WorkT) -> None:
        """Behind everything of this principal's."""
        self._principals[request_id] = principal
        self._waiting.setdefault(principal, {})[request_id] = work

    def take(self) -> tuple[str, str, WorkT]:
        """(request id, principal, work) of whose turn it is; the principal's next turn comes after all others'."""
        principal = next(iter(self._waiting))
        works = self._waiting.pop(principal)
        request_id = next(iter(works))
        work = works.pop(request_id)
        del self._principals[request_id]
        if works:
            self._waiting[principal] = works
        return request_id, principal, work

    def pop(self, request_id: str) -> WorkT | None:
        """Takes one out of its turn; None when it is not here."""
        principal = self._principals.pop(request_id, None)
        if principal is None:
            return None
        works = self._waiting[principal]
        work = works.pop(request_id)
        if not works:
            del self._waiting[principal]
        return work

    def clear(self) -> None:
        self._principals.clear()
        self._waiting.clear()
