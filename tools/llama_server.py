#!/usr/bin/env python3
"""Builds llama.cpp's own server, with which the engine is compared, and prints the path of the program.

Nothing of it is part of the product. It is compiled once, from the same hash-checked source distribution as the engine,
and linked with the engine's own libraries, which lie beside the program: what differs is what is around them. Needs
only the standard library and what ``setup.py`` needs.
"""

import fcntl
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for those who import this file, whose path has it not

import setup

PROJECT = Path(__file__).resolve().parent / "llama_server.cmake"
PROGRAM = "llama-server"
LIBRARIES = ("libllama.so.0", "libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0")


def llama_server() -> Path:
    """The program, from the cache or built now. Others who want it at the same time wait."""
    cache = setup.cache_directory() / "llama-server"
    place = cache / setup.engine_key(PROJECT.read_bytes())
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / PROGRAM).exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                build(Path(scratch)).rename(place)  # same file system: it appears whole
    return place / PROGRAM


def build(scratch: Path) -> Path:
    """A folder with the program and the libraries that it needs."""
    setup.say("compiling llama-server, once: 5 to 10 minutes on two cores")
    started = time.monotonic()
    place = scratch / "out"
    libraries_of(setup.engine_wheel(), place)
    environment = setup.build_environment(scratch)
    source = sources(scratch, environment)
    (source / "CMakeLists.txt").write_bytes(PROJECT.read_bytes())
    configure = ["cmake", "-S", str(source), "-B", str(scratch / "build"), "-G", "Ninja"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", f"-DWHEEL_LIBRARIES={place}"]
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    compile_all = ["cmake", "--build", str(scratch / "build"), "--target", PROGRAM]
    setup.compiling([*compile_all, "--parallel", str(os.cpu_count() or 1)], environment, scratch.parent / "build.log")
    (scratch / "build" / "tools" / "server" / PROGRAM).rename(place / PROGRAM)
    setup.say(f"compiled in {time.monotonic() - started:.0f} s")
    return place


def libraries_of(wheel: Path, place: Path) -> None:
    """The wheel's libraries under the names by which programs ask for them."""
    place.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name in LIBRARIES:
                (place / Path(name).name).write_bytes(archive.read(name))


def sources(scratch: Path, environment: dict[str, str]) -> Path:
    """llama.cpp's tree, out of the source distribution of the bindings. pip checks its hash."""
    command = [*setup.PIP, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command += ["--require-hashes", "-r", str(setup.REQUIREMENTS / "engine.txt"), "--dest", str(scratch)]
    subprocess.run(command, env=environment, check=True)
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(scratch, filter="data")
    return next(scratch.glob("*/vendor/llama.cpp"))


if __name__ == "__main__":
    setup.check_prerequisites()
    print(llama_server())
