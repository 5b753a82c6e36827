"""The gate before authentication counts every request of an address, and nothing in the environment opens it."""

import logging

import pytest
from slowapi import Limiter
from starlette.requests import Request

from appliance.core.refusals import Fault, Reason, Refused
from appliance.limits.gate import AddressGate


def scope(address, **more):
    return {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "client": (address, 4711), **more}


def passed(gate, count, address="192.0.2.7", **more):
    passes = 0
    for _ in range(count):
        try:
            gate.check(scope(address, **more))
            passes += 1
        except Refused as refused:
            assert refused.reason is Reason.ADDRESS_RATE_LIMITED
            assert 1 <= refused.retry_after_seconds <= 60
    return passes


def test_no_more_requests_of_an_address_pass_than_its_rate():
    gate = AddressGate(requests_per_minute=5)
    assert passed(gate, 50) == 5
    assert passed(gate, 50, "192.0.2.8") == 5


def test_another_path_port_or_header_is_no_other_bucket():
    gate = AddressGate(requests_per_minute=3)
    passes = sum(
        passed(
            gate,
            1,
            path=f"/{number}",
            method=f"M{number}",
            client=("192.0.2.7", number),
            headers=[(b"x-forwarded-for", b"10.0.0.%d" % number)],
        )
        for number in range(20)
    )
    assert passes == 3


@pytest.mark.parametrize(
    "addresses",
    [
        [f"2001:db8:0:1::{number:x}" for number in range(1, 20)],
        ["2001:db8::1", "2001:0db8:0:0:0:0:0:1", "2001:DB8::1"],
        ["192.0.2.7", "::ffff:192.0.2.7", "::ffff:c000:207"],
    ],
    ids=["one-ipv6-subnet", "one-address-written-otherwise", "ipv4-mapped"],
)
def test_one_customer_with_many_addresses_is_one_bucket(addresses):
    gate = AddressGate(requests_per_minute=2)
    assert sum(passed(gate, 1, address) for address in addresses) == 2


def test_another_subnet_is_another_bucket():
    gate = AddressGate(requests_per_minute=2)
    assert passed(gate, 9, "2001:db8:0:1::1") + passed(gate, 9, "2001:db8:0:2::1") == 4


@pytest.mark.parametrize("client", [None, (), ("", 0), (None, 0)])
def test_a_request_without_an_address_is_a_fault_and_not_let_through(client):
    gate = AddressGate(requests_per_minute=5)
    with pytest.raises(Fault, match="without a peer address"):
        gate.check({**scope("x"), "client": client})
    with pytest.raises(Fault, match="without a peer address"):
        gate.check({"type": "http"})


def test_the_peer_of_a_unix_socket_is_counted():
    assert passed(AddressGate(requests_per_minute=2), 9, "unix") == 2


def test_the_scope_is_not_touched():
    before = scope("192.0.2.7", state={"mine": 1})
    asked = {**before, "state": dict(before["state"])}
    AddressGate(requests_per_minute=2).check(asked)
    assert asked == before


@pytest.fixture(params=["environment", "dotenv"])
def switched_off(request, monkeypatch, tmp_path):
    """Everything that slowapi reads, set to what would open the gate."""
    settings = {
        "RATELIMIT_ENABLED": "false",
        "RATELIMIT_SWALLOW_ERRORS": "true",
        "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": "true",
        "RATELIMIT_IN_MEMORY_FALLBACK": "1000000/second",
        "RATELIMIT_DEFAULT": "1000000/second",
        "RATELIMIT_APPLICATION": "1000000/second",
        "RATELIMIT_STRATEGY": "moving-window",
        "RATELIMIT_KEY_PREFIX": "x",
    }
    monkeypatch.chdir(tmp_path)
    if request.param == "environment":
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
    else:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


@pytest.mark.usefixtures("switched_off")
def test_no_variable_and_no_dotenv_file_opens_the_gate():
    gate = AddressGate(requests_per_minute=2)
    assert passed(gate, 20) == 2
    assert gate._limiter.enabled is True
    assert gate._limiter._swallow_errors is False
    assert gate._limiter._in_memory_fallback_enabled is False


@pytest.mark.usefixtures("switched_off")
def test_the_same_settings_do_open_slowapi_as_it_comes():
    """The control: without our care there would be something to be afraid of."""
    limiter = Limiter(key_func=lambda: "everybody")

    @limiter.limit("1/minute")
    def gate(request):
        return None

    for _ in range(3):
        gate(request=Request(scope("192.0.2.7")))


def test_a_gate_that_was_switched_off_later_lets_nothing_pass():
    gate = AddressGate(requests_per_minute=2)
    gate._limiter.enabled = False
    with pytest.raises(Fault, match="uncounted"):
        gate.check(scope("192.0.2.7"))


def test_an_empty_key_would_be_skipped_and_is_a_fault():
    gate = AddressGate(requests_per_minute=2)
    gate._key = lambda _: ""
    with pytest.raises(Fault, match="uncounted"):
        gate.check(scope("192.0.2.7"))


def test_a_store_that_fails_lets_nothing_pass(monkeypatch):
    gate = AddressGate(requests_per_minute=2)

    def down(*_, **__):
        raise OSError("down")

    monkeypatch.setattr(gate._limiter.limiter, "hit", down)
    with pytest.raises(Fault, match="the address gate failed"):
        gate.check(scope("192.0.2.7"))


def test_strangers_do_not_write_to_the_log(caplog):
    gate = AddressGate(requests_per_minute=1)
    with caplog.at_level(logging.DEBUG):
        assert passed(gate, 20) == 1
    assert caplog.text == ""


def test_the_key_is_not_the_address_and_differs_between_processes():
    gate, other = AddressGate(requests_per_minute=1), AddressGate(requests_per_minute=1)
    assert "192.0.2.7" not in gate._key("192.0.2.7")
    assert gate._key("192.0.2.7") != other._key("192.0.2.7")


def test_a_rate_of_nothing_is_a_fault_at_start():
    with pytest.raises(Fault, match="at least one"):
        AddressGate(requests_per_minute=0)
