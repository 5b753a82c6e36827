"""What an operator gets wrong with ``paddock models`` is said, with its cure, before anything is written."""

import os
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.models.keys import TrustedKeys, generate_signing_key, private_pem, public_pem
from tests.support.signed_models import KEY, OTHER_KEY


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with settings and two keys; no ``init`` was run."""
    (tmp_path / "paddock.toml").write_text(f'state_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n')
    for name, key in (("acme", KEY), ("board", OTHER_KEY)):
        (tmp_path / f"{name}.pem").write_bytes(public_pem(key.public_key()))
        (tmp_path / f"{name}.key").write_bytes(private_pem(key))
    return tmp_path


@pytest.fixture
def trust(desk: Path) -> Path:
    (desk / "state/trust").mkdir(parents=True, mode=0o755)
    return desk / "state/trust"


def models(desk: Path, *words: object, config: bool = True) -> int:
    return main(["models", *map(str, words), *(("--config", str(desk / "paddock.toml")) if config else ())])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_key_is_not_trusted_under_two_names(desk: Path, trust: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two would be refused from then on, and with them every model."""
    assert models(desk, "trust", desk / "acme.pem", "--signer", "acme") == 0
    before = list(trust.iterdir())
    assert models(desk, "trust", desk / "acme.pem", "--signer", "other") == 1
    assert "the keys of acme and other are the same key" in said(capsys)
    assert list(trust.iterdir()) == before
    assert models(desk, "trust", desk / "acme.pem", "--signer", "acme") == 0
    assert models(desk, "trust", desk / "board.pem", "--signer", "acme") == 1
    assert "acme.pem exists already and is not overwritten" in said(capsys)
    assert models(desk, "trust", desk / "board.pem", "--signer", "board") == 0
    assert len(TrustedKeys.load(trust).signers()) == 2


@pytest.mark.parametrize("umask", [0o002, 0o077, 0o000])
def test_trusted_key_can_be_read_by_the_appliance_and_written_by_nobody_else(
    desk: Path, trust: Path, umask: int
) -> None:
    former = os.umask(umask)
    try:
        assert models(desk, "trust", desk / "acme.pem", "--signer", "acme") == 0
        assert models(desk, "keygen", desk / "new.key", desk / "new.pem", config=False) == 0
    finally:
        os.umask(former)
    modes = [path.stat().st_mode & 0o777 for path in (trust / "acme.pem", desk / "new.key", desk / "new.pem")]
    assert modes == [0o644, 0o600, 0o644]


def test_private_key_does_not_come_along(desk: Path, trust: Path) -> None:
    (desk / "both.pem").write_bytes(public_pem(KEY.public_key()) + private_pem(KEY))
    assert models(desk, "trust", desk / "both.pem", "--signer", "acme") == 0
    assert (trust / "acme.pem").read_bytes() == public_pem(KEY.public_key())


@pytest.mark.parametrize(("mode", "whose"), [(0o664, "its group"), (0o646, "everybody")])
def test_file_that_others_can_write_is_said_with_its_cure(
    desk: Path, trust: Path, capsys: pytest.CaptureFixture[str], mode: int, whose: str
) -> None:
    models(desk, "trust", desk / "acme.pem", "--signer", "acme")
    key = trust / "acme.pem"
    key.chmod(mode)
    assert models(desk, "list") == 1
    assert f"{key} can be written by {whose}: chmod go-w {key}" in said(capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_file_of_somebody_else_is_said_with_its_owner(
    desk: Path, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models(desk, "trust", desk / "acme.pem", "--signer", "acme")
    os.chown(trust / "acme.pem", 12345, -1)
    assert models(desk, "list") == 1
    assert f"{trust / 'acme.pem'} belongs to user 12345" in said(capsys)


def test_appliance_that_is_not_there_yet_is_to_be_made(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("list",), ("trust", desk / "acme.pem", "--signer", "acme")):
        assert models(desk, *words) == 1
        assert "run 'paddock init'" in said(capsys)


def test_what_does_not_exist_is_not_imported(desk: Path, trust: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models(desk, "import", desk / "nosuchfolder", "--name", "demo") == 1
    assert "nosuchfolder does not exist" in said(capsys)


@pytest.mark.parametrize("there", ["new.key", "new.pem"])
def test_key_is_not_overwritten_and_no_half_of_a_pair_is_made(
    desk: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    (desk / there).write_bytes(private_pem(generate_signing_key()))
    before = {path: path.read_bytes() for path in desk.iterdir()}
    assert models(desk, "keygen", desk / "new.key", desk / "new.pem", config=False) == 1
    assert f"{there} exists already and is not overwritten" in said(capsys)
    assert {path: path.read_bytes() for path in desk.iterdir()} == before
