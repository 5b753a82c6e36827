"""JSON as RFC 8259 and RFC 7493 (I-JSON) have it, and nothing that two parsers could read differently.

Duplicate keys (also when one is written with escapes), NaN, numbers beyond 64 bits or of more than 64 characters, lone
surrogates, byte-order marks, deep nesting and overlong arrays and objects are refused. This is a check, not a decoder:
the caller then decodes the same bytes with msgspec into a typed value.
"""

import json
import re
from functools import lru_cache
from typing import Any, Final

# The closing quote is optional: a pattern that can fail would be tried again from every quote inside an unterminated
# string, which takes quadratic time. What is unterminated is left to the parser.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_OPENING: Final = frozenset(b"[{")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


class JsonInvalid(Exception):
    """The bytes are not acceptable JSON. The text never repeats the sender's bytes."""


def check(data: bytes, *, max_depth: int = 32, max_keys: int = 2000, max_items: int = 10_000) -> Any:
    """Bytes -> the parsed value. Raises ``JsonInvalid``.

    Most bodies are small, so what they cannot break by their number of brackets, commas and escapes is not looked for.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise JsonInvalid("not UTF-8") from None
    if data.count(b"[") + data.count(b"{") > max_depth and _depth(data) > max_depth:
        raise JsonInvalid(f"nested deeper than {max_depth}")
    try:
        value = _decoder(max_keys).decode(text)
    except (ValueError, RecursionError) as error:
        raise JsonInvalid("not JSON") from error
    if data.count(b",") >= max_items or b"\\u" in data:  # a lone surrogate comes only by its escape
        _check_strings_and_arrays(value, max_items)
    return value


@lru_cache(maxsize=16)
def _decoder(max_keys: int) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=lambda pairs: _object(pairs, max_keys),
        parse_constant=_refuse_constant,
        parse_int=_integer,
        parse_float=_float,
    )


def _depth(data: bytes) -> int:
    """The deepest nesting of brackets outside strings. Linear, no recursion; unbalanced input is left to the parser."""
    depth = deepest = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        if bracket in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]], max_keys: int) -> dict[str, Any]:
    if len(pairs) > max_keys:
        raise JsonInvalid(f"more than {max_keys} keys")
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise JsonInvalid("a key occurs twice")
    return keys


def _refuse_constant(_name: str) -> None:
    raise JsonInvalid("NaN and Infinity are not JSON")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise JsonInvalid("an integer of more than 64 bits")
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise JsonInvalid("an integer of more than 64 bits")
    return number


def _float(text: str) -> float:
    if len(text) > 64:
        raise JsonInvalid("a number of more than 64 characters")
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise JsonInvalid("a number too large for a double")
    return number


def _check_strings_and_arrays(value: Any, max_items: int) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                raise JsonInvalid("a lone surrogate")
        elif isinstance(item, list):
            if len(item) > max_items:
                raise JsonInvalid(f"more than {max_items} items")
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
