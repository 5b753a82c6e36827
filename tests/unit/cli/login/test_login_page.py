"""docs/login.md says what is so."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from appliance import settings
from appliance.cli import main as command
from appliance.cli.login import provider, session, store
from appliance.identity import https

PAGE = (Path(__file__).parents[4] / "docs" / "login.md").read_text(encoding="utf-8")
WRITTEN = re.findall(r"^    (paddock [^#\n]*)", PAGE, re.MULTILINE)


def listed(verb: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit) as caught:
        command.main([verb, "--help"])
    assert caught.value.code == 0
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_no_option_is_undescribed_and_none_is_invented(capsys: pytest.CaptureFixture[str]) -> None:
    table = set(re.findall(r"^\| `(--[a-z-]+)` \|", PAGE, re.MULTILINE))
    assert table == listed("login", capsys) - {"--help"}


@pytest.mark.parametrize("line", WRITTEN)
def test_every_command_of_the_page_is_understood(line: str) -> None:
    assert command._parser().parse_args(shlex.split(line)[1:]).command


def test_every_command_is_on_the_page() -> None:
    assert {line.split()[1] for line in WRITTEN} == {"login", "logout", "whoami"}


def test_settings_of_the_page_are_valid() -> None:
    (block,) = re.findall(r"(?:^    .*\n)+", PAGE.partition("## Setting up Keycloak")[2], re.MULTILINE)
    config = settings.parse(tomllib.loads(re.sub("^    ", "", block, flags=re.MULTILINE)))
    assert config.issuer["staff"].token_types == ("at+jwt",)


def test_numbers_of_the_page_are_right() -> None:
    assert f"less than {session.MARGIN_SECONDS} seconds" in PAGE
    assert f"within {provider.EXCHANGE_SECONDS:g} seconds" in PAGE
    assert f"at most {https.MAX_BODY_BYTES // 1024} kB" in PAGE
    assert f"`{store.FILE}` in" in PAGE
    assert f"without it, `{' '.join(session.DEFAULT_SCOPES)}`" in PAGE


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("/x", "/x/paddock"), ("", "/home/alice/.config/paddock"), ("relative", "/home/alice/.config/paddock")],
)
def test_file_is_where_the_page_says(monkeypatch: pytest.MonkeyPatch, chosen: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("XDG_CONFIG_HOME", chosen)
    assert settings.personal_config_dir() == Path(expected)
