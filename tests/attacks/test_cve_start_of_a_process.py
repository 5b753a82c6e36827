"""What runs before our first line: start-up files of Python, loader variables, hooks. None of it may come from outside.

A planted file runs only if Python looks where it lies. So it is planted everywhere that the user, the environment and
the current folder can name, and a plain Python shows that it works there.
"""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import appliance
from appliance import settings
from appliance.core.gguf import GgufInvalid
from appliance.runner.main import ENVIRONMENT
from appliance.warden.commands import RUNNER_COMMAND, STARTER_COMMAND, VALIDATOR_COMMAND
from appliance.warden.starter_client import Starter
from appliance.warden.validate import SandboxedValidator
from tests.support.gguf_files import small_model_bytes
from tests.support.live_runner import launched, receive, within_limit
from tests.support.signed_models import memory_file

ROOT = Path(__file__).parents[2]
PACKAGE = Path(appliance.__file__).parent
ROLES = ("gateway", "notary", "warden", "serve")
LIMIT_SECONDS = 60


class Trap:
    """Start-up files in every place that an attacker can name, and what they leave when they run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.canary = directory / "canary"
        self.home, self.path, self.folder = (directory / name for name in ("home", "path", "folder"))
        code = f"import os, pathlib; pathlib.Path({str(self.canary)!r}).write_text('owned')"
        user_site = self.home / ".local/lib/python3.11/site-packages"
        for place in (user_site, self.path, self.folder):
            place.mkdir(parents=True)
            (place / "litellm_init.pth").write_text(f"import sys; exec({code!r})\n")
            for name in ("sitecustomize.py", "usercustomize.py", "argparse.py", "appliance.py", "msgspec.py"):
                (place / name).write_text(code + "\n")
        (self.path / "startup.py").write_text(code + "\n")
        for name, value in {
            "HOME": self.home,
            "PYTHONUSERBASE": self.home / ".local",
            "PYTHONPATH": self.path,
            "PYTHONSTARTUP": self.path / "startup.py",
            "PYTHONINSPECT": "",
            "PYTHONBREAKPOINT": "sitecustomize.x",
        }.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.chdir(self.folder)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    return Trap(tmp_path, monkeypatch)


def test_the_trap_works_on_a_python_that_looks_there(trap: Trap) -> None:
    subprocess.run([sys.executable, "-c", ""], timeout=LIMIT_SECONDS, check=False, capture_output=True)
    assert trap.canary.exists()


# --- LiteLLM 1.82.7 and 1.82.8, March 2026: a .pth file in a published package ----------------------------------------


def test_litellm_1_82_8_planted_start_up_files_do_not_run_in_a_runner(trap: Trap) -> None:
    async def scenario() -> None:
        async with launched() as runner:
            assert await receive(runner) is not None  # fenced in, or a layer is missing: all imports are done

    within_limit(scenario)
    assert not trap.canary.exists()


def test_litellm_1_82_8_planted_start_up_files_do_not_run_in_a_validator(trap: Trap) -> None:
    fd = memory_file(small_model_bytes()[:-1])
    try:
        with Starter() as starter, pytest.raises(GgufInvalid):
            SandboxedValidator(starter)(fd)
    finally:
        os.close(fd)
    assert not trap.canary.exists()


@pytest.mark.parametrize("role", ROLES)
def test_litellm_1_82_8_planted_start_up_files_do_not_run_in_a_service(trap: Trap, role: str) -> None:
    """As the supervisor starts them. They end at once: there is no such configuration."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-m", "appliance", role, "--config", "/nonexistent"],
        env=settings.child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert b"/nonexistent" in done.stderr
    assert not trap.canary.exists()


def test_litellm_1_82_8_every_python_that_we_start_looks_nowhere_else() -> None:
    """-I: no user folder, no current folder, no variable. All that follows ``sys.executable`` in a command."""
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                assert ast.unparse(node.elts[1]) == "'-I'", f"{path.name}:{node.lineno}"
                found += 1
    assert found >= 5
    assert RUNNER_COMMAND[1] == VALIDATOR_COMMAND[1] == STARTER_COMMAND[1] == "-I"
    for unit in (ROOT / "systemd").glob("*.service"):
        [start] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        assert start.split()[1] == "-I", unit.name
    entry = re.search(r"^ENTRYPOINT (.*)$", (ROOT / "image/Containerfile").read_text(), re.MULTILINE)
    assert entry is not None
    assert json.loads(entry[1])[1] == "-I"


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``image/application.py``, which makes the image's layers."""
    monkeypatch.syspath_prepend(str(ROOT / "image"))
    yield importlib.import_module("application")
    for name in ("application", "tree"):
        sys.modules.pop(name, None)


def test_litellm_1_82_8_start_up_files_of_a_wheel_do_not_reach_the_image(
    application: ModuleType, tmp_path: Path
) -> None:
    wheel = tmp_path / "litellm-1.82.8-py3-none-any.whl"
    planted = (
        "litellm_init.pth", "sitecustomize.py", "usercustomize.py", "sitecustomize/__init__.py",
        "sitecustomize.cpython-311-x86_64-linux-gnu.so", "litellm-1.82.8.data/purelib/late.pth",
        "litellm-1.82.8.data/platlib/usercustomize.py", "litellm-1.82.8.data/data/lib/python3.11/data.pth",
        "litellm-1.82.8.data/scripts/run", "litellm/inner.pth",
    )  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*planted, "litellm/__init__.py"):
            archive.writestr(name, "import os")
    assert [path.removeprefix(f"{application.PACKAGES}/") for path in application._unpack(wheel)] == [
        "litellm/__init__.py"
    ]


def test_litellm_1_82_8_wheel_that_is_not_the_locked_one_is_not_used(application: ModuleType, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"litellm==1.82.8 \\\n    --hash=sha256:{'0' * 64}\n")
    folder = tmp_path / "cache" / application.hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True)
    (folder / "litellm-1.82.8-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(application.WrongWheel, match="not the locked file"):
        application.fetch_wheels(lock, tmp_path / "cache")


def test_litellm_1_82_8_every_locked_package_has_a_hash() -> None:
    locks = list((ROOT / "requirements").glob("*.txt"))
    assert locks
    for lock in locks:
        for entry in re.split(r"\n(?=[A-Za-z0-9])", lock.read_text()):
            if re.match(r"[A-Za-z0-9_.\[\]-]+==", entry):
                assert "--hash=sha256:" in entry, f"{lock.name}: {entry.splitlines()[0]}"


# --- NVIDIA Container Toolkit: hooks that act on what an image holds, loader variables that are inherited -------------

LOADER = re.compile(r"\bLD_[A-Z_]+|NVIDIA_|CUDA_")


def test_cve_2025_23266_image_and_units_name_no_loader_variable_and_no_hook() -> None:
    """The toolkit's root hooks took LD_PRELOAD from the image's environment; ours has none, and asks for no hook."""
    told = [
        line
        for file in (ROOT / "image/Containerfile", *(ROOT / "systemd").iterdir())
        for line in file.read_text().splitlines()
        if not line.startswith("#")
    ]
    assert [line for line in told if LOADER.search(line)] == []
    assert [line for line in told if re.search(r"hook|nvidia|runtime=", line, re.IGNORECASE)] == []
    [variables] = re.findall(r"^ENV (.*)$", (ROOT / "image/Containerfile").read_text(), re.MULTILINE)
    assert {word.split("=")[0] for word in variables.split()} == {"PATH", "LANG", "TMPDIR"}


def test_cve_2024_0132_image_is_made_without_running_anything_of_it() -> None:
    """No RUN, no base: nothing of an image acts while it is built, so no race on its mounts can either."""
    orders = {line.split()[0] for line in (ROOT / "image/Containerfile").read_text().splitlines() if line[:1].isupper()}
    assert not orders & {"RUN", "COPY", "ONBUILD", "VOLUME", "SHELL"}


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "/nonexistent/canary.so")


@pytest.mark.usefixtures("preloaded")
def test_cve_2025_23266_loader_variables_reach_no_child(caplog: pytest.LogCaptureFixture) -> None:
    """The loader complains on stderr of every process that is started with such a variable: none does."""
    plain = subprocess.run(["/bin/true"], capture_output=True, timeout=LIMIT_SECONDS, check=False)
    assert b"canary.so" in plain.stderr, "the loader would have told"
    assert not set(settings.child_environment()) - {
        "PATH", "HOME", "LANG", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR",
    }  # fmt: skip
    assert not any(LOADER.match(name) for name in ENVIRONMENT)

    async def scenario() -> None:
        async with launched() as runner:
            seen = Path(f"/proc/{runner.pid}/environ").read_bytes()
            assert LOADER.search(seen.decode()) is None
            await receive(runner)

    within_limit(scenario)
    assert "canary.so" not in caplog.text
