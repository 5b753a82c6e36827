"""Virtual environments for what is not part of ours, made once and cached: one for each ``requirements/NAME.txt``."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_REQUIREMENTS = Path(__file__).parents[2] / "requirements"
_CACHE = Path(
    os.environ.get("PADDOCK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddock"
)


class NotHere(Exception):
    """The environment can neither be found nor made on this host."""


def python_of(name: str) -> Path:
    """The interpreter of an environment. Raises ``NotHere``."""
    requirements = _REQUIREMENTS / f"{name}.txt"
    place = _CACHE / name / hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    if not (place / "ready").exists():
        _make(place, requirements)
    return place / "bin" / "python"


def python_or_skip(name: str) -> Path:
    """The interpreter; skips the test where it cannot be had, and says why."""
    try:
        return python_of(name)
    except NotHere as why:
        pytest.skip(f"{name} cannot be installed here: {why}")


def _make(place: Path, requirements: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    python = place / "bin" / "python"
    steps = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
         "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)],
    )  # fmt: skip
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        why = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
        raise NotHere("".join(why)) from None
    (place / "ready").touch()
