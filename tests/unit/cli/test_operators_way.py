"""What an operator is told, and what is made for services of other users."""

import asyncio
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import settings
from appliance.cli import init, sandbox_probe, tokens
from appliance.cli.demo_report import Report
from appliance.cli.main import main
from appliance.cli.roles import EXIT_CONFIG, known_service
from appliance.core.refusals import Fault, Misconfigured
from appliance.sandbox import layers

ANOTHER = next(user.pw_name for user in pwd.getpwall() if user.pw_uid != os.getuid())


def config_file(place: Path, extra: str = "") -> Path:
    file = place / "paddock.toml"
    file.write_text(f'state_dir = "{place}/state"\nruntime_dir = "{place}/run"\n{extra}')
    return file


def config(place: Path, extra: str = "") -> settings.Settings:
    return settings.load(config_file(place, extra))


@pytest.mark.parametrize(
    ("launcher", "hint"),
    [("systemd", "see 'systemctl status paddock-notary'"), ("spawn", "is 'paddock serve' running")],
)
def test_operator_is_sent_to_who_starts_the_services(tmp_path: Path, launcher: str, hint: str) -> None:
    one = config(tmp_path, f'[sandbox]\nlauncher = "{launcher}"\n')
    with pytest.raises(Fault, match=hint):
        tokens.issue(one, subject="s", client_id="c", groups=(), models=("*",), ttl_seconds=60)


def test_serve_refuses_to_be_several_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(tmp_path, f'[users]\ngateway = "{ANOTHER}"\n')
    init.initialise(settings.load(file))
    assert main(["serve", "--config", str(file)]) == EXIT_CONFIG
    assert "start the units instead" in capsys.readouterr().err
    assert not (tmp_path / "state" / "serve.lock").exists()


def test_init_refuses_users_that_do_not_exist(tmp_path: Path) -> None:
    one = config(tmp_path, '[users]\ngateway = "no-such-user"\noperators = ["nor-this"]\n')
    with pytest.raises(Misconfigured, match="no user 'no-such-user', 'nor-this'"):
        init.initialise(one)
    assert not one.state_dir.exists()


@pytest.mark.parametrize("umask", [0o077, 0o000])
@pytest.mark.parametrize(("extra", "mode"), [("", 0o700), (f'[users]\ngateway = "{ANOTHER}"\n', 0o755)])
def test_init_sets_modes_whatever_the_umask(tmp_path: Path, umask: int, extra: str, mode: int) -> None:
    file = config_file(tmp_path, extra)
    command = [sys.executable, "-I", "-B", "-m", "appliance", "init", "--config", str(file)]
    subprocess.run(command, umask=umask, timeout=60, check=True, capture_output=True)
    one = settings.load(file)
    assert {path.stat().st_mode & 0o777 for path in one.policy_dir.iterdir()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in (one.state_dir, one.policy_dir, one.trust_dir)} == {mode}
    assert one.models_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["gateway", "gateway=", "gateway=0", "gateway=-1", "notary=1", "=1", "warden=1=2"])
def test_known_service_is_a_role_and_a_pid(text: str) -> None:
    with pytest.raises(ValueError, match="not ROLE=PID"):
        known_service(text)


class NoRunners:
    async def launch(self, runner_id: str) -> sandbox_probe.Launched:
        raise Fault("the runner refused: layer-missing: mdwe: Invalid argument" + layers.CURE)


def test_probe_on_a_host_that_lacks_a_layer_is_one_line_with_the_cure() -> None:
    with pytest.raises(Fault, match=r"mdwe: .*name it in sandbox\.allow_degraded$"):
        asyncio.run(sandbox_probe.run_probe(NoRunners()))


@pytest.mark.parametrize(
    ("name", "observed", "lacking", "ok"),
    [
        ("mprotect exec", "returned 0", {layers.MDWE}, True),
        ("mprotect exec", "returned 0", set(), False),
        ("mprotect exec", "returned 0", {layers.LANDLOCK}, False),
        ("mprotect exec", "killed by SIGSEGV", {layers.MDWE}, False),
        ("open", "returned 3", {layers.MDWE, layers.LANDLOCK}, False),
    ],
)
def test_attempt_succeeds_only_where_its_one_guard_is_missing(
    name: str, observed: str, lacking: set[str], ok: bool
) -> None:
    assert sandbox_probe._refusal(name, observed, lacking).ok is ok


def test_demo_ends_with_what_an_appliance_needs_here(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(live=False)
    report.summary()
    assert "lacks" not in capsys.readouterr().out
    report.lacking = ("mdwe", "landlock")
    report.summary()
    assert capsys.readouterr().out.endswith('allow_degraded = ["mdwe", "landlock"]\n')
