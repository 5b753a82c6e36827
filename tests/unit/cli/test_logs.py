"""No text that a record quotes is more than one line of the log, or does anything to whoever looks at it."""

import logging
import sys

import pytest

from appliance.cli.logs import OneLine

ODD = "a\r\nb\x1b[2J\u2028\u2029\u202e\u0085\x00\ud800c"


def line(message: str, *arguments: object, exc_info: object = None) -> str:
    record = logging.LogRecord("x", logging.INFO, "", 0, message, arguments, exc_info)  # type: ignore[arg-type]
    return OneLine("%(levelname)s %(message)s").format(record)


@pytest.mark.parametrize("character", ODD)
def test_character_that_is_not_printable_is_escaped(character: str) -> None:
    told = line("refused: %s", f"({character})")
    assert told.isprintable()
    assert told == f"INFO refused: ({character if character.isprintable() else ascii(character)[1:-1]})"


def test_text_that_is_printable_is_left_as_it_is() -> None:
    assert line("Größe: %s ≤ %d €, \\n", "'x'", 3) == "INFO Größe: 'x' ≤ 3 €, \\n"


def test_traceback_is_on_the_line_of_its_record() -> None:
    try:
        raise ValueError(ODD)
    except ValueError:
        told = line("request %s", "r-1", exc_info=sys.exc_info())
    assert told.startswith("INFO request r-1\\nTraceback (most recent call last):\\n")
    assert told.isprintable()
