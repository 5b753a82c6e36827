"""The coarse gate before authentication: how many requests one address may make in a minute, by slowapi.

slowapi belongs to Starlette, so it is used through a small function of its own kind that the gateway calls with a
scope; this costs less than 20 µs and never blocks, so it runs on the event loop (a worker thread would add 180 µs).

slowapi fails open in four ways, each closed here: the variable or ``.env`` entry ``RATELIMIT_ENABLED`` switches it
off (``_SettledLimiter`` reads neither), an empty key is skipped (refused first), a limit that it cannot parse is
skipped (made from an integer), and whatever else makes it skip leaves no trace on the request, which is looked for.

Trusts: the client's address in the scope, which is what the server's own socket saw or a trusted proxy said; this
    process's wall clock.
Promises: on return the request has been counted against its address and is within the rate.
Not here: who may say an address in a header (the gateway's ``origin``); rates of principals (``rates.py``).
"""

import functools
import hashlib
import inspect
import ipaddress
import logging
import math
import secrets
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, TypeVar

from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from starlette.requests import Request

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
            key_func=_key_of,
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
        # A line for each refusal would let strangers steer the size of the log; the gateway counts refusals itself.
        self._limiter.logger.setLevel(logging.ERROR)
        self._count = self._limiter.limit(f"{requests_per_minute} per 1 minute")(_passed)
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
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "key": self._key(client[0])})
        try:
            self._count(request=request)
        except RateLimitExceeded:
            raise Refused(Reason.ADDRESS_RATE_LIMITED, retry_after_seconds=self._seconds_until_reset(request)) from None
        except Exception as problem:
            raise Fault(f"the address gate failed: {problem!r}") from problem
        if getattr(request.state, "view_rate_limit", None) is None:
            raise Fault("the address gate let a request pass uncounted")

    def _seconds_until_reset(self, request: Request) -> int:
        rate, key = request.state.view_rate_limit
        reset_time = self._limiter.limiter.get_window_stats(rate, *key).reset_time
        return max(1, math.ceil(reset_time - time.time()))


def _passed(request: Request) -> None:
    """What the gate guards: nothing. slowapi counts before it calls this."""


def _key_of(request: Request) -> str:
    key: str = request.scope["key"]
    return key


_key_of.__signature__ = inspect.signature(_key_of)  # type: ignore[attr-defined]  # slowapi asks at each request


def _hashed(salt: bytes, address: str) -> str:
    """The address as a key: salted, because slowapi logs keys, and the space of addresses is small enough to search."""
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
