"""Numbers as Prometheus reads them: the text exposition format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format. Names are ours and checked by a test;
the values of labels are anybody's, and escaped.
"""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

MEDIA_TYPE: Final = "text/plain; version=0.0.4"
"""To which ``; charset=utf-8`` belongs."""
Kind = Literal["counter", "gauge", "summary"]

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Sample(NamedTuple):
    """One number of a family. ``suffix`` is ``_sum`` or ``_count`` in a summary."""

    labels: dict[str, str]
    value: float
    suffix: str = ""


def family(name: str, kind: Kind, text: str, samples: Iterable[Sample]) -> str:
    """All lines of one family. ``text`` has neither line ends nor backslashes."""
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{sample.suffix}{_braced(sample.labels)} {sample.value}" for sample in samples]
    return "\n".join(lines) + "\n"


def _braced(labels: dict[str, str]) -> str:
    written = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{written}}}" if written else ""
