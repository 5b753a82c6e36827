"""A request body -> a surface's typed value, or the one refusal that says what is wrong with it.

Trusts: nothing in the body.
Promises: the bytes are strict JSON, every field is known, every value has its declared type and range; of what the
    caller wrote only one of our own field names is ever repeated.
Not here: the fields (each surface).
"""

from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from appliance.core.refusals import Reason, Refused
from appliance.core.strict_json import JsonInvalid, check

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=262_144)]
"""As much as the largest body has room for."""

WireT = TypeVar("WireT", bound=msgspec.Struct)


class BodyDecoder(Generic[WireT]):
    """Decodes one kind of body, for example ``BodyDecoder(_Request)``. ``max_items`` bounds each array in it."""

    def __init__(self, wire: type[WireT], *, max_items: int = 10_000) -> None:
        self._decoder = msgspec.json.Decoder(wire)
        self._known = frozenset(field.encode_name for field in msgspec.structs.fields(wire))
        self._max_items = max_items

    def decode(self, body: bytes) -> WireT:
        """Raises ``Refused(JSON_INVALID | FIELD_UNKNOWN | FIELD_INVALID)``."""
        try:
            document = check(body, max_items=self._max_items)
        except JsonInvalid as error:
            raise Refused(Reason.JSON_INVALID, str(error)) from error
        if isinstance(document, dict) and (unknown := document.keys() - self._known):
            raise Refused(Reason.FIELD_UNKNOWN, f"{sorted(unknown)[:8]!r}"[:200])
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(Reason.FIELD_INVALID, str(error)[:200], param=self._field_at_fault(error)) from error

    def _field_at_fault(self, error: Exception) -> str | None:
        """msgspec names the place as ``$.field``."""
        place = str(error).rpartition("`$.")[2].partition("`")[0]
        name = place.partition(".")[0].partition("[")[0]
        return name if name in self._known else None
