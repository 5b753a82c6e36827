"""The tables in docs/, against what they describe."""

import json
import re
from pathlib import Path
from typing import get_args, get_origin

import msgspec

from appliance.core.values import Value
from appliance.settings import Degradable, Settings

SETTINGS = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")


def defaults(kind: type[Value], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Value):
            found |= defaults(field.type, f"{field.name}.")
        elif get_origin(field.type) is dict:
            found |= defaults(get_args(field.type)[1], f"{field.name}.NAME.")
        else:
            found[prefix + field.name] = field.default
    return found


def rows() -> dict[str, str]:
    """Setting -> what the table says its default is."""
    table = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", SETTINGS, re.MULTILINE)
    return {name: default for names, default in table for name in re.findall(r"`([^`]+)`", names)}


def test_no_setting_is_undescribed_and_none_is_invented() -> None:
    assert set(rows()) == set(defaults(Settings))


def test_no_default_is_described_wrongly() -> None:
    for name, default in defaults(Settings).items():
        if default is msgspec.NODEFAULT:  # the directories, by the environment
            continue
        said = rows()[name]
        assert said == "none" if default is None else json.loads(said.strip("`")) == json.loads(json.dumps(default)), (
            name
        )


def test_every_layer_that_may_be_missing_is_named() -> None:
    for layer in get_args(Degradable):
        assert f"`{layer}`" in SETTINGS
