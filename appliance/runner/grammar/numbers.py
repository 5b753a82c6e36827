"""Numbers between bounds, digit by digit: what is written is always inside, to the last digit.

Trusts: bounds are finite (``core.strict_json``).
Promises: GBNF for JSON numbers (RFC 8259, 6) within the bounds, without leading zeros and without ``-0``. Numbers with
bounds have no exponent, and as many decimals as the bounds, or none, or more.
Not here: which bounds a schema gives (``schema``).
"""

from decimal import Decimal
from typing import Final, NamedTuple

_LAST_INTEGER: Final = 10**18 - 1
_MAX_DECIMALS: Final = 10
_MAX_LISTED: Final = 48
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
        ways += [way + tail for way in _positive(max(low, 1), high)]
    if low < 0:
        negative = _positive(max(-high, 1), -low)
        ways.append(f'"-" {_one_of(negative)}{tail}')
    return " | ".join(ways)


def _one_of(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


def _positive(low: int, high: int) -> list[str]:
    """Integers from ``low`` >= 1 to ``high``, by their number of digits."""
    ways: list[str] = []
    full: list[int] = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (digits - 1)), min(high, 10**digits - 1)
        if (first, last) == (10 ** (digits - 1), 10**digits - 1):
            full.append(digits)
        else:
            ways.append(_span(str(first), str(last)))
    if full:
        ways.append(f"[1-9]{_digits(full[0] - 1, full[-1] - 1)}")
    return ways


def _digits(least: int, most: int) -> str:
    if most == 0:
        return ""
    if least == most:
        return " [0-9]" if most == 1 else f" [0-9]{{{most}}}"
    return f" [0-9]{{{least},{most}}}"


def _span(low: str, high: str) -> str:
    """Digit strings of one length from ``low`` to ``high``, both included."""
    if low == high:
        return f'"{low}"'
    if not low.strip("0") and not high.strip("9"):
        return _digits(len(low), len(low)).strip()
    same = next(place for place in range(len(low)) if low[place] != high[place])
    if same:
        return f'"{low[:same]}" {_span(low[same:], high[same:])}'
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    ways = []
    if low[1:].strip("0"):
        ways.append(f'"{low[0]}" {_span(low[1:], "9" * rest)}')
        first += 1
    top = ""
    if high[1:].strip("9"):
        top = f'"{high[0]}" {_span("0" * rest, high[1:])}'
        last -= 1
    if first <= last:
        ways.append((f"[{first}-{last}]" if first < last else f'"{first}"') + _digits(rest, rest))
    return _one_of([*ways, top] if top else ways)


def decimals(bounds: Bounds) -> str:
    """Alternatives for numbers between bounds of which at least one is given. Raises ``NumberInvalid``."""
    least, above, most, below = bounds
    if least is None:
        least, above = Decimal(-_open_end(most)), False
    if most is None:
        most, below = Decimal(_open_end(least)), False
    if least > most or (least == most and (above or below)):
        raise NumberInvalid("no number is within the bounds")
    ways = []
    if most >= 0:
        ways += _magnitudes(max(least, Decimal(0)), above and least >= 0, most, below)
    if least < 0:
        nearest, without = (-most, below) if most < 0 else (Decimal(0), True)
        negative = _magnitudes(nearest, without, -least, above)
        ways += [f'"-" {_one_of(negative)}'] if negative else []
    if not ways:
        raise NumberInvalid("no number is within the bounds")
    return " | ".join(ways)


def _open_end(other: Decimal | None) -> int:
    """A power of ten beyond the bound at the other end."""
    return int(10 ** max(_EXACT_DIGITS - 1, len(str(abs(int(other or 0)))) + 1))


def _magnitudes(least: Decimal, above: bool, most: Decimal, below: bool) -> list[str]:
    """Numbers from ``least`` >= 0 to ``most``, without a sign."""
    places = max(1, _places(least), _places(most))
    if (above or below) and len(str(int(most))) + places > _EXACT_DIGITS + 1:
        raise NumberInvalid(f"a number is left out that has more than {_EXACT_DIGITS} digits")
    scale = 10**places
    low, high = int(least * scale), int(most * scale)
    if low == high:
        return [] if above or below else [_exact(low, places)]
    ways = []
    first, last = low // scale, high // scale
    if first == last:
        ways += _fractions(first, low % scale, above, high % scale, places)
    else:
        ways += _fractions(first, low % scale, above, scale, places)
        if first + 1 < last:
            between = _signed(first + 1, last - 1, "")
            room = max(1, _EXACT_DIGITS - len(str(last - 1))) if below else _EXACT_DIGITS
            ways.append(f'({between}) ("." [0-9]{{1,{room}}})?')
        if high % scale:
            ways += _fractions(last, 0, False, high % scale, places)
    return ways if below else [*ways, _exact(high, places)]


def _places(bound: Decimal) -> int:
    exponent = bound.normalize().as_tuple().exponent
    places = max(0, -exponent) if isinstance(exponent, int) else 0
    if places > _MAX_DECIMALS:
        raise NumberInvalid(f"a bound with more than {_MAX_DECIMALS} decimals")
    return places


def _exact(scaled: int, places: int) -> str:
    whole, fraction = divmod(scaled, 10**places)
    return f'"{whole}.{fraction:0{places}}'.rstrip("0").rstrip(".") + '"'


def _fractions(whole: int, low: int, above: bool, high: int, places: int) -> list[str]:
    """``whole`` with a fraction from ``low`` up to, without, ``high``, in units of the last place."""
    ways = []
    more = max(0, min(5, _EXACT_DIGITS - len(str(whole)) - places))
    if above:
        if more:
            ways.append(
                f'"{whole}.{low:0{places}}" [0-9]{{0,{more - 1}}} [1-9]'
                if more > 1
                else f'"{whole}.{low:0{places}}" [1-9]'
            )
        low += 1
    elif low == 0:
        ways.append(f'"{whole}"')
    for fewer in range(1, places):
        unit = 10 ** (places - fewer)
        first, last = -(-low // unit), (high - 1) // unit
        if first <= last:
            ways.append(f'"{whole}." {_span(f"{first:0{fewer}}", f"{last:0{fewer}}")}')
    if low < high:
        tail = f" [0-9]{{0,{more}}}" if more else ""
        ways.append(f'"{whole}." {_span(f"{low:0{places}}", f"{high - 1:0{places}}")}{tail}')
    return ways
