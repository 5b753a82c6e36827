"""Runs ``image/build`` as ``make image`` does, from one copy of the working tree, with the machine's caches."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(
    os.environ.get("PADDOCK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddock"
)
PYTHON = "/usr/bin/python3.11"
"""Debian's, which the image holds too."""


def engine_wheel(programs: tuple[str, ...]) -> Path:
    """The compiled engine; skips the test where the image cannot be made, and says why."""
    if 'VERSION_ID="12"' not in Path("/etc/os-release").read_text():
        pytest.skip("the image is built on Debian 12 only")
    for program in (*programs, "apt-get", PYTHON):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    given = os.environ.get("PADDOCK_ENGINE_WHEEL")
    found = [Path(given)] if given else sorted((CACHE / "wheels").glob("*/llama_cpp_python-*.whl"))
    if not found:
        pytest.skip("no engine wheel in the cache; `make` compiles it")
    return found[-1]


def copy_sources(folder: Path) -> Path:
    """Copies what the image is made from, so that an editor between two builds changes nothing."""
    for part in ("image", "appliance", "requirements"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def command(sources: Path, wheel: Path, *options: str) -> list[str]:
    output = str(REPOSITORY / "build" / "image")
    return [PYTHON, f"{sources}/image/build", "--wheel", str(wheel), "--output", output, *options]


def build(arguments: list[str], cwd: Path = REPOSITORY) -> dict:
    """Runs a build; returns its figures."""
    done = subprocess.run(arguments, cwd=cwd, stdout=subprocess.PIPE, text=True, timeout=500, check=True)
    return json.loads(done.stdout.splitlines()[-1])
