"""Numbers between bounds, digit by digit: what is written is always inside, to the last digit.

Trusts: bounds are finite (``core.strict_json``).
Promises: GBNF for JSON numbers (RFC 8259, 6) within the bounds, without leading zeros and without ``-0``. Numbers with
bounds have no exponent, and as many decimals as the bounds, or none, or more.
Not here: which bounds a schema gives (``schema``).
"""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final, NamedTuple

_LAST_INTEGER: Final = 10**18 - 1
_MAX_DECIMALS: Final = 10
_MAX_LISTED: Final = 48
_MAX_DIGITS: Final = 20
"""Of the whole part of a bound: what lies beyond is no bound for numbers of the digits that are written here."""
_EXACT_DIGITS: Final = 15
"""Decimal numbers of so many digits are different doubles, so that below a bound stays below it when it is read."""


class NumberInvalid(Exception):
    """No number is within these bounds, or none that can be written here."""


class Bounds(NamedTuple):
    """None is unbounded."""

    least: Decimal | None
    above: bool
    most: Decimal | None
    below: bool


def integers(bounds: Bounds, multiple_of: int = 1) -> str:
    """Alternatives for integers. ``multiple_of`` is positive. Raises ``NumberInvalid``."""
    bounds = _within_digits(bounds)
    least, most = _whole_bounds(bounds)
    low, high = -(-least // multiple_of), most // multiple_of
    if low > high:
        raise NumberInvalid("no integer is within the bounds")
    if multiple_of == 1:
        return _signed(low, high, "")
    if high - low < _MAX_LISTED:
        return " | ".join(f'"{number * multiple_of}"' for number in range(low, high + 1))
    zeros = len(str(multiple_of)) - 1
    if multiple_of == 10**zeros:
        return _signed(low, high, "0" * zeros)
    last_digits = {2: "[02468]", 5: "[05]"}.get(multiple_of)
    if last_digits is None or bounds.least is not None or bounds.most is not None:
        raise NumberInvalid(f"multiples of {multiple_of} within these bounds are too many to list")
    return f'"0" | "-"? ([{last_digits[2:]} | [1-9] [0-9]{{0,15}} {last_digits})'


def _within_digits(bounds: Bounds) -> Bounds:
    """Without bounds that no number of ours reaches."""
    least, above, most, below = bounds
    far = Decimal(10**_MAX_DIGITS)
    if (least is not None and least >= far) or (most is not None and most <= -far):
        raise NumberInvalid(f"a bound of more than {_MAX_DIGITS} digits")
    if least is not None and least <= -far:
        least, above = None, False
    if most is not None and most >= far:
        most, below = None, False
    return Bounds(least, above, most, below)


def _whole_bounds(bounds: Bounds) -> tuple[int, int]:
    least = most = None
    if bounds.least is not None:
        least = int(bounds.least.to_integral_value("ROUND_CEILING"))
        least += bounds.above and least == bounds.least
    if bounds.most is not None:
        most = int(bounds.most.to_integral_value("ROUND_FLOOR"))
        most -= bounds.below and most == bounds.most
    return (
        _beyond(most, -1, _LAST_INTEGER) if least is None else least,
        _beyond(least, 1, _LAST_INTEGER) if most is None else most,
    )


def _beyond(other: int | None, sign: int, last: int) -> int:
    """A bound where none is given: the usual one, or one digit more than the bound at the other end has."""
    if other is None or other * sign <= last:
        return sign * last
    return sign * (int(10 ** (len(str(abs(other))) + 1)) - 1)


def _signed(low: int, high: int, zeros: str) -> str:
    """Integers, each but 0 followed by ``zeros``."""
    ways = ['"0"'] if low <= 0 <= high else []
    tail = f' "{zeros}"' if zeros else ""
    if high > 0:
        ways.append(f"{_digits(_Wanted(max(low, 1), high), 0)}{tail}")
    if low < 0:
        ways.append(f'"-" {_digits(_Wanted(max(-high, 1), -low), 0)}{tail}')
    return " | ".join(ways)


class _Wanted(NamedTuple):
    """Positive integers from ``low`` to ``high``. ``tails`` says what follows some of them, ``tail`` what others."""

    low: int
    high: int
    tail: str = ""
    tails: Mapping[int, str] = MappingProxyType({})


def _digits(wanted: _Wanted, start: int) -> str:
    """What may follow the digits of ``start`` (none for 0), one digit at a time: what was written decides what comes,
    so that nothing is left open. The numbers that begin so and have n digits more are an interval for each n."""
    most = len(str(wanted.high)) - len(str(start)) if start else len(str(wanted.high))
    inside = []
    for more in range(1, most + 1):
        first, last = start * 10**more, (start + 1) * 10**more - 1
        first = first or 10 ** (more - 1)
        if last < wanted.low or first > wanted.high:
            continue
        if first < wanted.low or last > wanted.high or any(first <= one <= last for one in wanted.tails):
            return _next_digit(wanted, start)
        inside.append(more)
    stops = wanted.low <= start <= wanted.high
    if not inside:
        return wanted.tails.get(start, wanted.tail) if stops else ""
    here = wanted.tails.get(start, wanted.tail)
    if stops and here != wanted.tail:
        return _next_digit(wanted, start)
    least = 0 if stops else inside[0]
    if start:
        return _times(least, inside[-1]) + _spaced(wanted.tail)
    return f"[1-9]{_spaced(_times(inside[0] - 1, inside[-1] - 1))}{_spaced(wanted.tail)}"


def _next_digit(wanted: _Wanted, start: int) -> str:
    by_rest: dict[str, list[int]] = {}
    for digit in range(0 if start else 1, 10):
        number = start * 10 + digit
        if _is_begun(wanted, number):
            by_rest.setdefault(_digits(wanted, number), []).append(digit)
    ways = [_of_digits(digits) + _spaced(rest) for rest, digits in by_rest.items()]
    if wanted.low <= start <= wanted.high:
        ways.append(wanted.tails.get(start, wanted.tail) or '""')
    return _one_of(ways)


def _is_begun(wanted: _Wanted, number: int) -> bool:
    """Whether a wanted number begins with these digits, or is this one."""
    first, last = number, number
    while first <= wanted.high:
        if last >= wanted.low:
            return True
        first, last = first * 10, last * 10 + 9
    return False


def _of_digits(digits: list[int]) -> str:
    if len(digits) == 1:
        return f'"{digits[0]}"'
    if digits == list(range(digits[0], digits[-1] + 1)):
        return f"[{digits[0]}-{digits[-1]}]"
    return f"[{''.join(map(str, digits))}]"


def _times(least: int, most: int) -> str:
    if most == 0:
        return ""
    return f"[0-9]{{{least},{most}}}" if least < most else f"[0-9]{{{most}}}"


def _spaced(text: str) -> str:
    return f" {text}" if text else ""


def _one_of(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


def decimals(bounds: Bounds) -> str:
    """Alternatives for numbers between bounds of which at least one is given. Raises ``NumberInvalid``."""
    bounds = _within_digits(bounds)
    least, above, most, below = bounds
    room, negative_room = (_EXACT_DIGITS if not without else None for without in (below, above))
    if least is None:
        least, above = Decimal(-_open_end(most)), True
    if most is None:
        most, below = Decimal(_open_end(least)), True
    if least > most or (least == most and (above or below)):
        raise NumberInvalid("no number is within the bounds")
    ways = []
    if most >= 0:
        ways += _magnitudes(max(least, Decimal(0)), above and least >= 0, most, below, room)
    if least < 0:
        nearest, without = (-most, below) if most < 0 else (Decimal(0), True)
        negative = _magnitudes(nearest, without, -least, above, negative_room)
        ways += [f'"-" {_one_of(negative)}'] if negative else []
    if not ways:
        raise NumberInvalid("no number is within the bounds")
    return " | ".join(ways)


def _open_end(other: Decimal | None) -> int:
    """A power of ten beyond the bound at the other end."""
    return int(10 ** max(_EXACT_DIGITS - 1, len(str(abs(int(other or 0)))) + 1))


def _magnitudes(least: Decimal, above: bool, most: Decimal, below: bool, room: int | None) -> list[str]:
    """Numbers from ``least`` >= 0 to ``most``, without a sign. ``room`` is how many decimals there may be between the
    bounds; None is so many that a number below the upper one is not rounded to it."""
    places = max(1, _places(least), _places(most))
    excluded = [bound for bound, without in ((least, above), (most, room is None)) if without]
    if any(len(str(int(bound))) + places > _EXACT_DIGITS + 1 for bound in excluded):
        raise NumberInvalid(f"a number is left out that has more than {_EXACT_DIGITS} digits")
    scale = 10**places
    low, high = int(least * scale), int(most * scale)
    if low == high:
        return [] if above or below else [_exact(low, places)]
    first, last = low // scale, high // scale
    room = room or max(1, _EXACT_DIGITS - len(str(max(1, last - 1))))
    tails = {last: _fraction(last, _Part(0, high % scale, False, below), places)}
    if first == last:
        tails = {last: _fraction(last, _Part(low % scale, high % scale, above, below), places)}
    else:
        tails[first] = _fraction(first, _Part(low % scale, scale, above, True), places)
    # a bound that no number at its own whole part meets, as 5 below 5.0, leaves nothing to write there
    if tails[last] is None:
        del tails[last]
        last -= 1
    if first in tails and tails[first] is None:
        del tails[first]
        first += 1
    if first > last:
        return []
    whole = f'("." [0-9]{{1,{room}}})?'
    written = {number: tail for number, tail in tails.items() if tail is not None}
    ways = [f'"0"{_spaced(written.pop(0, whole))}'] if first == 0 else []
    if last > 0:
        ways.append(_digits(_Wanted(max(first, 1), last, whole, written), 0))
    return ways


class _Part(NamedTuple):
    """Fractions from ``low`` to ``high`` in units of the last place; ``high`` may be one whole."""

    low: int
    high: int
    above: bool
    below: bool


def _places(bound: Decimal) -> int:
    exponent = bound.normalize().as_tuple().exponent
    places = max(0, -exponent) if isinstance(exponent, int) else 0
    if places > _MAX_DECIMALS:
        raise NumberInvalid(f"a bound with more than {_MAX_DECIMALS} decimals")
    return places


def _exact(scaled: int, places: int) -> str:
    whole, fraction = divmod(scaled, 10**places)
    return f'"{whole}.{fraction:0{places}}'.rstrip("0").rstrip(".") + '"'


def _fraction(whole: int, part: _Part, places: int) -> str | None:
    """What may follow the digits of ``whole``: a fraction, or nothing. None if nothing may."""
    more = max(0, min(5, _EXACT_DIGITS - len(str(whole)) - places))
    alone = part.low == 0 and not part.above and not (part.high == 0 and part.below)
    digits = _fraction_digits(part, places, more, "")
    if digits is None:
        return "" if alone else None
    return f'("." {digits})?' if alone else f'"." {digits}'


def _fraction_digits(part: _Part, places: int, more: int, written: str) -> str | None:
    """What may follow these digits of a fraction, one digit at a time; None if nothing may."""
    left = places - len(written)
    unit = 10**left
    first = int(written or "0") * unit
    last = first + unit - 1
    if last < part.low or first > part.high:
        return None
    stops = bool(written) and _is_inside(part, first)
    if left == 0:
        return _after_last_place(part, first, more, stops=stops)
    above_low = first > part.low or (first == part.low and not part.above)
    if above_low and last < part.high:
        return _times(0 if written else 1, left + more)
    by_rest: dict[str, list[int]] = {}
    for digit in range(10):
        rest = _fraction_digits(part, places, more, f"{written}{digit}")
        if rest is not None:
            by_rest.setdefault(rest, []).append(digit)
    ways = [_of_digits(digits) + _spaced(rest) for rest, digits in by_rest.items()]
    if stops:
        ways.append('""')
    return _one_of(ways) if by_rest else ("" if stops else None)


def _is_inside(part: _Part, number: int) -> bool:
    return (part.low < number or (part.low == number and not part.above)) and (
        number < part.high or (part.high == number and not part.below)
    )


def _after_last_place(part: _Part, number: int, more: int, *, stops: bool) -> str | None:
    """More digits stay below the next unit: they are free but at the upper bound, and must not be all 0 just above the
    lower one if that is left out."""
    if number == part.high:
        return "" if stops else None
    if stops:
        return _times(0, more)
    return _not_zero(more) if more else None


def _not_zero(digits: int) -> str:
    """Up to so many digits, of which one is not 0."""
    some = "[1-9]" + _spaced(_times(0, digits - 1))
    return some if digits == 1 else f'({some} | "0" {_not_zero(digits - 1)})'
