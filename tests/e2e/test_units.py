"""The systemd units: how little each may do, by systemd's own count, and that the appliance works in them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.sandbox import given, layers
from tests.support import image_build, nspawn
from tests.support.image_build import REPOSITORY
from tests.support.unit_checks import WEAKENED

UNITS = REPOSITORY / "systemd"
SERVICES = ("paddock-gateway", "paddock-notary", "paddock-warden", "paddock-runner@")


# --- what the files say -----------------------------------------------------------------------------------------------


ON_THE_NETWORK = "paddock-liaison"


@pytest.mark.parametrize("service", [*SERVICES, ON_THE_NETWORK])
def test_no_unit_is_more_exposed_than_one_point_zero(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And the one that talks with the network by no more than that: 1.2."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    threshold = 12 if service == ON_THE_NETWORK else 10
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", f"./{service}.service"]
    done = subprocess.run(command, cwd=UNITS, capture_output=True, text=True, timeout=30, check=False)
    with capsys.disabled():  # a figure that CI shows
        print(f"\n{done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", [*SERVICES, ON_THE_NETWORK])
def test_no_unit_forgets_what_systemd_does_not_score(service: str) -> None:
    text = (UNITS / f"{service}.service").read_text()
    settings = {line.strip() for line in text.splitlines()}
    assert {"LimitCORE=0", "UMask=0077", "NotifyAccess=none"} <= settings
    assert ("SocketBindDeny=any" if service == ON_THE_NETWORK else "PrivateNetwork=yes") in settings
    assert "MemoryDenyWriteExecute=yes" in settings
    assert not re.search(r"^(Environment|LoadCredential|SetCredential).*(KEY|TOKEN|SECRET)", text, re.MULTILINE)
    families = {"paddock-runner@": "none", ON_THE_NETWORK: "AF_UNIX AF_INET AF_INET6"}.get(service, "AF_UNIX")
    assert f"RestrictAddressFamilies={families}" in settings


def test_no_socket_file_is_open_to_all() -> None:
    for path in UNITS.glob("*.socket"):
        text = path.read_text()
        if "/run/paddock/" in text:
            assert re.search(r"^SocketMode=06[06]0$", text, re.MULTILINE), path.name
            assert re.search(r"^SocketUser=(root|paddock-\w+)$", text, re.MULTILINE), path.name
        assert re.search(r"^(FileDescriptorName=\w+|Accept=yes)$", text, re.MULTILINE), path.name


def test_what_is_installed_by_the_documented_commands_is_all_that_there_is() -> None:
    named = " ".join(nspawn.documented_commands(REPOSITORY))
    for path in UNITS.iterdir():
        assert path.name in named or f"*{path.suffix}" in named


# --- in a booted system -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What ``unit_checks`` saw inside."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    wheel = image_build.engine_wheel(("systemd-nspawn", "setpriv"))
    folder = tmp_path_factory.mktemp("booted")
    sources = image_build.copy_sources(folder / "sources")
    (folder / "overlay").mkdir()
    layers = Path(image_build.build(image_build.command(sources, wheel, "--layers-only"))["layers"])
    for layer in ("wheels", "appliance"):
        subprocess.run(["tar", "-xf", layers / f"{layer}.tar", "-C", folder / "overlay"], check=True, timeout=60)
    (folder / "check").mkdir()
    shutil.copy(REPOSITORY / "tests" / "support" / "unit_checks.py", folder / "check" / "check.py")
    shutil.copy(REPOSITORY / "tests" / "support" / "unit_provider.py", folder / "check" / "provider.py")
    nspawn.make_root(folder / "root", REPOSITORY)
    printed = nspawn.boot(folder / "root", folder / "overlay" / "usr", folder / "check")
    if not printed.startswith("{"):
        journal, stderr = folder / "check" / "journal", folder / "check" / "stderr"
        said = "\n".join(path.read_text() for path in (stderr, journal) if path.exists())
        pytest.fail(f"the check did not end as it should:\n{said[-6000:]}")
    return json.loads(printed)


def booted(test):
    """Needs the boot, which takes some seconds; longer where the image's layers are not made yet."""
    return pytest.mark.slow(pytest.mark.timeout(400)(test))


@booted
def test_the_inherited_listener_does_not_need_the_network(seen: dict) -> None:
    assert seen["healthz"][0] == 200
    assert seen["without token"] == 401


@booted
def test_an_inherited_unix_socket_is_for_the_proxys_group_and_its_word_is_taken(seen: dict) -> None:
    assert seen["through a proxy"]["www-data"] == "HTTP/1.1 404 Not Found"
    assert "PermissionError" in seen["through a proxy"]["nobody"]
    assert seen["addresses"] == ["127.0.0.1", "203.0.113.9"]


@booted
def test_no_unit_keeps_a_service_from_its_own_fence(seen: dict) -> None:
    landlock = f"landlock (ABI {layers.landlock_abi()})"
    whole = f"no-new-privs, no-capabilities, mdwe, {landlock}, non-dumpable, seccomp; missing: none"
    assert seen["fences"] == dict.fromkeys(("gateway", "notary", "warden", "liaison"), whole)


@booted
def test_the_liaison_runs_where_an_issuer_is_configured_and_nowhere_else(seen: dict) -> None:
    told = seen["another issuer"]
    assert (told["before"], told["after"]) == ("active inactive", "active")
    status, text = told["answer"]
    assert status == 200, text


@booted
def test_an_answer_does_not_need_more_than_the_units_allow(seen: dict) -> None:
    status, text = seen["chat"]
    assert status == 200, text
    assert text.endswith("data: [DONE]\n\n")


@booted
def test_no_runner_shares_a_user_or_keeps_a_privilege(seen: dict) -> None:
    first, second = [*seen["runners"].values()], [*seen["runners afterwards"].values()]
    assert len(first) == len(second) == 1
    assert first[0]["Uid"] != second[0]["Uid"]
    for status in (*first, *second):
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["Uid"].split()[0]) >= 61184  # systemd's range of dynamic users


@booted
def test_the_warden_needs_no_privilege_to_have_runners_and_root_needs_no_exception(seen: dict) -> None:
    """Each runner is yet another user's, whoever asks for it."""
    wardens = {int(uid) for uid in seen["warden"]["Uid"].split()}
    assert len(wardens) == 1
    assert 0 not in wardens
    assert {seen["warden"][name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd")} == {""}
    assert all(int(status["Uid"].split()[0]) not in {0, *wardens} for status in seen["runners"].values())
    assert seen["a runner for root"] == "Ready"


@booted
def test_no_layer_is_claimed_that_was_not_seen(seen: dict) -> None:
    [loaded] = seen["status"]["loaded"]
    assert set(loaded["runner"]["degraded"]) == given.NOT_GIVEN
    assert set(loaded["runner"]["layers"]) == set(layers.LAYERS) - given.NOT_GIVEN


@booted
@pytest.mark.parametrize("name", WEAKENED)
def test_weakened_unit_does_not_go_unnoticed(seen: dict, name: str) -> None:
    said = seen["weakened"][name]
    assert said.startswith("LoadFailed(reason='layer-missing'"), said
    assert f"{WEAKENED[name][1]}: " in said


@booted
def test_the_unit_as_it_is_does_not_seem_weakened(seen: dict) -> None:
    assert seen["not weakened"].startswith("Fenced("), seen["not weakened"]


@booted
def test_a_runner_that_ignores_its_channel_does_not_live_on(seen: dict) -> None:
    assert seen["a runner that ignored its channel"] == {}


@booted
def test_no_model_goes_to_a_runner_that_the_warden_could_be_signalled_by(seen: dict) -> None:
    assert seen["a runner of the warden's user"] is True


@booted
def test_no_runner_is_leased_on_its_own_word(seen: dict) -> None:
    """A warden to which the kernel shows no process refuses every runner."""
    assert seen["a warden that sees no process"] is True


@booted
def test_a_killed_runner_does_not_end_the_service(seen: dict) -> None:
    status, text = seen["chat after the runner was killed"]
    assert status == 200, text


@booted
def test_no_stranger_connects_to_an_inner_socket(seen: dict) -> None:
    assert set(seen["sockets"].values()) == {"refused"}


@booted
def test_stopping_leaves_no_runner_and_no_open_record(seen: dict) -> None:
    assert seen["runners at the end"] == {}
    assert seen["failed"] == ""
    assert seen["audit"]["verdict"] == "intact"
    assert seen["audit"]["open_requests"] == []
    assert seen["audit"]["events"]["log-closed"] == 1
    assert seen["audit"]["events"]["runner-ended"] == seen["audit"]["events"]["model-loaded"] == 2
