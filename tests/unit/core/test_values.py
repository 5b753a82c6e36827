"""No text but the one form is a digest, and no value changes or carries a field that it does not have."""

import inspect

import msgspec
import pytest

from appliance.core import records, values
from appliance.core.codec import canonical_json, dec_hook, enc_hook, json_decoder
from appliance.core.values import Digest, Sampling, Value
from appliance.ipc import messages

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha256-{HEX}",
        f"sha256::{HEX}",
        f"sha256:sha256:{HEX}",
        f" sha256:{HEX}",
        f"sha256:{HEX}\n",
        f"sha512:{HEX}",
        f"sha256:../../{HEX[:-6]}",
        f"sha256:{HEX[:-1]}\u0661",
        f"sha256:{HEX[:-1]}\x00",
        None,
        7,
        b"sha256:" + HEX.encode(),
    ],
)
def test_other_text_is_no_digest(text: object) -> None:
    """CVE-2024-37032: a digest that could be any text became a path."""
    with pytest.raises(ValueError, match="a digest"):
        Digest.parse(text)  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError):
        json_decoder(Digest).decode(msgspec.json.encode(str(text)))


@pytest.mark.parametrize("text", [b"7", b"null", b"[]", b"{}", b"true"])
def test_other_json_is_no_digest(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        json_decoder(Digest).decode(text)


def test_digest_has_one_form_everywhere() -> None:
    digest = Digest.parse(f"sha256:{HEX}")
    assert (digest.hex, str(digest)) == (HEX, f"sha256:{HEX}")
    assert canonical_json(digest) == f'"sha256:{HEX}"'.encode()
    assert json_decoder(Digest).decode(canonical_json(digest)) == digest
    assert Digest.of(b"") == Digest(hex="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def test_digest_cannot_change() -> None:
    with pytest.raises(AttributeError):
        Digest.of(b"").hex = HEX  # type: ignore[misc]


class _Foreign:
    pass


def test_foreign_types_have_no_wire_form() -> None:
    with pytest.raises(NotImplementedError, match="_Foreign"):
        enc_hook(_Foreign())
    with pytest.raises(NotImplementedError, match="_Foreign"):
        dec_hook(_Foreign, "x")


def test_keys_are_sorted_at_every_depth() -> None:
    assert (
        canonical_json({"b": {"d": 1, "c": 2}, "a": [{"z": 1, "y": 2}]}) == b'{"a":[{"y":2,"z":1}],"b":{"c":2,"d":1}}'
    )


ALL_VALUES = sorted(
    {
        kind
        for module in (values, records, messages)
        for _name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Value) and kind is not Value
    },
    key=lambda kind: kind.__qualname__,
)


@pytest.mark.parametrize("kind", ALL_VALUES, ids=lambda kind: kind.__name__)
def test_value_is_frozen_strict_and_made_by_name(kind: type[Value]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields
    if kind.__struct_fields__:
        with pytest.raises(TypeError, match="positional"):
            kind(*[0] * len(kind.__struct_fields__))


@pytest.mark.parametrize("kind", ALL_VALUES, ids=lambda kind: kind.__name__)
def test_value_holds_nothing_that_can_change(kind: type[Value]) -> None:
    """``policy_input`` and ``counts`` are documents for the record, which nobody decides upon."""
    for field in msgspec.structs.fields(kind):
        if field.name not in {"policy_input", "counts"}:
            assert not any(word in str(field.type) for word in ("list[", "dict[", "set[")), field.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1001),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", -1),
        ("seed", 2**32 - 1),
        ("stop", [""]),
        ("stop", ["x" * 257]),
        ("stop", ["x"] * 9),
        ("unknown", 1),
    ],
)
def test_sampling_out_of_range_is_refused_on_every_wire(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({field: value}), type=Sampling)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({field: value}), type=Sampling)
