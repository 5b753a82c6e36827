"""``pattern`` and ``format``: a part of regular expressions, as GBNF inside a JSON string.

Only what ECMA 262 and Python read alike: characters, classes, groups, alternatives, ``* + ? {m,n}``, all of it between
``^`` and ``$``. Look-around, back references, word boundaries, lazy quantifiers and flags are refused, and so is a
pattern that is open at an end: it would allow any text there.

Where the two differ in what ``\\w``, ``\\d`` and ``\\s`` contain, only ASCII is written, which both accept.

Trusts: nothing; the pattern is a caller's.
Promises: every text that the result allows matches the pattern.
Not here: whether the result is too ambiguous (``gbnf``).
"""

import re
from typing import Final, NamedTuple

from appliance.runner.grammar.writing import PLAIN_RANGES, class_of, quoted

MAX_CHARACTERS: Final = 1000
_MAX_NESTING: Final = 16
_MAX_TIMES: Final = 2000

Ranges = tuple[tuple[int, int], ...]

_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SETS: Final[dict[str, Ranges]] = {
    "d": ((0x30, 0x39),),
    "w": _WORD,
    "s": ((0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20)),
}
_CONTROLS: Final = {"t": 9, "n": 10, "r": 13}
_ASCII: Final[Ranges] = ((0x20, 0x7E),)
_HEX: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4}))")
_TIMES: Final = re.compile(r"\{([0-9]{1,5})(?:(,)([0-9]{0,5}))?\}")
_AS_ESCAPE: Final = {0x22: r"\"", 0x5C: r"\\", 0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r"}
_OCTET: Final = "(0|1([0-9]{0,2})|2([0-4][0-9]?|5[0-5]?|[6-9])?|[3-9][0-9]?)"
_DATE: Final = (
    "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL: Final = "[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,15}){0,2}"

FORMATS: Final = {
    "date": f"^{_DATE}$",  # RFC 3339, without 29 February
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": "^P([1-9][0-9]{0,3}D|[1-9][0-9]{0,3}W|T[1-9][0-9]{0,3}[HMS])$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": rf"^{_OCTET}(\.{_OCTET}){{3}}$",
    "ipv6": "^[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{1,3}}$",
    "email": rf"^[A-Za-z0-9_+-]{{1,30}}(\.[A-Za-z0-9_+-]{{1,15}}){{0,2}}@{_LABEL}(\.{_LABEL}){{1,3}}$",
    "uri": rf"^https?://{_LABEL}(\.{_LABEL}){{0,3}}(:[1-9][0-9]{{0,3}})?(/[A-Za-z0-9_.~-]{{0,100}}){{0,8}}"
    r"(\?[A-Za-z0-9_.~=&-]{0,200})?(#[A-Za-z0-9_.~-]{0,100})?$",
}
"""Patterns for the usual form of each; less than the RFC allows, never more."""


class PatternInvalid(Exception):
    """The pattern says something that is not supported, or is no pattern."""


class Text(NamedTuple):
    """GBNF for the inside of a JSON string, and how many characters it stands for; ``most`` None is endless."""

    gbnf: str
    least: int
    most: int | None


def translate(pattern: str) -> Text:
    """Raises ``PatternInvalid``."""
    if len(pattern) > MAX_CHARACTERS:
        raise PatternInvalid(f"more than {MAX_CHARACTERS} characters")
    if not pattern.startswith("^") or not re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern):
        raise PatternInvalid("it does not start with ^ and end with $")
    reader = _Reader(pattern[1:-1])
    text = reader.sequence(nesting=0)
    if not reader.at_end:
        raise PatternInvalid("alternatives outside of a group, or a bracket too many")
    return text


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._text)

    def sequence(self, nesting: int) -> Text:
        parts = []
        least, most = 0, 0
        endless = False
        while not self.at_end and self._text[self._at] not in "|)":
            part = self._repeated(self._atom(nesting))
            parts.append(part.gbnf)
            least += part.least
            endless = endless or part.most is None
            most += part.most or 0
        return Text(" ".join(parts) or '""', least, None if endless else most)

    def _group(self, nesting: int) -> Text:
        if nesting == _MAX_NESTING:
            raise PatternInvalid(f"groups nested deeper than {_MAX_NESTING}")
        self._at += 1
        if self._text.startswith("?", self._at):
            if not self._text.startswith("?:", self._at):
                raise PatternInvalid("a group that begins with (? is not supported")
            self._at += 2
        ways = [self.sequence(nesting + 1)]
        while self._text.startswith("|", self._at):
            self._at += 1
            ways.append(self.sequence(nesting + 1))
        if not self._text.startswith(")", self._at):
            raise PatternInvalid("a group does not end")
        self._at += 1
        most = None if any(way.most is None for way in ways) else max(way.most or 0 for way in ways)
        return Text(f"({' | '.join(way.gbnf for way in ways)})", min(way.least for way in ways), most)

    def _repeated(self, one: Text) -> Text:
        character = self._text[self._at : self._at + 1]
        if character not in {"*", "+", "?", "{"}:
            return one
        least, most = self._times(character)
        if self._text[self._at : self._at + 1] in {"?", "+", "*", "{"}:
            raise PatternInvalid("a quantifier after a quantifier is not supported")
        if least > _MAX_TIMES or (most is not None and not max(least, 1) <= most <= _MAX_TIMES):
            raise PatternInvalid("a quantifier that is never met, or is too large")
        times = f"{{{least},{'' if most is None else most}}}"
        total = None if most is None or one.most is None else one.most * most
        return Text(one.gbnf + times, one.least * least, total)

    def _times(self, character: str) -> tuple[int, int | None]:
        if character != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        found = _TIMES.match(self._text, self._at)
        if found is None:
            raise PatternInvalid("a { that is no quantifier")
        self._at = found.end()
        least = int(found[1])
        return least, (int(found[3]) if found[3] else None) if found[2] else least

    def _atom(self, nesting: int) -> Text:
        character = self._text[self._at]
        if character == "(":
            return self._group(nesting)
        if character == "[":
            return self._class()
        if character in "^$*+?{}]":
            raise PatternInvalid(f"a {character} that is not supported there")
        if character == ".":
            self._at += 1
            return _one_character((*PLAIN_RANGES, (0x22, 0x22), (0x5C, 0x5C)))
        ranges, _wide = self._point()
        return _one_character(ranges)

    def _point(self) -> tuple[Ranges, bool]:
        """One character, or the set that an escape stands for; True for a set."""
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return ((ord(character), ord(character)),), False
        escaped = self._text[self._at : self._at + 1]
        numbered = _HEX.match(self._text, self._at - 1)
        if numbered:
            self._at = numbered.end()
            code = int(numbered[1] or numbered[2], 16)
            return ((code, code),), False
        self._at += 1
        if escaped in _SETS:
            return _SETS[escaped], True
        if escaped.lower() in _SETS:
            return without(_ASCII, _SETS[escaped.lower()]), True
        if escaped in _CONTROLS:
            return ((_CONTROLS[escaped], _CONTROLS[escaped]),), False
        if not escaped or escaped.isalnum():
            raise PatternInvalid("an escape that is not supported")
        return ((ord(escaped), ord(escaped)),), False

    def _class(self) -> Text:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        found: list[tuple[int, int]] = []
        wide = False
        while not self._text.startswith("]", self._at):
            if self.at_end:
                raise PatternInvalid("a class does not end")
            ranges, is_set = self._point()
            wide = wide or is_set
            if self._text.startswith("-", self._at) and self._text[self._at + 1 : self._at + 2] not in {"", "]"}:
                self._at += 1
                upper, upper_is_set = self._point()
                if is_set or upper_is_set or upper[0][0] < ranges[0][0]:
                    raise PatternInvalid("a range that is none")
                ranges = ((ranges[0][0], upper[0][0]),)
            found += ranges
        self._at += 1
        if not found:
            raise PatternInvalid("an empty class")
        if not negated:
            return _one_character(tuple(found))
        return _one_character(without(_ASCII if wide else ((0x20, 0xD7FF), (0xE000, 0x10FFFF)), tuple(found)))


def _merged(ranges: Ranges) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    left = list(ranges)
    for low, high in _merged(taken):
        left = [
            part
            for start, end in left
            for part in ((start, min(end, low - 1)), (max(start, high + 1), end))
            if part[0] <= part[1]
        ]
    return tuple(left)


def _one_character(ranges: Ranges) -> Text:
    """One character of a JSON string's inside. Of the controls only tab and the line's ends can be written."""
    merged = tuple(_merged(ranges))
    outside = without(((0, 0x10FFFF),), PLAIN_RANGES)
    plain = without(merged, outside)
    if plain == merged and len(plain) == 1 and plain[0][0] == plain[0][1]:
        return Text(quoted(chr(plain[0][0])), 1, 1)
    ways = [class_of(plain)] if plain else []
    ways += [quoted(text) for code, text in _AS_ESCAPE.items() if any(low <= code <= high for low, high in merged)]
    if not ways:
        raise PatternInvalid("a character that cannot be written")
    return Text(ways[0] if len(ways) == 1 else f"({' | '.join(ways)})", 1, 1)
