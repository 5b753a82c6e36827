"""Strict JSON for what goes into and comes out of a policy: one meaning per document, and a size known beforehand.

Two parsers that disagree about a document are a way round a policy, so whatever parsers disagree about is refused:
keys that occur twice, NaN and infinity, bytes that are not UTF-8, surrogates, a byte order mark.

Trusts: nothing about the bytes.
Promises: the value returned is the only one that the document can mean.
Not here: what the document says; ``core.decide`` judges answers, the policy itself reads its data.
"""

import json
from typing import Any

from appliance.core.refusals import Fault


def strict_json(document: bytes, *, what: str, limit_bytes: int) -> Any:
    """JSON bytes -> value. Raises ``Fault`` naming ``what`` for anything that is not exactly one strict document."""
    if len(document) > limit_bytes:
        raise Fault(f"{what} is {len(document)} bytes long, more than {limit_bytes}")
    try:
        text = document.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escape may have made half of a surrogate pair
    except (ValueError, RecursionError) as problem:
        raise Fault(f"{what} is not strict JSON: {problem}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
