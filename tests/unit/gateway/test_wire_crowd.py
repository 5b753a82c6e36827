"""No peer takes the connections of all, whatever addresses it has."""

from collections import Counter
from typing import Any

import pytest

from appliance.core.refusals import Fault
from appliance.gateway.slots import Slots
from appliance.gateway.wire import Crowd, WireLimits, is_local, peer_name


class FakeWire:
    """As much of a connection as a crowd sees."""

    def __init__(self, address: str) -> None:
        self.peer = peer_name(address)
        self.brings_others = is_local(self.peer)
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def crowd(**limits: Any) -> Crowd:
    return Crowd(WireLimits(request_seconds=1.0, **limits), Counter())


def enter(one: Crowd, address: str, *, idle: bool = True) -> tuple[FakeWire, bool]:
    wire: Any = FakeWire(address)
    entered = one.enter(wire)
    if entered and idle:
        one.idle(wire)
    return wire, entered


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"),
        ("192.0.2.7", "::ffff:192.0.2.7"),
        ("fe80::1%eth0", "fe80::2%eth0"),
    ],
)
def test_addresses_of_one_peer_are_counted_together(one: str, other: str) -> None:
    assert peer_name(one) == peer_name(other)


def test_addresses_of_two_peers_are_not() -> None:
    assert peer_name("2001:db8:0:1::1") != peer_name("2001:db8:0:2::1")
    assert peer_name("192.0.2.7") != peer_name("192.0.2.8")
    assert peer_name("unix") == "unix"


@pytest.mark.parametrize(
    ("address", "local"), [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::2", False), ("12.7.0.1", False)]
)
def test_only_this_machine_is_local(address: str, local: bool) -> None:
    assert is_local(peer_name(address)) is local


def test_peer_with_too_many_connections_loses_its_own_oldest_idle_one() -> None:
    one = crowd(connections=10, connections_per_peer=2)
    neighbour, _ = enter(one, "192.0.2.1")
    mine = [enter(one, "192.0.2.2") for _ in range(3)]
    assert [entered for _wire, entered in mine] == [True, True, True]
    assert [wire.aborted for wire, _entered in mine] == [True, False, False]
    assert not neighbour.aborted


def test_peer_whose_connections_are_all_busy_gets_no_more_and_others_do() -> None:
    one = crowd(connections=10, connections_per_peer=2)
    busy = [enter(one, "192.0.2.2", idle=False)[0] for _ in range(2)]
    _, entered = enter(one, "192.0.2.2")
    assert not entered
    assert enter(one, "192.0.2.1")[1]
    assert not any(wire.aborted for wire in busy)


def test_proxy_on_this_machine_is_held_to_the_total_only() -> None:
    one = crowd(connections=5, connections_per_peer=2)
    assert all(enter(one, "127.0.0.1", idle=False)[1] for _ in range(5))
    assert not enter(one, "127.0.0.1")[1]


def test_trusted_proxy_is_held_to_the_total_only_and_its_neighbour_is_not() -> None:
    one = crowd(connections=10, connections_per_peer=2)
    for _ in range(5):
        proxy: Any = FakeWire("192.0.2.1")
        proxy.brings_others = True
        assert one.enter(proxy)
    assert all(enter(one, "192.0.2.2", idle=False)[1] for _ in range(2))
    assert not enter(one, "192.0.2.2")[1]


def test_connections_that_left_are_not_counted() -> None:
    one = crowd(connections=2, connections_per_peer=2)
    for _ in range(10):
        wire: Any
        wire, entered = enter(one, "192.0.2.1", idle=False)
        assert entered
        one.leave(wire)


@pytest.mark.parametrize("number", [0, -1])
def test_slots_that_let_nobody_in_are_a_fault_at_start(number: int) -> None:
    with pytest.raises(Fault, match="at least one"):
        Slots(number)
