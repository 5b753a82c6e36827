"""What ``paddock demo`` prints: each outcome beside what was expected, as text while it happens or as one object.

Trusts: the texts it is given, apart from control characters.
Promises: no terminal escape from a model's answer reaches the terminal.
Not here: what is tried (``demo_steps``).
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One thing that was tried."""

    name: str
    expected: str
    observed: str
    ok: bool
    detail: dict[str, Any] = field(default_factory=dict)


class Report:
    """Collects outcomes; with ``live`` each is printed at once."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        self.lacking: tuple[str, ...] = ()
        """Layers that this host lacks and that the demo did without."""

    @property
    def good(self) -> bool:
        return bool(self.outcomes) and all(outcome.ok for outcome in self.outcomes)

    def note(self, text: str) -> None:
        """Something that was done on the way."""
        self.notes.append(text)
        if self._live:
            print(f"  · {printable(text)}", flush=True)

    def piece(self, text: str) -> None:
        """A piece of an answer, shown while it arrives."""
        if self._live:
            print(printable(text), end="", flush=True)

    def add(self, name: str, *, expected: str, observed: str, ok: bool, **detail: Any) -> None:
        outcome = Outcome(name, expected, observed, ok, detail)
        self.outcomes.append(outcome)
        if self._live:
            mark = "ok  " if ok else "FAIL"
            print(
                f"\n{mark} {name}\n       expected: {printable(expected)}\n       observed: {printable(observed)}",
                flush=True,
            )

    def summary(self) -> None:
        good = sum(outcome.ok for outcome in self.outcomes)
        print(f"\n{good} of {len(self.outcomes)} outcomes as expected.")
        if self.lacking:
            print(
                f"\nThis host lacks {', '.join(self.lacking)}. The demo did without; an appliance refuses to start here"
                f" unless its settings say\n\n    [sandbox]\n    allow_degraded = {json.dumps(self.lacking)}"
            )

    def as_object(self) -> dict[str, Any]:
        return {
            "ok": self.good,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "notes": self.notes,
            "lacking": list(self.lacking),
        }


def printable(text: str) -> str:
    """The text with control characters shown as escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
