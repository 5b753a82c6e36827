"""Frames that wait for a peer that reads slowly.

Text that is not yet sent grows the same frame in place of making another, so however slowly the peer reads, a choice
has few frames in here, and no request waits for another's reader.

Trusts: the caller sends no delta after a request's end.
Promises: frames leave in the order in which they came, per choice; ``flush`` never blocks.
Not here: when to flush, and when to stop reading (``channel``).
"""

import socket
from collections import deque
from typing import Final

from appliance.core.text import printable
from appliance.core.values import MAX_TOOL_CALLS, ToolCallDelta
from appliance.ipc import frames
from appliance.ipc.messages import FromRunner, RefusalCode, RunnerDelta, RunnerRefused

_MAX_DELTA_CHARACTERS: Final = 16 * 1024  # at most 64 KiB of UTF-8: a datagram that every socket buffer takes
_ENTRY_CHARACTERS: Final = 16
"""What a number, a length and a name take, reckoned as text."""
_MAX_DETAIL: Final = 500


class _Growing:
    """Deltas of one kind that are still in the box, and leave as one. Most are alone, and are not measured."""

    __slots__ = ("_calls", "_parts", "_size", "first")

    def __init__(self, first: RunnerDelta) -> None:
        self.first: Final = first
        self._parts: list[RunnerDelta] = []

    def takes(self, delta: RunnerDelta) -> bool:
        """Whether ``delta`` has become part of this one."""
        first = self.first
        if not self._parts:
            self._parts, self._size, self._calls = [first], _size(first), len(first.tool_calls)
        self._size += _size(delta)
        self._calls += len(delta.tool_calls)
        grown = self._size <= _MAX_DELTA_CHARACTERS and self._calls <= MAX_TOOL_CALLS
        if not grown or _kind(delta) != _kind(first):
            return False
        self._parts.append(delta)
        return True

    def message(self) -> RunnerDelta:
        first = self.first
        if not self._parts:
            return first
        return RunnerDelta(
            request_id=first.request_id,
            choice=first.choice,
            text="".join(part.text for part in self._parts),
            reasoning="".join(part.reasoning for part in self._parts),
            tool_calls=_joined([call for part in self._parts for call in part.tool_calls]),
            logprobs=tuple(entry for part in self._parts for entry in part.logprobs),
            tokens=sum(part.tokens for part in self._parts),
        )


def _kind(delta: RunnerDelta) -> tuple[bool, bool, bool]:
    """Text, reasoning and calls keep their order among each other."""
    return bool(delta.text), bool(delta.reasoning), bool(delta.tool_calls)


def _size(delta: RunnerDelta) -> int:
    if not delta.tool_calls and not delta.logprobs:
        return len(delta.text) + len(delta.reasoning)
    calls = sum(_ENTRY_CHARACTERS + len(call.id + call.name + call.arguments) for call in delta.tool_calls)
    entries = sum(
        _ENTRY_CHARACTERS + len(token.piece)
        for sampled in delta.logprobs
        for token in (sampled.chosen, *sampled.alternatives)
    )
    return len(delta.text) + len(delta.reasoning) + calls + entries


def _joined(calls: list[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Pieces of one call that follow each other, as one."""
    joined = calls[:1]
    for call in calls[1:]:
        last = joined[-1]
        if call.index == last.index and not call.id and not call.name:
            joined[-1] = ToolCallDelta(
                index=last.index, id=last.id, name=last.name, arguments=last.arguments + call.arguments
            )
        else:
            joined.append(call)
    return tuple(joined)


class Outbox:
    def __init__(self) -> None:
        self._queue: deque[FromRunner | _Growing] = deque()
        self._growing: dict[tuple[str, int], _Growing] = {}
        self._unsent: bytes = b""

    def __len__(self) -> int:
        return len(self._queue) + bool(self._unsent)

    def clear(self) -> None:
        """Forgets everything that is not sent."""
        self._queue.clear()
        self._growing.clear()
        self._unsent = b""

    def put(self, message: FromRunner) -> None:
        self._queue.append(message)

    def refuse(
        self,
        request_id: str,
        reason: RefusalCode,
        detail: str,
        *,
        retry_after_seconds: int = 0,
        ahead: int | None = None,
    ) -> None:
        """Says that a request is not started, and why; ``detail`` is for the operator."""
        self.put(
            RunnerRefused(
                request_id=request_id,
                reason=reason,
                retry_after_seconds=retry_after_seconds,
                ahead=ahead,
                detail=printable(detail[:_MAX_DETAIL]),
            )
        )

    def put_delta(self, delta: RunnerDelta) -> None:
        place = delta.request_id, delta.choice
        growing = self._growing.get(place)
        if growing is None or not growing.takes(delta):
            self._growing[place] = fresh = _Growing(delta)
            self._queue.append(fresh)

    def flush(self, channel: socket.socket) -> bool:
        """Sends until empty (True) or until the peer's queue is full (False). Raises ``OSError`` when it is gone."""
        while self._unsent or self._queue:
            if not self._unsent:
                self._unsent = self._next_frame()
            try:
                channel.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            self._unsent = b""
        return True

    def _next_frame(self) -> bytes:
        message = self._queue.popleft()
        if isinstance(message, _Growing):
            delta = message.message()
            place = delta.request_id, delta.choice
            if self._growing.get(place) is message:
                del self._growing[place]
            return frames.encode(delta)
        return frames.encode(message)
