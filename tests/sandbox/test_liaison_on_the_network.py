"""The one service that opens connections: behind its fence it resolves names and reaches the configured ports only."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.sandbox import layers

CHILD = Path(__file__).parents[1] / "support" / "liaison_names.py"
INSIDE = 'ip link set lo up && mount --bind "$1" /etc/resolv.conf && exec "$2" -I -B "$3"'


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")
@pytest.mark.skipif(not (shutil.which("unshare") and shutil.which("ip")), reason="needs unshare and ip")
def test_liaison_resolves_names_and_reaches_only_the_configured_ports(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    command = [*apart, "sh", "-c", INSIDE, "sh", resolver, sys.executable, CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    outside = "EACCES" if layers.landlock_abi() >= 4 else "ECONNREFUSED"
    expected = {
        "address": "127.0.0.9",
        "8443": "ECONNREFUSED",
        "443": outside,
        "80": outside,
        "80 by another protocol": "EAFNOSUPPORT",
        "80 without a connect": "EPERM",
    }
    assert json.loads(done.stdout) == expected
