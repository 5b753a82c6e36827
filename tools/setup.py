#!/usr/bin/env python3
"""Makes the virtual environment that `make demo` and `make test` use. Needs only the standard library.

llama-cpp-python is compiled once, from its hash-checked source distribution, and the wheel is kept outside the
virtual environment under a key of everything that went into it, so that every later set-up takes seconds.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
CMAKE_ARGS = "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"
"""Not for this machine's CPU alone (the wheel goes into the image too), and without the image decoders."""
PIP = ("python", "-m", "pip", "--disable-pip-version-check")
"""That of the environment that is first in the PATH."""


def main() -> None:
    check_prerequisites()
    if sys.argv[1:] == ["--wheel"]:
        print(engine_wheel())
        return
    python = make_environment()
    install(python, "--require-hashes", "-r", str(REQUIREMENTS / "dev.txt"))
    install(python, "--no-deps", "--force-reinstall", str(engine_wheel()))
    install(python, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    (VENV / ".ready").touch()


def check_prerequisites() -> None:
    """Names everything that is missing at once, with the line that cures it."""
    packages = []
    if sys.version_info < (3, 11):
        sys.exit(f"Paddock needs Python 3.11 or newer; this is {platform.python_version()}.")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        packages.append("python3-venv")
    for command, package in (("cc", "gcc"), ("c++", "g++"), ("make", "make"), ("git", "git")):
        if shutil.which(command) is None:
            packages.append(package)
    if packages:
        sys.exit(f"Missing: {', '.join(packages)}. Cure: sudo apt-get install -y {' '.join(packages)} libc6-dev")


def make_environment() -> Path:
    python = VENV / "bin" / "python"
    if not python.exists():
        say("making the virtual environment")
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    return python


def install(python: Path, *arguments: str) -> None:
    say(f"installing {Path(arguments[-1]).name}")
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


def cache_directory() -> Path:
    chosen = os.environ.get("PADDOCK_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "paddock"


def engine_key(*more: bytes) -> str:
    """A name for what is compiled from the engine's sources: it changes with everything that goes into it."""
    inputs = [(REQUIREMENTS / name).read_bytes() for name in ("engine.txt", "build.txt")]
    inputs += [CMAKE_ARGS.encode(), platform.machine().encode(), "-".join(platform.libc_ver()).encode(), *more]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]


def engine_wheel() -> Path:
    """The compiled engine, from the cache or built now."""
    directory = cache_directory() / "wheels" / engine_key()
    wheels = sorted(directory.glob("*.whl"))
    if wheels:
        say(f"found the compiled engine in {directory}")
        return wheels[0]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(
            f"cannot keep the compiled engine in {directory}: {error.strerror}. Set PADDOCK_CACHE to a folder of yours."
        )
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        built = build_engine(Path(scratch))
        return Path(shutil.move(built, directory / built.name))  # same file system: the wheel appears whole


def build_engine(scratch: Path) -> Path:
    say("compiling llama.cpp, once: 5 to 15 minutes on two cores")
    started = time.monotonic()
    environment = build_environment(scratch)
    environment |= {"CMAKE_ARGS": CMAKE_ARGS, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    command = [*PIP, "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--require-hashes"]
    command += ["-r", str(REQUIREMENTS / "engine.txt"), "--wheel-dir", str(scratch / "wheels")]
    compiling(command, environment, scratch.parent / "build.log")
    say(f"compiled in {time.monotonic() - started:.0f} s")
    return next((scratch / "wheels").glob("*.whl"))


def build_environment(scratch: Path) -> dict[str, str]:
    """A new virtual environment with the build's own tools, first in the PATH."""
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "venv")], check=True)
    bin = scratch / "venv" / "bin"
    install(bin / "python", "--require-hashes", "-r", str(REQUIREMENTS / "build.txt"))
    return {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}


def compiling(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Runs one long command to its end, or ends this program."""
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        follow(process.stdout, file)
    if process.returncode != 0:
        sys.exit(f"the compilation failed; its output is in {log}")


def follow(lines, log) -> None:
    """Writes everything to the log and every tenth of the way to the terminal."""
    shown = -1
    for line in lines:
        log.write(line)
        match = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if match:
            done, total = map(int, match.groups())
            if done * 10 // total > shown:
                shown = done * 10 // total
                say(f"  {done} of {total} steps")


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
