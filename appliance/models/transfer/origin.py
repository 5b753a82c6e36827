"""Origins and URLs, in a grammar narrow enough that no two parsers read one differently, and where a transfer may go.

HTTPS always, but for a registry on this machine's own loopback address, which may speak plain HTTP.

Trusts: the operator, for the registry's own origin.
Promises: a ``Url`` has a host, a port and a path of printable ASCII; ``redirected`` gives only permitted targets.
Not here: who gets credentials (``registry``: the registry's own origin and origins that the operator named).
"""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from appliance.core.values import Value
from appliance.models.transfer.refusal import TransferRefused

MAX_URL_LENGTH: Final = 8192

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_AUTHORITY = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::(?P<port>[1-9][0-9]{{0,4}}))?")
_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?]+)(?P<target>/[!-~]*)?")
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


class Origin(Value, frozen=True, kw_only=True):
    """RFC 6454: scheme, host in lower case, port."""

    scheme: Literal["http", "https"]
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What the ``Host`` field says."""
        return self.host if self.port == _DEFAULT_PORT[self.scheme] else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def is_plain_loopback(self) -> bool:
        return self.scheme == "http" and self.is_loopback

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Url(Value, frozen=True, kw_only=True):
    """``target`` begins with a slash and may hold a query; there is never a fragment, and never a user."""

    origin: Origin
    target: str


def parse_authority(text: str) -> tuple[str, int | None]:
    """``host[:port]`` -> both, the host in lower case. Raises ``ValueError``.

    A host whose last label is a number must be a whole IPv4 address: ``127.1`` and ``0x7f000001`` are addresses for
    the resolver and names for everybody else.
    """
    matched = _AUTHORITY.fullmatch(text.lower())
    if not matched or len(matched["host"]) > 253:
        raise ValueError("not a host with an optional port")
    host, port = matched["host"], matched["port"]
    if host.startswith("["):
        IPv6Address(host[1:-1])
    elif re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        IPv4Address(host)
    if port is not None and int(port) > 65535:
        raise ValueError("a port is at most 65535")
    return host, int(port) if port else None


def is_loopback(host: str) -> bool:
    """This machine by an address of its own, or by the names that RFC 6761 (6.3) reserves for it."""
    if host.startswith("["):
        address = IPv6Address(host[1:-1])
        inner = address.ipv4_mapped
        return address.is_loopback or address.is_unspecified or (inner is not None and is_loopback(str(inner)))
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return re.fullmatch(r"(127(\.[0-9]{1,3}){3}|0\.0\.0\.0)", host) is not None


def parse_url(text: str) -> Url:
    """An absolute URL. Raises ``ValueError`` for every other text, also for HTTP to another machine."""
    matched = _URL.fullmatch(text) if len(text) <= MAX_URL_LENGTH else None
    if not matched or "#" in text or "\\" in text:
        raise ValueError("not an absolute http(s) URL")
    host, port = parse_authority(matched["authority"])
    scheme: Literal["http", "https"] = "https" if matched["scheme"] == "https" else "http"
    origin = Origin(scheme=scheme, host=host, port=port or _DEFAULT_PORT[scheme])
    if origin.scheme == "http" and not origin.is_loopback:
        raise ValueError("plain HTTP is for this machine alone")
    return Url(origin=origin, target=matched["target"] or "/")


def located(location: str, current: Url) -> Url:
    """A ``Location`` field: absolute, or a path on the origin that sent it. Raises ``TransferRefused``."""
    try:
        if re.fullmatch(r"/(?!/)[!-~]*", location) and "#" not in location and "\\" not in location:
            return parse_url(f"{current.origin}{location}")
        return parse_url(location)
    except ValueError as error:
        raise TransferRefused("redirect-malformed", f"a Location is not acceptable: {error}") from None


def redirected(location: str, current: Url, registry: Origin, *, is_blob: bool) -> Url:
    """Where a redirect may lead. Raises ``TransferRefused``.

    Only blobs, which are checked against a digest that was known before, may come from another origin; and no registry
    on the network may point at a service on this machine (which would take us for a local caller).
    """
    url = located(location, current)
    if url.origin == registry:
        return url
    if not is_blob:
        raise TransferRefused("redirect-foreign", "only blobs may come from another origin")
    if url.origin.scheme != "https" and not registry.is_plain_loopback:
        raise TransferRefused("redirect-insecure", "a redirect leads from HTTPS to HTTP")
    if url.origin.is_loopback and not registry.is_loopback:
        raise TransferRefused("redirect-loopback", "a redirect leads to a service on this machine")
    return url
