"""docs/models.md says what is so."""

import re
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from appliance.cli import main as command
from appliance.core.catalogue import decode_catalogue
from appliance.core.values import SealMode, seals_at_least
from appliance.models.transfer import media

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
SOURCES = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "appliance").rglob("*.py"))


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"^    paddock models ([a-z]+)", PAGE, re.MULTILINE))))
def test_every_verb_of_the_page_exists(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["models", verb, "--help"])
    assert caught.value.code == 0
    if verb in {"pull", "push"}:
        listed = capsys.readouterr().out
        assert [option for option in re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE) if option not in listed] == []


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^    paddock models catalogue (.*)", PAGE, re.MULTILINE))))
def test_every_command_about_the_catalogue_exists_with_its_options(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = line.partition(" ")[0]
    with pytest.raises(SystemExit) as caught:
        command.main(["models", "catalogue", verb, "--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert [option for option in re.findall(r"--[a-z-]+", line) if option not in listed] == []


def test_every_code_of_the_page_is_given_somewhere() -> None:
    table = PAGE.partition("## What the refusals mean")[2]
    codes = [
        code for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for code in re.findall(r"`([a-z-]+)`", row)
    ]
    assert len(codes) > 10
    assert [code for code in codes if f'"{code}"' not in SOURCES and f'"{code}: ' not in SOURCES] == []


def test_catalogue_of_the_page_is_one() -> None:
    (shown,) = re.findall(r"^    \{\n.*?^    \}$", PAGE, re.MULTILINE | re.DOTALL)
    (entry,) = decode_catalogue(shown.encode()).models
    assert entry.chat_template_digest is not None
    (seals,) = re.findall(r"the weakest first: (.*?)\.$", PAGE, re.MULTILINE)
    weakest_first = re.findall(r"`(.*?)`", seals)
    assert set(weakest_first) == set(get_args(SealMode))
    assert all(seals_at_least(stronger, weaker) for weaker, stronger in pairwise(weakest_first))


def test_every_media_type_of_the_page_is_accepted() -> None:
    named = set(re.findall(r"`(application/[^`]+)`", PAGE))
    assert named == media.MODELS | {media.BUNDLE}


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
