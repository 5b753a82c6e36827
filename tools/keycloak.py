#!/usr/bin/env python3
"""Fetches Keycloak, a real identity provider for the tests, builds its start-up image, and prints where it lies.

Nothing of it is part of the product. It comes once, from where Maven fetches everything (``mvn`` and Java 17 or later
must be there), is compared with the SHA-256 below, and stays in the cache. Else needs only the standard library.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for those who import this file, whose path has it not

import setup

VERSION = "26.7.3"
SHA256 = "77657f30b7e90d70f727712ce1c967f430fd6a5e9f458d32d8c6df0635345f47"
FETCHER = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
BUILT_FOR = ("--db=dev-mem", "--cache=local", "--health-enabled=false", "--metrics-enabled=false")
"""What Keycloak compiles in: no database on a disk, no cluster."""


def place() -> Path:
    """Where it lies, or would lie."""
    key = hashlib.sha256("\0".join((SHA256, *BUILT_FOR)).encode()).hexdigest()[:16]
    return setup.cache_directory() / "keycloak" / key


def keycloak() -> Path:
    """The distribution, from the cache or fetched now. Others who want it at the same time wait."""
    found = place()
    found.parent.mkdir(parents=True, exist_ok=True)
    with (found.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=found.parent) as scratch:
                built(unpacked(fetched(Path(scratch)), Path(scratch))).rename(found)  # it appears whole
    return found


def fetched(scratch: Path) -> Path:
    """The archive, when it is the one that was meant."""
    setup.say(f"fetching Keycloak {VERSION}, once: about 180 MB")
    command = [
        "mvn",
        "--batch-mode",
        "--quiet",
        "-Dstyle.color=never",
        f"-Dmaven.repo.local={scratch / 'repository'}",
        FETCHER,
    ]
    command += [f"-Dartifact=org.keycloak:keycloak-quarkus-dist:{VERSION}:tar.gz", f"-DoutputDirectory={scratch}"]
    subprocess.run(command, check=True, cwd=scratch, timeout=900)
    (archive,) = scratch.glob("*.tar.gz")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"this is not the Keycloak that was meant: its SHA-256 is {digest}")
    return archive


def unpacked(archive: Path, scratch: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(scratch / "out", filter="data")
    (found,) = (scratch / "out").iterdir()
    return found


def built(home: Path) -> Path:
    """Keycloak would otherwise do this anew at each start."""
    setup.say("building its start-up image")
    started = time.monotonic()
    environment = {**os.environ, "JAVA_OPTS": "-Xms64m -Xmx512m"}
    subprocess.run(
        ["bash", str(home / "bin" / "kc.sh"), "build", *BUILT_FOR],
        env=environment, check=True, stdout=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    setup.say(f"built in {time.monotonic() - started:.0f} s")
    return home


if __name__ == "__main__":
    if not all(shutil.which(program) for program in ("java", "mvn")):
        sys.exit("Missing: java or mvn. Cure: sudo apt-get install -y openjdk-17-jre-headless maven")
    print(keycloak())
