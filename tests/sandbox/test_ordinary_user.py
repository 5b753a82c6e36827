"""The same sandbox for a user without any privilege: the tests run as root in CI, most people do not."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.sandbox import layers, probe

NOBODY = 65534
REPOSITORY = Path(__file__).parents[2]

SCENARIO = """
import asyncio, json
from appliance.cli import sandbox_probe
from appliance.sandbox import probe
from appliance.warden.launch_spawn import SpawnLauncher
from appliance.warden.starter_client import Starter
from tests.support.live_runner import hand_over, launched, inner_pid, receive, status

async def main():
    async with launched() as runner:
        fenced = await receive(runner)
        await hand_over(runner)
        await runner.inspect(frozenset(fenced.layers))
        seen = status(inner_pid(runner))
    with Starter() as starter:
        outcomes = await sandbox_probe.run_probe(SpawnLauncher(starter), probe.ESSENTIAL)
    print(json.dumps({
        "layers": fenced.layers, "degraded": fenced.degraded,
        "uid": seen["Uid"].split()[0], "seccomp": seen["Seccomp"],
        "wrong": [o.name for o in (*outcomes, *sandbox_probe.run_without_filters()) if not o.ok],
    }))

asyncio.run(main())
"""


@pytest.fixture
def interpreter() -> Iterator[str]:
    """A Python that nobody may run. Where this one lies in a closed home, the system's with the same packages."""
    if os.geteuid() != 0 or _reachable(sys.executable):
        yield sys.executable
        return
    system = shutil.which("python3", path="/usr/bin:/bin")
    if system is None or _version(system) != sys.version_info[:2]:
        pytest.skip("no interpreter that another user may run")
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        packages.mkdir(parents=True)
        (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
        (Path(folder) / "pyvenv.cfg").write_text(f"home = {Path(system).parent}\n")
        (Path(folder) / "bin").mkdir()
        (Path(folder) / "bin" / "python3").symlink_to(system)
        Path(folder).chmod(0o755)
        yield str(Path(folder) / "bin" / "python3")


def _reachable(path: str) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).resolve().parents)


def _version(python: str) -> tuple[int, int]:
    text = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    major, minor = text.split()
    return int(major), int(minor)


def test_ordinary_user_gets_no_fewer_layers_than_root(interpreter: str) -> None:
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [interpreter, "-c", SCENARIO], capture_output=True, timeout=60, cwd=REPOSITORY, check=False, **as_nobody
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert {*report["layers"], layers.SECCOMP_STAGE_1, layers.SECCOMP_STAGE_2} == set(layers.LAYERS)
    assert report["degraded"] == []
    assert report["wrong"] == []
    assert report["seccomp"] == "2"
    assert report["uid"] != "0"
    assert len(probe.ESSENTIAL) == 5
