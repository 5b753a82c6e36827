"""Where the processes of Paddock log, and that a record is one line there.

Trusts: whoever reads standard error line by line: journald, a container's log, a terminal.
Promises: whatever a record quotes, it is one line, and nothing in it moves a cursor, hides or reorders text; a
    traceback is on that line too.
Not here: the audit log (``notary``).
"""

import logging
import sys


class OneLine(logging.Formatter):
    """A formatter whose every record is one printable line: what is not printable is written as Python escapes it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def log_to_stderr(layout: str) -> None:
    """From INFO on. ``layout`` as ``logging.Formatter`` has it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(layout))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
