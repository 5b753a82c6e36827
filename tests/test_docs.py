"""The tables in docs/, against what they describe."""

import asyncio
import json
import re
import tomllib
from pathlib import Path
from typing import cast, get_args, get_origin

import msgspec
import pytest

from appliance.core.delegation import HEADERS
from appliance.core.refusals import Reason
from appliance.core.values import Digest, EngineFigures, RunnerReport, Value
from appliance.gateway.answering import BodyLimits
from appliance.gateway.app import build_app
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.pipeline import Pipeline
from appliance.gateway.slots import Slots
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.openai.chat import ChatFields
from appliance.gateway.surfaces.openai.completions import CompletionFields
from appliance.gateway.surfaces.openai.fields import CommonFields
from appliance.gateway.tally import Tally
from appliance.policy.documents import check_data
from appliance.settings import Degradable, Settings, parse
from tests.fakes.world import World

DOCS = Path(__file__).parents[1] / "docs"
SETTINGS = (DOCS / "settings.md").read_text(encoding="utf-8")
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")


def defaults(kind: type[Value], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Value):
            found |= defaults(field.type, f"{field.name}.")
        elif (inner := _array_of(field.type)) is not None:
            found |= defaults(inner, f"{field.name}[].")
        elif get_origin(field.type) is dict and isinstance(get_args(field.type)[1], type(Value)):
            found |= defaults(get_args(field.type)[1], f"{field.name}.NAME.")
        else:
            found[prefix + field.name] = field.default
    return found


def _array_of(kind: object) -> type[Value] | None:
    """The kind of table of an array of tables."""
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    return inner if isinstance(inner, type) and issubclass(inner, Value) else None


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


async def page_of_metrics() -> str:
    world = World()
    figures = EngineFigures(**{field.name: 1 for field in msgspec.structs.fields(EngineFigures)})
    world.models.told = (RunnerReport(model_name="m", model_digest=Digest.of(b"m"), figures=figures),)
    return await MetricsPage(world.pipeline, Tally(), Slots(1)).text(world.exchange())


def test_no_metric_is_undescribed_and_none_is_invented() -> None:
    told = re.findall("^# TYPE ([a-z_]+) ", asyncio.run(page_of_metrics()), re.MULTILINE)
    described = [
        name
        for row in re.findall(r"^\| (`.*)$", METRICS, re.MULTILINE)
        for name in re.findall("`(paddock_[a-z_]+)`", row)
    ]
    assert sorted(described) == sorted(told)
    examples = set(re.findall("paddock_[a-z_]+", METRICS)) - set(told)
    assert {re.sub("_(sum|count)$", "", name) for name in examples} <= set(told)


API = (DOCS / "api.md").read_text(encoding="utf-8")


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
    limits = BodyLimits(max_bytes=1, timeout_seconds=1.0)
    app = build_app(cast("Pipeline", None), limits, cast("MetricsPage", None))
    served = {re.sub(r":str}", "}", route.path) for route in app.routes}
    assert {name.split(" ")[1] for name in _named("# The API", "## Fields")} == served


def written_listeners() -> list[str]:
    """Settings with a ``[[listen]]`` that the pages show, each as one text."""
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("settings.md", "reverse-proxy.md")]
    blocks = [block for page in pages for block in re.findall(r"(?:^(?:    .*)?\n)+", page, re.MULTILINE)]
    lines = [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in blocks if "[[listen]]" in block]
    return [text[min(text.find(f"{table}\n") for table in ("[[listen]]", "[gateway]") if f"{table}\n" in text) :]
            for text in (re.sub(r" +#.*$", "", one, flags=re.MULTILINE) for one in lines)]  # fmt: skip


def test_no_listener_is_shown_that_would_be_refused() -> None:
    assert len(written_listeners()) == 6
    for text in written_listeners():
        document = tomllib.loads(text)
        document.setdefault("gateway", {"allowed_hosts": ["llm.example.com"]})
        assert parse(document).listen


DELEGATION = (DOCS / "delegation.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", DELEGATION, re.MULTILINE | re.DOTALL)


def test_no_delegation_is_shown_that_would_be_refused() -> None:
    assert len(blocks("toml")) == 2
    for text in blocks("toml"):
        assert parse(tomllib.loads(text)).delegation


def test_no_policy_data_are_shown_that_would_be_refused() -> None:
    [data] = blocks("json")
    check_data(data.encode())
    shown = json.loads(data)
    [settings] = [
        one for text in blocks("toml") for one in parse(tomllib.loads(text)).delegation.values() if one.secret_file
    ]
    named = {
        group
        for groups in (settings.groups_by_role, settings.groups_by_email)
        for one in groups.values()
        for group in one
    }
    assert named == set(shown["groups"])


def test_no_header_of_a_delegation_is_undescribed() -> None:
    named = re.findall(r'^\| `"[^|]*\| `(X-[^`]+)`', DELEGATION, re.MULTILINE)
    assert {name.lower().encode() for name in named} == HEADERS
