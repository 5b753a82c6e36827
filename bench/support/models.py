"""The two models of the benchmarks: both recite one script, one in no time, the other at the pace of a real one."""

import subprocess
import sys
from pathlib import Path
from typing import Final

_TOOL: Final = Path(__file__).parents[2] / "tools" / "chain_gguf.py"
_WORDS: Final = 400
"""More than any answer asks for, so that every answer ends by its length."""

QUICK: Final = "quick"
PACED: Final = "paced"
_WIDTHS: Final = {QUICK: 256, PACED: 1536}
"""The paced model computes some milliseconds per step, so that tokens come one by one as those of a real model do and
not faster than anybody could read them off."""


def make_models(directory: Path) -> dict[str, Path]:
    """Name -> file."""
    return {name: make_model(directory, name) for name in _WIDTHS}


def make_model(directory: Path, name: str) -> Path:
    """One of them, as a file."""
    path = directory / f"{name}.gguf"
    words = " ".join(f"w{number}" for number in range(_WORDS))
    command = [sys.executable, str(_TOOL), str(path), "--text", words, "--dim", str(_WIDTHS[name])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path
