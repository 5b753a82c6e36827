"""How many ways to read an answer a grammar can keep open at once: that many stacks llama.cpp carries along.

llama.cpp follows every possible derivation beside the others. ``s ::= "a" s "x" | "a" s "y" | "b"`` doubles their
number with every ``a`` and takes all memory within thirty tokens; nothing in llama.cpp stops it. So each expression
gets a type, from which a bound follows without running anything:

- nullable, FIRST (what may begin it), FLAST (what may come right after a whole match and lengthen it): Krishnaswami and
  Yallop, *A Typed, Algebraic Approach to Parsing* (PLDI 2019). Where FLAST of one part and FIRST of the next are apart,
  and so are the FIRSTs of alternatives, no input leaves two ways open.
- its least and its greatest length, and how many ways lead through one text: llama.cpp tries them all for every token
  that it must reject, without noticing where they meet again, so that ``("a" | [a-z])*`` takes two to the power of the
  token's length. Tokens longer than ``MAX_PIECE_CHARACTERS`` must therefore be left out by whoever applies a grammar.
- four bounds on places: stacks at its start, stacks at any time inside it, stacks still inside it when it might be
  over, and places in it at all. Where FIRST and FLAST overlap, the bound falls back on the places.

A rule that can nest inside itself has no end of places, so there an overlap is refused. Elsewhere it is allowed as far
as the bounds go. Alternatives that begin with literals of which none is the start of another are apart as well.

References count among the stacks: llama.cpp's search for left recursion walks all of them again from every rule, and
its closure after every character does so too. Its search also misses left recursion behind a rule that is empty only
by way of others; then its closure never ends.

Trusts: ``notation.parse`` for the shape of what it is given.
Promises: at most ``MAX_STEPS`` evaluations, whatever the grammar. No recursion deeper than ``MAX_NESTING`` groups.
Not here: the text (``notation``).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import log2
from typing import Final, NamedTuple

from appliance.runner.grammar.notation import (
    LAST_CODE_POINT,
    Alternates,
    Class,
    GrammarInvalid,
    Group,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
)

MAX_WIDTH: Final = 256
"""Stacks that may be open at once, where the next character decides between them."""
MAX_UNDECIDED: Final = 96
"""Stacks that may stay open after a character that did not decide."""
MAX_PIECE_CHARACTERS: Final = 16
"""The longest token that may be tried against a grammar: the bounds hold for no longer ones."""
MAX_WAYS: Final = 256
"""Through the text of one token."""
MAX_STEPS: Final = 12_000
MAX_REWALKS: Final = 1_000_000
"""References that llama.cpp's search for left recursion may look at."""
MAX_BOUNDARIES: Final = 4096
_MAX_LEADS: Final = 50_000
_ENDLESS: Final = 1 << 20
_COARSE: Final = 0x80  # beyond ASCII, what stands inside a literal is not told apart

Leads = tuple[str, ...]


class Shape(NamedTuple):
    """The type of an expression; sets of characters are bit masks over the grammar's own classes."""

    nullable: bool
    first: int
    flast: int
    every: int
    start: int
    inside: int
    ending: int
    places: int
    ways: int
    shortest: int
    longest: int


_EMPTY: Final = Shape(True, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)


def check_ambiguity(rules: Mapping[str, Alternates]) -> None:
    """Raises ``GrammarInvalid`` for left recursion and for what may cost llama.cpp more than the bounds above."""
    _Check(rules).run()


class _Check:
    def __init__(self, rules: Mapping[str, Alternates]) -> None:
        self._rules = rules
        self._alphabet = _Alphabet(rules.values())
        self._steps = 0
        self._rewalks = 0
        self._leads_made = 0
        self._members: set[str] = set()  # of the component that is looked at, if it is recursive
        self._gains: dict[str, float] = {}
        self._rule = ""
        self._nullable: set[str] = set()
        self._shapes: dict[str, Shape] = {}
        self._leads: dict[str, Leads | None] = {}

    def run(self) -> None:
        components = list(_components(self._rules))
        for component in components:
            self._find_nullable(component)
        for component in components:
            self._refuse_left_recursion(component)
        for component in components:
            self._find_shapes(component)
            for name in component:
                self._count_rewalks(name)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise GrammarInvalid("the rules refer to each other in too many ways")

    # --- emptiness --------------------------------------------------------------------------------------------------

    def _find_nullable(self, component: list[str]) -> None:
        changed = True
        while changed:
            changed = False
            for name in component:
                if name not in self._nullable and self._is_nullable(Group(self._rules[name])):
                    self._nullable.add(name)
                    changed = True
        for name in component:
            self._rule = name
            self._refuse_repeated_emptiness(self._rules[name])

    def _is_nullable(self, node: Node) -> bool:
        self._step()
        match node:
            case Reference(name):
                return name in self._nullable
            case Group(alternates):
                return any(all(self._is_nullable(item) for item in sequence) for sequence in alternates)
            case Repeat(item, least, _most):
                return least == 0 or self._is_nullable(item)
        return False

    def _refuse_repeated_emptiness(self, alternates: Alternates) -> None:
        for item in _items(alternates):
            if isinstance(item, Repeat) and item.most != 1 and self._is_nullable(item.item):
                raise self._error("repeats what may be empty")

    # --- left recursion ---------------------------------------------------------------------------------------------

    def _refuse_left_recursion(self, component: list[str]) -> None:
        """A cycle of references before which nothing need be read. Each lies inside one component."""
        members = set(component)
        done: set[str] = set()
        for start in component:
            path: dict[str, None] = {}
            pending = [(start, False)]
            while pending:
                name, left = pending.pop()
                if left:
                    del path[name]
                    done.add(name)
                elif name in path:
                    raise GrammarInvalid(f"rule {name} can begin with itself")
                elif name not in done:
                    path[name] = None
                    pending.append((name, True))
                    pending += [(found, False) for found in self._leftmost(self._rules[name]) if found in members]

    def _leftmost(self, alternates: Alternates) -> Iterator[str]:
        for sequence in alternates:
            for item in sequence:
                self._step()
                while isinstance(item, Repeat):
                    item = item.item  # noqa: PLW2901
                if isinstance(item, Reference):
                    yield item.name
                elif isinstance(item, Group):
                    yield from self._leftmost(item.alternates)
                if not self._is_nullable(item):
                    break

    # --- shapes -----------------------------------------------------------------------------------------------------

    def _find_shapes(self, component: list[str]) -> None:
        """The least shapes that fit the rules of one component; each only ever grows."""
        members = set(component)
        places = self._component_places(component, members)
        for name in component:
            self._shapes[name] = _EMPTY._replace(nullable=name in self._nullable, places=places)
        recursive = len(component) > 1 or component[0] in _references(self._rules[component[0]])
        self._members = members if recursive else set()
        self._gains = {}
        changed = True
        while changed:
            changed = False
            for name in component:
                self._rule = name
                self._leads[name] = self._leads_of(self._rules[name])
                shape = self._bounded(self._alternates(self._rules[name]), places, recursive=recursive)
                if shape != self._shapes[name]:
                    self._shapes[name] = shape
                    changed = recursive

    def _bounded(self, shape: Shape, places: int, *, recursive: bool) -> Shape:
        if recursive and shape.ways > 1:
            raise self._error("refers back to itself, and leaves more than one way open after the same text")
        if shape.inside > MAX_WIDTH or shape.start > MAX_WIDTH:
            raise self._error(f"leaves more than {MAX_WIDTH} ways open")
        longest = _ENDLESS if recursive else shape.longest
        return shape._replace(ending=min(shape.ending, places), places=places, longest=longest)

    def _component_places(self, component: list[str], members: set[str]) -> int:
        if any(_nests(self._rules[name], members, last=True) for name in component):
            return _ENDLESS
        return min(_ENDLESS, sum(self._places(Group(self._rules[name]), members) for name in component))

    def _places(self, node: Node, members: set[str]) -> int:
        self._step()
        match node:
            case Literal(text):
                return len(text)
            case Class(ranges, _negated):
                return len(ranges)
            case Reference(name):
                return 1 if name in members else 1 + self._shapes[name].places
            case Group(alternates):
                return 1 + sum(self._places(item, members) for sequence in alternates for item in sequence)
            case Repeat(item, least, most):
                return (least + 1 if most is None else most) * (1 + self._places(item, members))

    def _alternates(self, alternates: Alternates) -> Shape:
        ways = [(self._sequence(sequence), self._lead_of(sequence)) for sequence in alternates]
        if len(ways) == 1:
            return ways[0][0]
        if not _apart(ways):
            flat = [(shape, lead) for shape, lead in ways if shape.places < _ENDLESS]
            nesting = [(shape, lead) for shape, lead in ways if shape.places >= _ENDLESS]
            if flat and nesting:
                ways = [(self._choice(flat), None), *nesting]
        return self._choice(ways)

    def _choice(self, ways: list[tuple[Shape, Leads | None]]) -> Shape:
        shapes = [shape for shape, _lead in ways]
        start = sum(shape.start for shape in shapes)
        places = min(_ENDLESS, sum(shape.places for shape in shapes))
        shortest, longest = min(shape.shortest for shape in shapes), max(shape.longest for shape in shapes)
        every = _union(shape.every for shape in shapes)
        if _apart(ways):
            inside = max(start, *(shape.inside for shape in shapes)) if len(shapes) > 1 else shapes[0].inside
            ending = max(shape.ending for shape in shapes)
            flast = _union(shape.flast for shape in shapes)
            ways_through = max(shape.ways for shape in shapes)
        else:
            if places >= _ENDLESS:
                raise self._error("nests, and its alternatives begin alike")
            inside = ending = self._undecided(sum(shape.inside for shape in shapes))
            ways_through = self._few(sum(shape.ways for shape in shapes))
            flast = every
        nullable = any(shape.nullable for shape in shapes)
        first = _union(shape.first for shape in shapes)
        return Shape(nullable, first, flast, every, start, inside, ending, places, ways_through, shortest, longest)

    def _sequence(self, sequence: Sequence) -> Shape:
        """Neighbours that cannot nest are joined first: among them an overlap is no harm."""
        whole = flat = _EMPTY
        for item in sequence:
            shape = self._shape(item)
            if shape.places < _ENDLESS:
                flat = self._join(flat, shape)
            else:
                whole = self._join(self._join(whole, flat), shape)
                flat = _EMPTY
        return self._join(whole, flat)

    def _join(self, left: Shape, right: Shape) -> Shape:
        if left is _EMPTY:
            return right
        if right is _EMPTY:
            return left
        start = left.start + (right.start if left.nullable else 0)
        every = left.every | right.every
        places = min(_ENDLESS, left.places + right.places)
        first = left.first | (right.first if left.nullable else 0)
        nullable = left.nullable and right.nullable
        ways = self._few(left.ways * right.ways)
        length = (left.shortest + right.shortest, min(_ENDLESS, left.longest + right.longest))
        if (left.flast | (left.first if left.nullable else 0)) & right.first:
            if places >= _ENDLESS:
                raise self._error("nests, and one part may begin as the part before it goes on")
            inside = ending = self._undecided(left.inside + right.places)
            ways = self._few(ways * _borders(left))
            return Shape(nullable, first, every, every, start, inside, ending, places, ways, *length)
        still_left = max(left.ending, left.start if left.nullable else 0)
        inside = max(left.inside, still_left + right.start, right.inside)
        ending = max(right.ending, left.ending + right.start if right.nullable else 0)
        flast = right.flast | (right.first | left.flast if right.nullable else 0)
        return Shape(nullable, first, flast, every, start, inside, ending, places, ways, *length)

    def _shape(self, node: Node) -> Shape:
        self._step()
        match node:
            case Literal(text):
                every = self._alphabet.of_literal(text)
                first = self._alphabet.of(ord(text[0]), ord(text[0]))
                return Shape(False, first, 0, every, 1, 1, 0, len(text), 1, len(text), len(text))
            case Class(ranges, _negated):
                mask = self._alphabet.of_class(node)
                return Shape(False, mask, 0, mask, len(ranges), len(ranges), 0, len(ranges), 1, 1, 1)
            case Reference(name):
                shape = self._shapes[name]
                if self._members and shape.ways > 1 and name not in self._members:
                    shape = self._with_gain(name, shape)
                return shape._replace(start=shape.start + 1, inside=max(shape.inside, shape.start + 1))
            case Group(alternates):
                return self._alternates(alternates)
            case Repeat(item, least, most):
                return self._repeated(self._shape(item), least, most)

    def _repeated(self, one: Shape, least: int, most: int | None) -> Shape:
        copies = least + 1 if most is None else most
        places = min(_ENDLESS, copies * (1 + one.places))
        nullable = least == 0 or one.nullable
        start = one.start + 1
        self._rewalks += copies * start
        shortest = least * one.shortest
        if most == 1:
            inside = max(one.inside, start)
            return one._replace(nullable=nullable, start=start, inside=inside, places=places, shortest=shortest)
        length = (shortest, _ENDLESS if most is None else min(_ENDLESS, most * one.longest))
        times = min(_ENDLESS if most is None else most, MAX_PIECE_CHARACTERS // max(1, one.shortest) or 1)
        if one.flast & one.first:
            if places >= _ENDLESS:
                raise self._error("nests, and what it repeats may begin as it goes on")
            inside = ending = self._undecided(places)
            ways = self._few((one.ways * _borders(one)) ** times)
            return Shape(nullable, one.first, one.every, one.every, start, inside, ending, places, ways, *length)
        ways = self._few(one.ways**times)
        inside = max(one.inside, one.ending + start)
        if least == most:
            return Shape(nullable, one.first, one.flast, one.every, start, inside, one.ending, places, ways, *length)
        ending = one.ending + start
        flast = one.flast | one.first
        return Shape(nullable, one.first, flast, one.every, start, inside, ending, places, ways, *length)

    def _undecided(self, ways: int) -> int:
        if ways > MAX_UNDECIDED:
            raise self._error(f"leaves more than {MAX_UNDECIDED} ways open after the same text")
        return ways

    def _with_gain(self, name: str, shape: Shape) -> Shape:
        """A part of a recursion that is itself none, and through which more than one way leads. How often one token can
        pass it depends on its length, and on one character more if it cannot follow itself at once."""
        length = shape.shortest + (1 if shape.first & shape.flast else 0)
        self._gains[name] = log2(shape.ways) / max(1, length)
        if sum(self._gains.values()) * MAX_PIECE_CHARACTERS > log2(MAX_WAYS):
            raise self._error("refers back to itself, and leaves too many ways through the same text")
        return shape._replace(ways=1)

    def _few(self, ways: int) -> int:
        if ways > MAX_WAYS:
            raise self._error(f"leaves more than {MAX_WAYS} ways through the same text")
        return ways

    def _count_rewalks(self, name: str) -> None:
        self._rewalks += self._shapes[name].start
        if self._rewalks > MAX_REWALKS:
            raise GrammarInvalid("the rules refer to each other in too many ways")

    # --- literals that tell alternatives apart ----------------------------------------------------------------------

    def _leads_of(self, alternates: Alternates) -> Leads | None:
        leads: list[str] = []
        for sequence in alternates:
            lead = self._lead_of(sequence)
            if lead is None:
                return None
            leads += lead
        self._leads_made += len(leads)
        return tuple(leads) if self._leads_made <= _MAX_LEADS else None

    def _lead_of(self, sequence: Sequence) -> Leads | None:
        """The literals of which one is at the very start, None where something else can be."""
        match sequence[0] if sequence else None:
            case Literal(text):
                return (text,)
            case Reference(name) if name not in self._nullable:
                return self._leads.get(name)
            case Group(alternates):
                return self._leads_of(alternates)
        return None

    def _error(self, problem: str) -> GrammarInvalid:
        return GrammarInvalid(f"rule {self._rule} {problem}")


def _apart(ways: list[tuple[Shape, Leads | None]]) -> bool:
    """Whether what comes next always decides between these ways, if not by its first character then by a literal."""
    seen = seen_without_lead = 0
    leads: list[str] = []
    by_literal = False
    for shape, lead in ways:
        if shape.first & (seen if lead is None else seen_without_lead):
            return False
        by_literal = by_literal or bool(shape.first & seen)
        seen |= shape.first
        if lead is None:
            seen_without_lead |= shape.first
        else:
            leads += lead
    if not by_literal:
        return True
    leads.sort()
    return not any(later.startswith(earlier) for earlier, later in pairwise(leads))


def _borders(shape: Shape) -> int:
    """Places within a token at which this part may be over."""
    return min(MAX_PIECE_CHARACTERS, shape.longest + 1)


class _Alphabet:
    """The code points cut into intervals that no class and no first character of a literal divides."""

    def __init__(self, rules: Iterable[Alternates]) -> None:
        cuts = {0, LAST_CODE_POINT + 1, *range(_COARSE + 1)}
        for alternates in rules:
            for item in _items(alternates):
                if isinstance(item, Class):
                    for low, high in item.ranges:
                        cuts.update((low, high + 1))
                elif isinstance(item, Literal):
                    cuts.update((ord(item.text[0]), ord(item.text[0]) + 1))
            if len(cuts) > MAX_BOUNDARIES:
                raise GrammarInvalid("too many different characters")
        self._cuts = sorted(cuts)
        self._beyond = self.of(_COARSE, LAST_CODE_POINT)
        self._all = self.of(0, LAST_CODE_POINT)
        self._classes: dict[Class, int] = {}

    def of(self, low: int, high: int) -> int:
        """Both ends lie on cuts."""
        return (1 << bisect_left(self._cuts, high + 1)) - (1 << bisect_left(self._cuts, low))

    def of_class(self, node: Class) -> int:
        mask = self._classes.get(node)
        if mask is None:
            mask = _union(self.of(low, high) for low, high in node.ranges)
            mask = self._classes[node] = self._all & ~mask if node.negated else mask
        return mask

    def of_literal(self, text: str) -> int:
        """All its characters."""
        codes = {ord(character) for character in text}
        plain = _union(1 << code for code in codes if code < _COARSE)
        return plain if max(codes) < _COARSE else plain | self._beyond


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _items(alternates: Alternates) -> Iterator[Node]:
    """Every item, those inside groups and repetitions too."""
    for sequence in alternates:
        for item in sequence:
            yield item
            inner = item
            while isinstance(inner, Repeat):
                inner = inner.item
                yield inner
            if isinstance(inner, Group):
                yield from _items(inner.alternates)


def _references(alternates: Alternates) -> list[str]:
    return [item.name for item in _items(alternates) if isinstance(item, Reference)]


def _nests(alternates: Alternates, members: set[str], *, last: bool) -> bool:
    """Whether a rule of the component is referred to where something is still to come after it: such a reference stays
    on the stack, and the next one on top of it."""
    for sequence in alternates:
        for place, item in enumerate(sequence, 1):
            tail = last and place == len(sequence)
            inner = item
            while isinstance(inner, Repeat):
                tail = tail and inner.most == 1
                inner = inner.item
            if isinstance(inner, Reference) and inner.name in members and not tail:
                return True
            if isinstance(inner, Group) and _nests(inner.alternates, members, last=tail):
                return True
    return False


def _components(rules: Mapping[str, Alternates]) -> Iterator[list[str]]:
    """Strongly connected components of the references, those referred to before those that refer (Tarjan, 1972)."""
    targets = {name: list(dict.fromkeys(_references(alternates))) for name, alternates in rules.items()}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    open_names: dict[str, None] = {}
    for root in rules:
        pending = [] if root in number else [(root, iter(targets[root]))]
        while pending:
            name, rest = pending[-1]
            if name not in number:
                number[name] = low[name] = len(number)
                open_names[name] = None
            for target in rest:
                if target not in number:
                    pending.append((target, iter(targets[target])))
                    break
                if target in open_names:
                    low[name] = min(low[name], number[target])
            else:
                pending.pop()
                if pending:
                    low[pending[-1][0]] = min(low[pending[-1][0]], low[name])
                if low[name] == number[name]:
                    component = []
                    while name in open_names:
                        component.append(open_names.popitem()[0])
                    yield component
