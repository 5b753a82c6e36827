"""The documents of a policy: strict JSON of known size, and the shape of the data that the rules read.

Two parsers that disagree about a document are a way round a policy, so ``core.strict_json`` refuses whatever parsers
disagree about.

Trusts: nothing about the bytes.
Promises: the value returned is the only one that the document can mean.
Not here: what answers are worth (``core.decide``).
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.core.refusals import Fault
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.values import Value

_MAX_ENTRIES = 1_000_000  # the size in bytes is the limit that counts


def strict_json(document: bytes, *, what: str, limit_bytes: int) -> Any:
    """JSON bytes -> value. Raises ``Fault`` naming ``what`` for anything that is not exactly one strict document."""
    if len(document) > limit_bytes:
        raise Fault(f"{what} is {len(document)} bytes long, more than {limit_bytes}")
    try:
        return check(document, max_keys=_MAX_ENTRIES, max_items=_MAX_ENTRIES)
    except JsonInvalid as problem:
        raise Fault(f"{what} is not strict JSON: {problem}") from None


class _Group(Value, frozen=True, kw_only=True):
    models: tuple[str, ...]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class _Closed(Value, frozen=True, kw_only=True):
    subjects: tuple[str, ...]
    models: tuple[str, ...]


class _Metrics(Value, frozen=True, kw_only=True):
    groups: tuple[str, ...]


class _Party(Value, frozen=True, kw_only=True):
    issuer: str
    subject: str


class _Delegates(Value, frozen=True, kw_only=True):
    groups: tuple[str, ...] = ()
    parties: tuple[_Party, ...] = ()


class _Data(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What the shipped rules read. Other top-level keys are an operator's own rules' affair."""

    groups: dict[str, _Group]
    closed: _Closed
    metrics: _Metrics = _Metrics(groups=())
    delegates: _Delegates = _Delegates()


def check_data(data: bytes) -> None:
    """Judges data that has passed ``strict_json``. Raises ``Fault`` when it would deny everybody by its shape: that is
    better told at the start."""
    try:
        msgspec.json.decode(data, type=_Data)
    except msgspec.ValidationError as problem:
        raise Fault(f"the policy data is not as policies/README.md says: {problem}") from None
