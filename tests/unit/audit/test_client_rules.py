"""What the log says of clients and their tokens must make sense."""

from typing import Any

import pytest

from appliance.audit.rules import Rules
from appliance.core.records import ClientChanged, Entry, Record, TokenIssued, TokenRevoked, encode_entry
from appliance.core.values import Digest
from tests.support.audit_log import LOG_OPENED


def changed(change: Any = "added", **fields: Any) -> ClientChanged:
    given: dict[str, Any] = {
        "client_id": "agent",
        "authentication": "client_secret_basic",
        "credentials": ("secret 0123456789abcdef",),
        "grants": ("client_credentials",),
        "groups": ("staff",),
        "models": ("demo",),
        "exchanges": (),
        "introspects": False,
        "ttl_seconds": 600,
        "family_seconds": 600,
    }
    return ClientChanged(change=change, **(given | fields))


def issued(**fields: Any) -> TokenIssued:
    given: dict[str, Any] = {
        "subject": "agent",
        "client_id": "agent",
        "groups": ("staff",),
        "models": ("demo",),
        "token_id": "t",
        "token_sha256": Digest.of(b"t"),
        "expires_at_seconds": 1,
        "grant": "client_credentials",
    }
    return TokenIssued(**(given | fields))


def judged(*records: Record) -> tuple[list[str], list[str]]:
    """Problems and findings."""
    rules = Rules()
    problems: list[str] = []
    for seq, record in enumerate((LOG_OPENED, *records)):
        entry = Entry(v=1, seq=seq, time="2026-11-23T00:00:00.000Z", boot_id="b", monotonic_ms=seq, record=record)
        problems += rules.judge(encode_entry(entry))
    return problems, [what for _seq, what in rules.findings]


@pytest.mark.parametrize(
    "records",
    [
        [issued(grant=None)],
        [changed(), issued()],
        [changed(), changed("disabled"), changed("enabled"), issued(groups=())],
        [changed(), changed("removed"), changed(), issued()],
        [TokenRevoked(why="operator", token_id="t")],
    ],
)
def test_honest_story_is_not_remarked_on(records: list[Record]) -> None:
    assert judged(*records) == ([], [])


@pytest.mark.parametrize("records", [[issued()], [issued(), changed()], [changed(client_id="other"), issued()]])
def test_token_of_a_client_that_was_never_registered_breaks_the_log(records: list[Record]) -> None:
    assert judged(*records)[0] == ["a token was issued to agent, which was never registered"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([changed(), changed("disabled"), issued()], "although it was disabled"),
        ([changed(), changed("removed"), issued()], "although it was removed"),
        ([changed(), issued(groups=("staff", "admins"))], "with groups beyond its own"),
        ([changed(), TokenRevoked(why="refresh-token-reused", client_id="agent", family="f")], "was used twice"),
    ],
)
def test_what_an_auditor_should_look_at_is_a_finding(records: list[Record], said: str) -> None:
    problems, (finding,) = judged(*records)
    assert problems == []
    assert said in finding
