"""GBNF, llama.cpp's grammar notation, read as strictly as llama.cpp reads it and with bounds that it does not have.

llama.cpp's own reader walks brackets by recursion, copies whatever is repeated, and loops for ever on ``{3,1}``: what
is refused here never reaches it. Refused although llama.cpp takes it: token references ``<[7]>`` (they would let a
caller write control tokens), a rule given twice (the second would silently win), an empty ``[]``, a range that runs
backwards, and a repetition beyond 2,000 (silently made endless there).

Trusts: nothing; the text is a caller's.
Promises: linear time. Rules that llama.cpp's reader accepts as well, within every bound below.
Not here: what the rules mean (``ambiguity``).
"""

import re
from typing import Final, NamedTuple

MAX_BYTES: Final = 131_072
MAX_RULES: Final = 600
MAX_ITEMS: Final = 2400
"""Literals, classes, references, groups and repetitions, as written."""
MAX_NESTING: Final = 32
"""Of groups: llama.cpp walks them by recursion."""
MAX_ELEMENTS: Final = 65_536
"""Characters, ranges and references after llama.cpp has written every repetition out."""
MAX_NAME_CHARACTERS: Final = 64
MAX_CLASS_RANGES: Final = 64
MAX_REPETITIONS: Final = 2000
"""llama.cpp's own; it counts the rules inside what is repeated, too."""
LAST_CODE_POINT: Final = 0x10FFFF

_ESCAPE = r'\\(?:[trn\\"\[\]-]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})'
_LITERAL = re.compile(rf'"((?:[^"\\]++|{_ESCAPE})*+)"')
_CLASS = re.compile(rf"\[(\^?+)((?:[^\]\\]++|{_ESCAPE})++)\]")
_RANGE = re.compile(rf"({_ESCAPE}|[^\\])(?:-({_ESCAPE}|[^\\]))?", re.DOTALL)
_ONE_ESCAPE = re.compile(_ESCAPE)
_NAME = re.compile(r"[A-Za-z0-9-]++")
_BLANK = re.compile(r"(?:[ \t]++|#[^\r\n]*+)*+")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]++|#[^\r\n]*+)*+")
_NUMBER = re.compile(r"[0-9]++")
_END_OF_LINE = re.compile(r"\r\n|\r|\n|\Z")
_SIMPLE_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n"}
_SUFFIXES: Final[dict[str, tuple[int, int | None]]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class GrammarInvalid(Exception):
    """The grammar is refused. ``detail`` names the rule or the place, in printable text that quotes only rule names."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Literal(NamedTuple):
    """Never empty: an empty one stands for nothing and is left out."""

    text: str


class Class(NamedTuple):
    """Code points, both ends included. ``negated`` means all others."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool


class Reference(NamedTuple):
    name: str


class Group(NamedTuple):
    alternates: "Alternates"


class Repeat(NamedTuple):
    """``most`` None is endless."""

    item: "Node"
    least: int
    most: int | None


Node = Literal | Class | Reference | Group | Repeat
Sequence = tuple[Node, ...]
Alternates = tuple[Sequence, ...]

ANY_CHARACTER: Final = Class(((0, LAST_CODE_POINT),), False)


def parse(text: str) -> dict[str, Alternates]:
    """GBNF -> its rules by name, in order. Raises ``GrammarInvalid``."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise GrammarInvalid(f"a grammar of more than {MAX_BYTES} bytes")
    if "\0" in text:
        raise GrammarInvalid("a zero byte, where llama.cpp would stop reading")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise GrammarInvalid("a lone surrogate")
    return _Reader(text).rules()


class _Reader:
    """One pass over the text. ``_symbols`` counts as llama.cpp counts its symbol table, which its bound on repetitions
    depends on: every name seen so far, every group and every optional repetition."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._items = 0
        self._elements = 0
        self._made = 0
        self._names: set[str] = set()
        self._rule = ""

    @property
    def _symbols(self) -> int:
        return len(self._names) + self._made

    def rules(self) -> dict[str, Alternates]:
        found: dict[str, Alternates] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            if name in found:
                raise GrammarInvalid(f"rule {name} is given twice")
            if len(found) == MAX_RULES:
                raise GrammarInvalid(f"more than {MAX_RULES} rules")
            self._rule = name
            found[name] = self._definition()
        self._check_references(found)
        return found

    def _check_references(self, found: dict[str, Alternates]) -> None:
        if "root" not in found:
            raise GrammarInvalid("there is no rule named root")
        missing = sorted(self._names - found.keys())
        if missing:
            raise GrammarInvalid(f"rule {missing[0]} is used and not given")

    def _definition(self) -> Alternates:
        self._skip(lines=False)
        if not self._text.startswith("::=", self._at):
            raise self._error("expected ::=")
        self._at += 3
        self._skip(lines=True)
        alternates, _symbols = self._alternates(nesting=0)
        end = _END_OF_LINE.match(self._text, self._at)
        if end is None:
            raise self._error("expected the end of the line")
        self._at = end.end()
        self._skip(lines=True)
        return alternates

    def _alternates(self, nesting: int) -> tuple[Alternates, int]:
        """The alternates from here on, and how many symbols they added."""
        before = self._symbols
        alternates = [self._sequence(nesting)]
        while self._next() == "|":
            self._at += 1
            self._count(elements=1)
            self._skip(lines=True)
            alternates.append(self._sequence(nesting))
        if not any(alternates):
            raise self._error("nothing but the empty text")
        return tuple(alternates), self._symbols - before

    def _sequence(self, nesting: int) -> Sequence:
        items: list[Node] = []
        elements = symbols = 0  # of the last item, as llama.cpp counts them
        repeatable = False
        while (character := self._next()) not in {"", "|", ")", "\r", "\n"}:
            if character in "*+?{":
                if not repeatable:
                    raise self._error("nothing to repeat")
                least, most = self._bounds(character, nesting)
                elements, symbols = self._repeat(elements, symbols, least, most)
                items[-1] = Repeat(items[-1], least, most)
                continue
            item, elements, symbols = self._item(character, nesting)
            self._skip(lines=nesting > 0)
            repeatable = item is not None
            if item is not None:
                items.append(item)
                self._count(elements=elements)
        return tuple(items)

    def _item(self, character: str, nesting: int) -> tuple[Node | None, int, int]:
        """One item, its elements in this rule and the symbols inside it; None for an empty literal."""
        self._items += 1
        if self._items > MAX_ITEMS:
            raise GrammarInvalid(f"more than {MAX_ITEMS} items")
        if character == '"':
            text = self._literal()
            return (Literal(text) if text else None), len(text), 1
        if character == "[":
            ranges = self._class()
            return ranges, sum(1 + (low != high) for low, high in ranges.ranges), 1
        if character == "(":
            return self._group(nesting)
        if character == ".":
            self._at += 1
            return ANY_CHARACTER, 1, 1
        if character in "<!":
            raise self._error("a token reference; only text can be described")
        return Reference(self._name()), 1, 1

    def _literal(self) -> str:
        found = _LITERAL.match(self._text, self._at)
        if found is None:
            raise self._error("a literal that does not end, or an unknown escape")
        self._at = found.end()
        text = found[1]
        return _ONE_ESCAPE.sub(lambda escape: chr(self._code_point(escape[0])), text) if "\\" in text else text

    def _class(self) -> Class:
        found = _CLASS.match(self._text, self._at)
        if found is None:
            raise self._error("a character class that is empty or does not end, or an unknown escape")
        self._at = found.end()
        ranges = []
        for one in _RANGE.finditer(found[2]):
            low = self._code_point(one[1])
            high = self._code_point(one[2]) if one[2] else low
            if high < low:
                raise self._error("a range that runs backwards")
            ranges.append((low, high))
            if len(ranges) > MAX_CLASS_RANGES:
                raise self._error(f"a character class of more than {MAX_CLASS_RANGES} ranges")
        return Class(tuple(ranges), bool(found[1]))

    def _code_point(self, written: str) -> int:
        if not written.startswith("\\"):
            return ord(written)
        if written[1] not in "xuU":
            return ord(_SIMPLE_ESCAPES.get(written[1], written[1]))
        value = int(written[2:], 16)
        if value > LAST_CODE_POINT:
            raise self._error("a code point beyond Unicode")
        return value

    def _group(self, nesting: int) -> tuple[Node, int, int]:
        if nesting == MAX_NESTING:
            raise self._error(f"groups nested deeper than {MAX_NESTING}")
        self._at += 1
        self._skip(lines=True)
        self._made += 1
        self._count(elements=1)
        alternates, symbols = self._alternates(nesting + 1)
        if self._next() != ")":
            raise self._error("a group that does not end")
        self._at += 1
        return Group(alternates), 1, symbols + 1

    def _bounds(self, character: str, nesting: int) -> tuple[int, int | None]:
        self._at += 1
        self._skip(lines=nesting > 0)
        if character != "{":
            return _SUFFIXES[character]
        least = self._number(nesting)
        most: int | None = least
        if self._next() == ",":
            self._at += 1
            self._skip(lines=nesting > 0)
            most = None if self._next() == "}" else self._number(nesting)
        if self._next() != "}":
            raise self._error("a repetition that does not end")
        self._at += 1
        self._skip(lines=nesting > 0)
        if most is not None and not max(1, least) <= most:
            raise self._error("a repetition that can never be, or is of nothing")
        return least, most

    def _number(self, nesting: int) -> int:
        found = _NUMBER.match(self._text, self._at)
        if found is None:
            raise self._error("expected a number")
        if len(found[0]) > 4 or int(found[0]) > MAX_REPETITIONS:
            raise self._error(f"a repetition of more than {MAX_REPETITIONS}")
        self._at = found.end()
        self._skip(lines=nesting > 0)
        return int(found[0])

    def _repeat(self, elements: int, symbols: int, least: int, most: int | None) -> tuple[int, int]:
        """What the last item has become, in llama.cpp's rewriting: ``least`` copies, then one rule for each more."""
        times = most or least or 1
        if symbols * times > MAX_REPETITIONS:
            raise self._error(f"a repetition of more than {MAX_REPETITIONS} rules")
        optional = 1 if most is None else most - least
        written = elements * max(least, 0) + (1 if optional else 0)
        self._made += optional
        self._count(elements=written + optional * (elements + 3))
        return written, symbols * times

    def _count(self, *, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise GrammarInvalid(f"more than {MAX_ELEMENTS} elements when its repetitions are written out")

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error("expected a name")
        if len(found[0]) > MAX_NAME_CHARACTERS:
            raise self._error(f"a name of more than {MAX_NAME_CHARACTERS} characters")
        self._at = found.end()
        self._names.add(found[0])
        return found[0]

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, *, lines: bool) -> None:
        found = (_BLANK_LINES if lines else _BLANK).match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _error(self, problem: str) -> GrammarInvalid:
        where = f"rule {self._rule}, " if self._rule else ""
        return GrammarInvalid(f"{where}line {self._text.count(chr(10), 0, self._at) + 1}: {problem}")
