"""The coarse gate before authentication: how many requests one address may make in a minute, by slowapi.

slowapi belongs to Starlette: its decorators want a request of Starlette's and look up by it what is one limit here. Its
limiter, which counts for them, is asked directly; that costs a few microseconds and never blocks, so it runs on the
event loop (a worker thread would add 180 µs).

slowapi fails open in four ways, each closed here: the variable or ``.env`` entry ``RATELIMIT_ENABLED`` switches it
off (``_SettledLimiter`` reads neither, and one that is off is a fault), an empty key is skipped (a fault too), a limit
that it cannot parse is skipped (made from an integer), and a store that fails may be swallowed (not where it is asked).

Trusts: the client's address in the scope, which is what the server's own socket saw or a trusted proxy said; this
    process's wall clock.
Promises: on return the request has been counted against its address and is within the rate.
Not here: who may say an address in a header (the gateway's ``origin``); rates of principals (``rates.py``).
"""

import functools
import hashlib
import ipaddress
import math
import secrets
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, TypeVar

from limits import RateLimitItemPerMinute
from slowapi import Limiter

from appliance.core.refusals import Fault, Reason, Refused
from appliance.limits.counters import LoopCounters

_T = TypeVar("_T")
_NO_SETTINGS: Final = Path(__file__).with_name("no-settings.env")
_CACHED_ADDRESSES: Final = 4096
# An IPv6 customer is given a whole /64 at least, so a limit on single addresses would limit nobody.
_IPV6_PREFIX_BITS: Final = 64


class _SettledLimiter(Limiter):
    """slowapi's limiter with its arguments as the only configuration: the environment has no say."""

    def get_app_config(self, key: str, default_value: _T = None) -> _T:  # type: ignore[assignment]
        return default_value


class AddressGate:
    """Counts requests per address. One per process; the counts live in its memory."""

    def __init__(self, *, requests_per_minute: int) -> None:
        """Raises ``Fault`` when the limit cannot be kept."""
        if requests_per_minute < 1:
            raise Fault("an address needs at least one request a minute")
        self._limiter = _SettledLimiter(
            key_func=_no_key,
            storage_uri=f"{LoopCounters.STORAGE_SCHEME[0]}://",
            storage_options={},
            strategy="fixed-window",
            key_style="endpoint",
            config_filename=str(_NO_SETTINGS),
            swallow_errors=False,
            in_memory_fallback_enabled=False,
            headers_enabled=False,
            enabled=True,
        )
        self._rate = RateLimitItemPerMinute(requests_per_minute, namespace="address")
        salt = secrets.token_bytes(16)
        self._key = functools.lru_cache(_CACHED_ADDRESSES)(functools.partial(_hashed, salt))

    def check(self, scope: MutableMapping[str, Any]) -> None:
        """Counts one request of an ASGI scope's ``client``; the scope is not changed.

        Raises ``Refused(ADDRESS_RATE_LIMITED)`` with a retry time, and ``Fault`` when there is no address to count
        (a gateway behind a Unix socket names its peer itself: ``("unix", 0)``) or counting failed.
        """
        client = scope.get("client")
        if not client or not client[0]:
            raise Fault("a request without a peer address cannot be counted")
        key = self._key(client[0])
        if not key or not self._limiter.enabled:
            raise Fault("the address gate would let a request pass uncounted")
        counters = self._limiter.limiter
        try:
            if counters.hit(self._rate, key):
                return
            reset_time = counters.get_window_stats(self._rate, key).reset_time
        except Exception as problem:
            raise Fault(f"the address gate failed: {problem!r}") from problem
        retry_after_seconds = max(1, math.ceil(reset_time - time.time()))
        raise Refused(Reason.ADDRESS_RATE_LIMITED, retry_after_seconds=retry_after_seconds)


def _no_key() -> str:
    """slowapi wants a function for its decorators, of which none is used."""
    raise NotImplementedError


def _hashed(salt: bytes, address: str) -> str:
    """The address as a key: salted, because the space of addresses is small enough to search."""
    return hashlib.blake2b(_bucket(address).encode("utf-8", "replace"), key=salt, digest_size=16).hexdigest()


def _bucket(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX_BITS), strict=False))
