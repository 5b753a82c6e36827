"""The systemd units: how little each may do, by systemd's own count, and that the appliance works in them."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import image_build, nspawn
from tests.support.image_build import REPOSITORY

UNITS = REPOSITORY / "systemd"
SERVICES = ("paddock-gateway", "paddock-notary", "paddock-warden", "paddock-runner@")


# --- what the files say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_no_unit_is_more_exposed_than_one_point_zero(service: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=10", f"./{service}.service"]
    done = subprocess.run(command, cwd=UNITS, capture_output=True, text=True, timeout=30, check=False)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_no_unit_forgets_what_systemd_does_not_score(service: str) -> None:
    text = (UNITS / f"{service}.service").read_text()
    settings = {line.strip() for line in text.splitlines()}
    assert {"LimitCORE=0", "UMask=0077", "PrivateNetwork=yes", "NotifyAccess=none", "MemoryDenyWriteExecute=yes"} <= settings
    assert not re.search(r"^(Environment|LoadCredential|SetCredential).*(KEY|TOKEN|SECRET)", text, re.MULTILINE)
    assert "RestrictAddressFamilies=" + ("none" if service.endswith("@") else "AF_UNIX") in settings


def test_no_socket_file_is_open_to_all() -> None:
    for path in UNITS.glob("*.socket"):
        text = path.read_text()
        if "/run/paddock/" in text:
            assert re.search(r"^SocketMode=06[06]0$", text, re.MULTILINE), path.name
            assert re.search(r"^SocketUser=(root|paddock-\w+)$", text, re.MULTILINE), path.name
        assert re.search(r"^(FileDescriptorName=\w+|Accept=yes)$", text, re.MULTILINE), path.name


# --- in a booted system -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What ``unit_checks`` saw inside."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    wheel = image_build.engine_wheel(("systemd-nspawn", "setpriv"))
    folder = tmp_path_factory.mktemp("booted")
    sources = image_build.copy_sources(folder / "sources")
    layers = Path(image_build.build(image_build.command(sources, wheel, "--layers-only"))["layers"])
    for layer in ("wheels", "appliance"):
        with tarfile.open(layers / f"{layer}.tar") as archive:
            archive.extractall(folder / "overlay", filter="tar")
    (folder / "check").mkdir()
    shutil.copy(REPOSITORY / "tests" / "support" / "unit_checks.py", folder / "check" / "check.py")
    nspawn.make_root(folder / "root", UNITS)
    printed = nspawn.boot(folder / "root", folder / "overlay" / "usr", folder / "check")
    if not printed.startswith("{"):
        journal, stderr = folder / "check" / "journal", folder / "check" / "stderr"
        said = "\n".join(path.read_text() for path in (stderr, journal) if path.exists())
        pytest.fail(f"the check did not end as it should:\n{said[-6000:]}")
    return json.loads(printed)


booted = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mark", [pytest.param("", marks=booted)])
def test_the_inherited_listener_does_not_need_the_network(seen: dict, mark: str) -> None:
    assert seen["healthz"][0] == 200
    assert seen["without token"] == 401
