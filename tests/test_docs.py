"""The tables in docs/, against what they describe."""

import json
import re
from pathlib import Path
from typing import cast, get_args, get_origin

import msgspec
import pytest

from appliance.core.refusals import Reason
from appliance.core.values import Value
from appliance.gateway.answering import BodyLimits
from appliance.gateway.app import build_app
from appliance.gateway.pipeline import Pipeline
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.openai.chat import ChatFields
from appliance.gateway.surfaces.openai.completions import CompletionFields
from appliance.gateway.surfaces.openai.fields import CommonFields
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


API = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def _named(start: str, end: str) -> set[str]:
    section = API.partition(start)[2].partition(end)[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_no_field_of_generation_is_undescribed_and_none_is_invented() -> None:
    common = set(CommonFields.__struct_fields__)
    assert _named("Both routes:", "Of `/v1/chat/completions` alone:") == common
    assert (
        _named("Of `/v1/chat/completions` alone:", "What a model thinks") == set(ChatFields.__struct_fields__) - common
    )
    rest = API.partition("Of `/v1/completions` alone:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", rest)) == set(CompletionFields.__struct_fields__) - common


@pytest.mark.parametrize(
    ("route", "wire"),
    [
        ("/v1/embeddings", vectors._Embeddings),
        ("/v1/rerank", vectors._Rerank),
        ("/tokenize", vocabulary._Tokenize),
        ("/detokenize", vocabulary._Detokenize),
    ],
)
def test_no_field_of_the_other_routes_is_undescribed(route: str, wire: type[Value]) -> None:
    section = API.partition("## Fields of the other routes")[2].partition("\n\n#")[0]
    row = section.partition(f"| `{route}` |")[2].partition("\n")[0]
    assert set(wire.__struct_fields__) <= set(re.findall(r"`([a-z_]+)`", row)) <= {*wire.__struct_fields__, "text"}


def test_no_error_is_undescribed() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([0-9]{3}) \|", API, re.MULTILINE)
    assert [(code, int(status)) for code, status in rows] == [(reason.code, reason.status) for reason in Reason]


def test_no_route_is_undescribed_and_none_is_invented() -> None:
    app = build_app(cast("Pipeline", None), BodyLimits(max_bytes=1, timeout_seconds=1.0))
    served = {re.sub(r":str}", "}", route.path) for route in app.routes}
    assert {name.split(" ")[1] for name in _named("# The API", "## Fields")} == served
