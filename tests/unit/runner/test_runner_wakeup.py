"""The engine thread wakes the main one, which nothing else would: a wake-up that is lost is an answer that hangs."""

import sys
import threading
from collections import deque
from collections.abc import Iterator

import pytest

from appliance.runner.channel import _Wakeup

ROUNDS = 20_000


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("at_once", [1, 2, ROUNDS])
def test_no_wakeup_is_lost_while_both_sides_race(at_once: int, switching_often: None) -> None:
    """The engine leaves ``at_once`` events, one signal each, and waits until they are taken, as an idle one does."""
    wakeup, events, taken = _Wakeup(), deque[int](), threading.Semaphore(0)

    def engine() -> None:
        for number in range(1, ROUNDS + 1):
            events.append(number)
            wakeup.signal()
            if number % at_once == 0:
                assert taken.acquire(timeout=10)

    thread = threading.Thread(target=engine)
    thread.start()
    last = 0
    while last < ROUNDS and wakeup.epoll.poll(5):
        wakeup.clear()
        while events:
            last = events.popleft()
            if last % at_once == 0:
                taken.release()
    thread.join()
    wakeup.close()
    assert last == ROUNDS
