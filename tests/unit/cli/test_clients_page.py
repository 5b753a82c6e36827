"""docs/clients.md says what is so."""

import re
import shlex
from pathlib import Path

import pytest

from appliance.cli import main as command
from appliance.notary import registry

PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^    paddock (.*)$", PAGE, re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_is_one(line: str) -> None:
    options = command._parser().parse_args(shlex.split(line, comments=True))
    assert callable(options.command)


@pytest.mark.parametrize("group", ["clients", "tokens"])
def test_every_verb_is_on_the_page(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([group, "--help"])
    verbs = set(re.findall(r"^    ([a-z-]+)\b", capsys.readouterr().out, re.MULTILINE))
    assert verbs == {line.split()[1] for line in COMMANDS if line.startswith(f"{group} ")}


def test_every_field_option_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["clients", "change", "--help"])
    listed = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--config"}
    assert listed == set(re.findall(r"--[a-z-]+", PAGE)) & listed


def test_bounds_of_the_page_are_kept() -> None:
    said = [int(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,]*", PAGE.partition("| bound |")[2])]
    assert said == [
        registry.MAX_CLIENTS,
        registry.MAX_FAMILIES_OF_CLIENT,
        registry.MAX_FAMILIES,
        registry.MAX_LIVING_OF_FAMILY,
        registry.MAX_REVOKED,
        registry.MAX_ENDED,
    ]
