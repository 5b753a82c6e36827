"""Repetitions -> a median with its range; and what the figures depend on."""

import os
import platform
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final

_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Figure:
    """The median of some repetitions, with the least and the greatest of them."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        known = sorted(values)
        return cls(round(statistics.median(known), 2), round(known[0], 2), round(known[-1], 2))

    def __str__(self) -> str:
        return f"{self.median:.0f} [{self.least:.0f}-{self.greatest:.0f}]"


@dataclass(frozen=True)
class Estimate:
    """A median with the interval in which it would lie, 95 times in 100, if all were done again."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, groups: Sequence[Sequence[float]]) -> "Estimate":
        """By the bootstrap: groups are drawn again, and values within each, because what was measured together is more
        alike than what was not. Always the same answer for the same values."""
        chance = random.Random(0)
        medians = sorted(
            statistics.median(value for group in chance.choices(groups, k=len(groups))
                              for value in chance.choices(group, k=len(group)))
            for _ in range(_RESAMPLES)
        )  # fmt: skip
        cut = round(_RESAMPLES * 0.025)
        middle = statistics.median(value for group in groups for value in group)
        return cls(middle, medians[cut], medians[-1 - cut])


def plain(value: Any) -> Any:
    """Figures in nested dictionaries -> what ``json`` can write."""
    if isinstance(value, Figure | Estimate):
        return asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, all but the first flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join([first.strip().ljust(widths[0]), *others])

    return "\n".join([title, line(head), *(line(row) for row in rows), ""])


def surroundings() -> dict[str, str]:
    """Versions and machine: without them a figure says little."""
    packages = ("litestar", "uvicorn", "httptools", "msgspec", "wasmtime", "llama-cpp-python")
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "load_average": f"{os.getloadavg()[0]:.1f}",
        **{name: version(name) for name in packages},
    }
