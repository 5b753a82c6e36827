"""Boots this machine's own systemd, with our units, in a throw-away container: seconds, and nothing to download.

The container's root is a handful of links and an /etc of our making; /usr is the machine's, read-only, with the
appliance laid over it. Needs root and systemd-nspawn, and a Debian-like /usr with Python 3.11.
"""

import re
import shutil
import subprocess
from pathlib import Path

# nspawn filters these; a runner needs them for its own sandbox.
SYSTEM_CALLS = "landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp"

# What its systemd package brings under /etc. The paddock.toml that is replaced comes with the appliance's layer.
DEBIANS_FOLDERS = ("etc/systemd/system", "etc/tmpfiles.d")

CHECK_TARGET = """\
[Unit]
Requires=sysinit.target
Wants=check.service
AllowIsolate=yes
"""

CHECK_SERVICE = """\
[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=180
ExecStart=/usr/lib/paddock/bin/python3 -I -B /check/check.py
ExecStopPost=/bin/sh -c 'journalctl --no-pager > /check/journal'
StandardOutput=file:/check/stdout
StandardError=file:/check/stderr
"""


def make_root(root: Path, repository: Path) -> None:
    """An almost empty root folder that nspawn accepts, with the units installed as docs/install.md says."""
    for folder in (*DEBIANS_FOLDERS, "etc/paddock", "check", "usr", "root"):
        (root / folder).mkdir(parents=True)
    for folder in ("var/lib", "run", "tmp", "proc", "sys", "dev", "home", "boot"):
        (root / folder).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    shutil.copy("/etc/os-release", root / "etc/os-release")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")  # else every preset would be enabled
    script = "\n".join(documented_commands(repository)).replace(" /etc/", f" {root}/etc/")
    subprocess.run(["/bin/sh", "-e", "-c", script], cwd=repository, check=True, timeout=60)
    (root / "etc/systemd/system/check.target").write_text(CHECK_TARGET)
    (root / "etc/systemd/system/check.service").write_text(CHECK_SERVICE)


def documented_commands(repository: Path) -> list[str]:
    """Those of docs/install.md that put the units and what belongs to them under /etc."""
    guide = (repository / "docs" / "install.md").read_text(encoding="utf-8")
    return re.findall(r"^    ((?:cp|install) .*systemd/.* /etc/\S+)", guide, re.MULTILINE)


def boot(root: Path, usr: Path, check: Path, *, timeout_seconds: float = 220) -> str:
    """Boots, runs ``check/check.py`` as root, powers off. ``usr`` is laid over /usr. Returns what it printed; stdout,
    stderr and journal also lie in ``check``."""
    command = ["systemd-nspawn", "--quiet", "--directory", str(root), "--boot", "--private-network", "--register=no"]
    command += ["--keep-unit", "--link-journal=no", "--console=pipe", f"--system-call-filter={SYSTEM_CALLS}"]
    command += [f"--overlay-ro=/usr:{usr}:/usr", f"--bind={check}:/check", "--", "--unit=check.target"]
    # No terminal, and a group of its own: nspawn forwards what it gets there to the container's init.
    subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_seconds, check=False, process_group=0
    )
    stdout = check / "stdout"
    return stdout.read_text() if stdout.exists() else ""
