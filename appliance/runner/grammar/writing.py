"""Pieces of GBNF text: literals, and the parts of JSON that every schema shares (RFC 8259).

White space is bounded, as a model that may write spaces for ever sometimes does: at most one space, or one line's end
and twenty blanks, and only where one is usual. Strings hold no lone surrogate, neither in bytes nor as an escape.

Trusts: nothing is decided here.
Promises: each name in ``SHARED`` refers only to others there.
Not here: schemas (``schema``).
"""

import re
from typing import Final

PLAIN_RANGES: Final = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))
"""What stands for itself in a JSON string. A class of these, never a negated one: llama.cpp refuses half a character
as soon as a negated class excludes anything that it may become."""

SHARED: Final = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    "hex": "[0-9A-Fa-f]",
    "plain": r"[\x20-\x21\x23-\x5B\x5D-\uD7FF\uE000-\U0010FFFF]",
    "surrogate": r'[0-7] hex{2} | [89ABab] hex{2} "\\u" [Dd] [C-Fc-f] hex{2}',
    "escape": r'"\\" (["\\/bfnrt] | "u" ([0-9A-CE-Fa-ce-f] hex{3} | [Dd] surrogate))',
    "char": "plain | escape",
    "string": r'"\"" char* "\""',
    "integer": '"0" | "-"? [1-9] [0-9]{0,17}',
    "number": r'"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string ":" ws value',
    "object": '"{" ws (member ("," ws member)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "value": 'object | array | string | number | "true" | "false" | "null"',
}

_WORD: Final = re.compile(r"[a-z][a-z-]*")
_LITERALS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')


def _used(body: str) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(_WORD.findall(_LITERALS.sub(" ", body))) if name in SHARED)


_USES: Final = {name: _used(body) for name, body in SHARED.items()}


def quoted(text: str) -> str:
    """A GBNF literal."""
    return '"' + "".join(_escaped(character) for character in text) + '"' if not _is_simple(text) else f'"{text}"'


def _is_simple(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def class_of(ranges: tuple[tuple[int, int], ...]) -> str:
    """A GBNF class of code points."""
    return "[" + "".join(_point(low) if low == high else f"{_point(low)}-{_point(high)}" for low, high in ranges) + "]"


def _point(code: int) -> str:
    character = chr(code)
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{code:02X}" if code < 0x80 else f"\\U{code:08X}"


def with_shared(rules: dict[str, str]) -> str:
    """A whole grammar: these rules, and the shared ones that they use."""
    found = dict(rules)
    pending = [name for body in rules.values() for name in _used(body)]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = SHARED[name]
            pending += _USES[name]
    return "".join(f"{name} ::= {body}\n" for name, body in found.items())
