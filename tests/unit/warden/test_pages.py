"""However many models there are, no answer of the warden is larger than a frame, and none of them is left out."""

import msgspec
import pytest

from appliance.cli import status as command
from appliance.core.memory import LoadOptions, MemoryPlan
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer, VerifiedModel
from appliance.ipc.frames import MAX_FRAME_BYTES, encode
from appliance.ipc.messages import (
    AskStatus,
    FailedModel,
    ListModels,
    LoadedModel,
    MemoryBudget,
    PlannedModel,
    TakenMemory,
    WardenStatus,
)
from appliance.settings import Settings, parse
from appliance.warden import pages
from tests.support.made_values import model, runner_facts


def plain(number: int) -> VerifiedModel:
    return model(f"m{number:05}")


def widest(number: int) -> VerifiedModel:
    """The longest that the rules of names, signers and headers permit."""
    signer = Signer(name="r" * 128 + ":" + "\U0001f512" * 256, fingerprint=Digest.of(b"key"))
    made = model(f"{number:064}:{number:032}")
    facts = msgspec.structs.replace(made.facts, name="n" * 1024, architecture="a" * 64)
    return msgspec.structs.replace(made, signer=signer, cosigners=(signer,) * 15, facts=facts)


def all_pages(models: tuple[VerifiedModel, ...], pending: tuple[str, ...] = ()) -> list[tuple[list[str], list[str]]]:
    """What each page lists; each must fit a frame."""
    found = []
    question = ListModels(call=1)
    while True:
        page = pages.model_list(question, models, pending)
        assert len(encode(page)) <= MAX_FRAME_BYTES
        names = [one.name for one in page.models]
        assert names or page.pending
        found.append((names, list(page.pending)))
        if not page.more:
            return found
        question = ListModels(call=1, after=max((*names, *page.pending)))


@pytest.mark.parametrize(("make", "count"), [(plain, 5000), (widest, 100)])
def test_every_model_is_on_one_page(make: type, count: int) -> None:
    models = tuple(make(number) for number in range(count))
    pending = tuple(f"waits-{number:05}" + "x" * 50 for number in reversed(range(count)))
    found = all_pages(models, pending)
    assert len(found) > 1
    assert [name for names, _ in found for name in names] == [one.name for one in models]
    assert sorted(name for _, names in found for name in names) == sorted(pending)


def test_page_ends_exactly_at_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    models = tuple(plain(number) for number in range(4))
    size = len(encode(models[0]))
    for room, counts in ((4 * size, [4]), (4 * size - 1, [3, 1]), (size, [1] * 4), (1, [1] * 4)):
        monkeypatch.setattr(pages, "PAGE_BYTES", room)
        assert [len(names) for names, _ in all_pages(models)] == counts


def test_nothing_is_one_page_of_nothing() -> None:
    page = pages.model_list(ListModels(call=3), (), ())
    assert (page.call, page.models, page.pending, page.more) == (3, (), (), False)
    assert not pages.model_list(ListModels(call=3, after="zzz"), (plain(1),), ("m",)).models


@pytest.fixture
def config() -> Settings:
    return parse({"state_dir": "/nowhere", "runtime_dir": "/nowhere"})


@pytest.mark.parametrize(("make", "count"), [(plain, 3000), (widest, 40)])
def test_status_of_many_models_is_whole(
    config: Settings, monkeypatch: pytest.MonkeyPatch, make: type, count: int
) -> None:
    models = tuple(make(number) for number in range(count))
    loaded = tuple(
        LoadedModel(model=one, runner=runner_facts(one, "r" * 64), memory_limit_bytes=2**46) for one in models[-30:]
    )
    failed = tuple(
        FailedModel(name=name, reason="model-not-verified", detail="\U0001f512" * 500)
        for name in sorted([*(one.name for one in models[:50]), *(f"zzz{number}" for number in range(300))])
    )
    asked = 0

    def ask(_config: object, _who: str, question: AskStatus, _answers: object) -> WardenStatus:
        nonlocal asked
        asked += 1
        page = pages.status(question, models, loaded, failed)
        assert len(encode(page)) <= MAX_FRAME_BYTES
        return page

    monkeypatch.setattr(command, "ask", ask)
    whole = command.whole_status(config)
    assert (whole.models, whole.loaded, whole.failed, whole.more) == (models, loaded, failed, False)
    assert asked > 1


def test_status_that_does_not_go_on_is_a_fault(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    page = WardenStatus(call=1, models=(plain(1),), loaded=(), more=True)
    monkeypatch.setattr(command, "ask", lambda *_args, **_kwargs: page)
    with pytest.raises(Fault, match="does not go on"):
        command.whole_status(config)


def test_status_hides_no_model_that_is_not_loaded_and_none_that_failed(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = FailedModel(name="bad", reason="model-not-verified", detail="one byte was changed")
    loaded = LoadedModel(model=plain(1), runner=runner_facts(plain(1), "r"), memory_limit_bytes=2**30)
    page = WardenStatus(call=1, models=(plain(1), plain(2)), loaded=(loaded,), failed=(failed,))
    monkeypatch.setattr(command, "ask", lambda *_args, **_kwargs: page)
    assert command.show(config, as_json=False) == 0
    text = capsys.readouterr().out
    assert text.count("verified, not loaded") == 1
    assert f"m00002  {plain(2).digest}\n  verified, not loaded" in text
    assert "bad\n  failed    model-not-verified: one byte was changed" in text


PLAN = MemoryPlan(weights=2**30, copies=2**29, cache=2**28, compute=2**27, process=2**27)


@pytest.mark.parametrize(
    ("idle_seconds", "ends_in_seconds", "stays"),
    [(None, None, "busy"), (7, None, "idle for 7 s, stays"), (7, 293, "idle for 7 s, ends in 293 s")],
)
def test_status_says_what_a_model_takes_and_for_how_long(
    config: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    idle_seconds: int | None,
    ends_in_seconds: int | None,
    stays: str,
) -> None:
    loaded = LoadedModel(
        model=plain(1),
        runner=runner_facts(plain(1), "r"),
        memory_limit_bytes=2**30,
        options=LoadOptions(context_tokens=1024, slots=4, kv_type="q8_0"),
        plan=PLAN,
        taken=TakenMemory(private_bytes=2**29, mapped_bytes=2**30),
        idle_seconds=idle_seconds,
        ends_in_seconds=ends_in_seconds,
    )
    planned = (
        PlannedModel(name="m00002", plan=PLAN),
        PlannedModel(name="m00003", plan=PLAN, unfit="it needs too much"),
    )
    page = WardenStatus(
        call=1,
        models=(plain(1), plain(2), plain(3)),
        loaded=(loaded,),
        planned=planned,
        memory=MemoryBudget(budget_bytes=2**32, planned_bytes=2**31),
    )
    monkeypatch.setattr(command, "ask", lambda *_args, **_kwargs: page)
    assert command.show(config, as_json=False) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    spelt = "2048 MiB (1536 MiB weights, 256 MiB cache, 256 MiB for the runner)"
    assert f"cache     q8_0, {stays}" in lines
    assert "memory    2048 MiB planned of 4096 MiB" in lines
    assert f"memory    planned {spelt}; has 512 MiB and 1024 MiB mapped; at most 1024 MiB besides the model" in lines
    assert f"memory    needs {spelt}" in lines
    assert "memory    cannot be loaded: it needs too much" in lines
    assert command.show(config, as_json=True) == 0
    assert '"budget_bytes": 4294967296' in capsys.readouterr().out
