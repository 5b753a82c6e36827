"""A grammar as a generator and as a judge, without llama.cpp: random derivations, and a set of stacks."""

import random
from collections.abc import Iterator

from appliance.runner.grammar.notation import (
    Alternates,
    Class,
    Group,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    parse,
)

_MAX_MORE = 3
_DEEP = 12


class Walk:
    def __init__(self, grammar: str) -> None:
        self._rules = parse(grammar)
        self._sizes: dict[str, float] = dict.fromkeys(self._rules, float("inf"))
        changed = True
        while changed:
            sizes = {name: self._least(Group(alternates)) for name, alternates in self._rules.items()}
            changed, self._sizes = sizes != self._sizes, sizes

    # --- derivations ------------------------------------------------------------------------------------------------

    def text(self, chance: random.Random) -> str:
        """A text of the grammar: anything may come, and from some depth on the shortest does."""
        return "".join(self._derive(Reference("root"), chance, 0))

    def _derive(self, node: Node, chance: random.Random, depth: int) -> Iterator[str]:
        match node:
            case Literal(text):
                yield text
            case Class():
                yield _character(node, chance)
            case Reference(name):
                yield from self._derive(Group(self._rules[name]), chance, depth + 1)
            case Group(alternates):
                sequence = chance.choice(self._shortest(alternates) if depth > _DEEP else alternates)
                for item in sequence:
                    yield from self._derive(item, chance, depth)
            case Repeat(item, least, most):
                upper = least + _MAX_MORE if most is None else min(most, least + chance.choice((0, 1, _MAX_MORE, most)))
                for _time in range(least if depth > _DEEP else chance.randint(least, upper)):
                    yield from self._derive(item, chance, depth)

    def _shortest(self, alternates: Alternates) -> list[Sequence]:
        sizes = [sum(map(self._least, sequence)) for sequence in alternates]
        return [sequence for sequence, size in zip(alternates, sizes, strict=True) if size == min(sizes)]

    def _least(self, node: Node) -> float:
        match node:
            case Reference(name):
                return 1 + self._sizes[name]
            case Group(alternates):
                return min(sum(map(self._least, sequence)) for sequence in alternates)
            case Repeat(item, least, _most):
                return least and least * self._least(item)
        return 1

    # --- acceptance -------------------------------------------------------------------------------------------------

    def accepts(self, text: str) -> bool:
        stacks = self._closure(((Reference("root"),), None))
        for character in text:
            following = set()
            for (first, *rest), below in (stack for stack in stacks if stack):
                if _holds(first, character):
                    left = (Literal(first.text[1:]),) if isinstance(first, Literal) and first.text[1:] else ()
                    following |= self._closure(((*left, *rest), below))
            stacks = following
        return None in stacks

    def _closure(self, stack: tuple | None) -> set:
        """All stacks with a character on top that this one may become. A stack is items and the stack below."""
        seen, pending, found = set(), [stack], set()
        while pending:
            stack = pending.pop()
            key = (stack, *map(type, stack[0])) if stack else None  # a literal equals a reference of the same text
            if key in seen:
                continue
            seen.add(key)
            if stack is None:
                found.add(None)
                continue
            items, below = stack
            if not items:
                pending.append(below)
                continue
            below = (items[1:], below) if items[1:] else below
            match items[0]:
                case Reference(name):
                    pending += [(sequence, below) for sequence in self._rules[name]]
                case Group(alternates):
                    pending += [(sequence, below) for sequence in alternates]
                case Repeat(item, least, most):
                    pending += [] if least else [below]
                    if most != 0:
                        more = Repeat(item, max(least - 1, 0), None if most is None else most - 1)
                        pending.append(((item,), below if more.most == 0 else ((more,), below)))
                case _:
                    found.add(stack)
        return found


def _holds(node: Literal | Class, character: str) -> bool:
    if isinstance(node, Literal):
        return node.text[0] == character
    return any(low <= ord(character) <= high for low, high in node.ranges) != node.negated


def _character(node: Class, chance: random.Random) -> str:
    if node.negated:
        return next(c for c in iter(lambda: chr(chance.randint(0x20, 0x2FF)), "") if _holds(node, c))
    low, high = chance.choice(node.ranges)
    if chance.random() < 0.7:
        high = min(high, max(low, 0x7E))
    code = chance.randint(low, high)
    return chr(code)
