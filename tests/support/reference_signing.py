"""The reference implementation of OpenSSF Model Signing, in a virtual environment of its own, made once and cached."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "interop.txt"
_CACHE = Path(
    os.environ.get("PADDOCK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddock"
)


def reference() -> Path:
    """The interpreter of that environment. Skips the test where it can neither be found nor made, and says why."""
    name = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    place = _CACHE / "interop" / name
    if not (place / "ready").exists():
        _make(place)
    return place / "bin" / "python"


def _make(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    python = place / "bin" / "python"
    steps = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
         "--require-hashes", "--only-binary", ":all:", "-r", str(_REQUIREMENTS)],
    )  # fmt: skip
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        why = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
        pytest.skip(f"the reference implementation cannot be installed here: {''.join(why)}")
    (place / "ready").touch()
