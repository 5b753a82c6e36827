"""What follows from several settings together."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance import assemble, settings
from appliance.core.refusals import Misconfigured
from appliance.gateway.listeners import listen_tcp
from appliance.settings import parse


@pytest.mark.parametrize("load_seconds", [120, 3600])
def test_no_reservation_expires_while_its_model_is_loaded_and_its_answer_made(load_seconds: int) -> None:
    """One that expires is charged in full, and its caller gets nothing back."""
    config = parse({"models": {"load_timeout_seconds": load_seconds}})
    budget = assemble._budget(config)
    assert budget.hold_seconds > load_seconds + config.gateway.request_timeout_seconds


# --- inherited listeners --------------------------------------------------------------------------------------------

FIRST = 900


@pytest.fixture
def inherit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
    """Descriptors under names, as a service manager passes them: one after another."""
    made: list[int] = []

    def passed(*names: str) -> list[int]:
        ports = []
        for number, name in enumerate(names, FIRST):
            with listen_tcp("127.0.0.1", 0) as sock:
                os.dup2(sock.fileno(), number)
                ports.append(sock.getsockname()[1])
            made.append(number)
            assert name
        monkeypatch.setattr(settings, "FIRST_INHERITED", FIRST)
        monkeypatch.setattr(settings, "inherited_listener_names", lambda: names)
        return ports

    yield passed
    for number in made:
        with suppress(OSError):
            os.close(number)


def ports_of(document: dict[str, Any]) -> dict[int, bool]:
    """Port -> whether the peer there may speak for others."""
    listeners = assemble._listeners(parse(document))
    found = {}
    for one in listeners:
        found[one.sock.getsockname()[1]] = bool(one.trust.networks)
        one.sock.close()
    return found


def test_inherited_listeners_are_all_taken_where_nothing_is_written_and_none_is_trusted(inherit: Any) -> None:
    ports = inherit("http", "other", "http")
    assert ports_of({}) == dict.fromkeys(ports, False)


def test_inherited_listeners_go_by_their_names_and_not_by_their_order(inherit: Any) -> None:
    first, second, third = inherit("b", "a", "b")
    document = {
        "listen": [{"inherited": "a", "trusted": ["10.0.0.1"]}, {"inherited": "b"}],
        "gateway": {"allowed_hosts": ["h"]},
    }
    assert ports_of(document) == {second: True, first: False, third: False}


@pytest.mark.parametrize(
    ("names", "said"),
    [((), "passes nothing named 'a'"), (("b",), "the inherited b"), (("a", "b", "c"), "takes the inherited b, c")],
)  # fmt: skip
def test_inherited_listener_that_is_missing_or_unknown_is_refused(inherit: Any, names: Any, said: str) -> None:
    inherit(*names)
    with pytest.raises(Misconfigured, match=said):
        assemble._listeners(parse({"listen": [{"inherited": "a"}], "gateway": {"allowed_hosts": ["h"]}}))


def test_unknown_group_is_refused(tmp_path: Path) -> None:
    one = {"path": str(tmp_path / "s"), "group": "no-such-group"}
    with pytest.raises(Misconfigured, match="no group"):
        assemble._listeners(parse({"listen": [one], "gateway": {"allowed_hosts": ["h"]}}))
