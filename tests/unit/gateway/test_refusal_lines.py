"""No number of strangers fills the operator's log, and none of their refusals is missing from it unsaid."""

import logging

import pytest

from appliance.core.refusals import Reason
from appliance.gateway.tally import MAX_LINE_CHARACTERS, RefusalLines


def test_flood_of_refusals_is_cut_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [100.0]
    told = RefusalLines(burst=5, per_second=2.0, clock=lambda: now[0])
    for _ in range(1000):
        told.tell(Reason.TOKEN_MISSING, "x\n")
    assert caplog.messages == ["refused: token-missing: 'x\\n'"] * 5
    caplog.clear()
    now[0] += 1.0
    for _ in range(10):
        told.tell(Reason.HOST_INVALID)
    assert caplog.messages == [
        "995 lines before this one were left out",
        "refused: host-invalid: ''",
        "refused: host-invalid: ''",
    ]
    caplog.clear()
    now[0] += 3600.0
    for _ in range(10):
        told.tell(Reason.HOST_INVALID)
    assert len(caplog.messages) == 6


def test_few_refusals_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    told = RefusalLines(burst=3, per_second=1.0, clock=lambda: now[0])
    for _ in range(50):
        now[0] += 1.0
        told.tell(Reason.TOKEN_INVALID, "expired")
    assert len(caplog.messages) == 50


def test_nobody_makes_a_line_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    told = RefusalLines()
    told.say("x" * 16_000)
    told.tell(Reason.HEADER_INVALID, "\n" * 16_000)
    assert [len(line) for line in caplog.messages] == [MAX_LINE_CHARACTERS] * 2


def test_fault_keeps_its_level_and_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("a bug")
    RefusalLines().say("request 1", level=logging.ERROR, error=error)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
