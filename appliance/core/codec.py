"""The one pair of hooks by which msgspec reads and writes our own types: a ``Digest`` is its text on every wire."""

from functools import lru_cache
from typing import Any

import msgspec

from appliance.core.values import Digest


def enc_hook(value: Any) -> Any:
    """Own type -> what msgspec can write. Raises ``NotImplementedError`` for a type that has no business on a wire."""
    if isinstance(value, Digest):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no wire form")


_digest = lru_cache(maxsize=1024)(Digest.parse)
"""Most digests of a record are those of the record before."""


def dec_hook(kind: type, value: Any) -> Any:
    """What msgspec read -> own type. Raises ``ValueError``, which msgspec turns into ``ValidationError``."""
    if kind is Digest:
        return _digest(value) if isinstance(value, str) else Digest.parse(value)
    raise NotImplementedError(f"{kind.__name__} has no wire form")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces. RFC 8785 as long as every number in it is an integer."""
    return msgspec.json.encode(value, enc_hook=enc_hook, order="sorted")


def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """A strict decoder of one type."""
    return msgspec.json.Decoder(kind, dec_hook=dec_hook)
