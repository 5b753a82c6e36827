"""A served name stands and falls with each of its files; nobody can add one, leave one out, or ask for one alone."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import CMSG_SPACE
from typing import Any

import msgspec
import pytest

from appliance.core.memory import LoadOptions
from appliance.core.records import ModelLoaded, RunnerEnded, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest
from appliance.ipc import connection
from appliance.ipc.messages import LoadedWith, Ready
from appliance.warden.loading import PoolSettings
from appliance.warden.pool import Pool
from appliance.warden.served import Beside, ServedModels, Serving
from tests.fakes.audit import FakeAuditLog
from tests.fakes.launcher import FakeLauncher
from tests.fakes.steps import Steps
from tests.fakes.store import FakeOpened, FakeStore
from tests.support.made_values import adapter, model
from tests.support.scenario import run, until

BASE, STYLE, TONE, FOREIGN = model("base"), adapter("style"), adapter("tone"), adapter("foreign", architecture="qwen3")
ENCODER = model("encoder", pools=True)
LARGE, SMALL = model("large"), model("small")


def serving(base: str, /, draft: str = "", **scales: int) -> Serving:
    adapters = [Beside(name=name, kind="adapter", scale_thousandths=scale) for name, scale in scales.items()]
    return Serving(base=base, beside=(*adapters, *([Beside(name=draft, kind="draft")] if draft else [])))


SERVING = {
    "bot": serving("base", style=1000, tone=500),
    "base": serving("base", tone=250),
    "quick": serving("large", draft="small"),
}


def served(store: FakeStore, **more: Serving) -> ServedModels:
    return ServedModels(store, SERVING | more)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(BASE, STYLE, TONE, FOREIGN, ENCODER, LARGE, SMALL)


def test_names_are_those_of_the_store_and_of_the_settings(store: FakeStore) -> None:
    assert served(store).names() == [
        "base", "bot", "encoder", "foreign", "large", "quick", "small", "style", "tone",
    ]  # fmt: skip


def test_name_means_all_of_its_files_and_each_by_digest(store: FakeStore) -> None:
    models = served(store)
    bot = models.verify("bot")
    assert (bot.name, bot.digest, bot.facts) == ("bot", BASE.digest, BASE.facts)
    assert [(one.name, one.digest, one.scale_thousandths) for one in bot.companions] == [
        ("style", STYLE.digest, 1000),
        ("tone", TONE.digest, 500),
    ]
    for name in ("bot", "base", "style"):
        assert models.reference(name) == reference(models.verify(name))
    assert models.verify("style") == STYLE
    assert [one.scale_thousandths for one in models.verify("base").companions] == [250]
    quick = models.verify("quick")
    assert models.reference("quick") == reference(quick)
    assert quick.draft is not None and quick.adapters == ()
    assert (quick.draft.digest, quick.draft.scale_thousandths) == (SMALL.digest, None)


def test_name_is_opened_whole_in_order_and_as_the_weakest_is_kept(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.open_verified

    def opened(name: str) -> FakeOpened:
        one = whole(name)
        return FakeOpened(one.model, one.file, "ro-store") if name == "tone" else one

    monkeypatch.setattr(store, "open_verified", opened)
    bot = served(store).open_verified("bot")
    files = (bot.file, *bot.companions)
    assert [os.pread(file, 100, 0) for file in files] == [b"base", b"style", b"tone"]
    assert (bot.seal_mode, reference(bot.model)) == ("ro-store", served(store).reference("bot"))
    for file in files:
        os.close(file)


def _fail(name: str) -> Callable[[FakeStore], None]:
    def fail(store: FakeStore) -> None:
        store.fail[name] = Refused(Reason.MODEL_NOT_VERIFIED, "digest-mismatch: a byte")

    return fail


def _remove(name: str) -> Callable[[FakeStore], None]:
    def remove(store: FakeStore) -> None:
        store.distrusted[name] = Refused(Reason.MODEL_NOT_FOUND, "there is none")
        store.fail[name] = store.distrusted[name]

    return remove


def _more_words(store: FakeStore) -> None:
    facts = msgspec.structs.replace(SMALL.facts, vocabulary_tokens=2)
    store.models["small"] = msgspec.structs.replace(SMALL, facts=facts)


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("bot", _fail("tone"), "companion-refused: tone: digest-mismatch"),
        ("bot", _remove("style"), "companion-refused: style: there is none"),
        ("bot", _fail("base"), "digest-mismatch"),
        ("foreign-bot", None, "companion-misfit"),
        ("vectors", None, "companion-misfit"),
        ("model-as-adapter", None, "companion-refused: base: companion-kind"),
        ("adapter-as-model", None, "companion-kind"),
        ("adapter-under-a-name", None, "companion-kind"),
        ("encoder", None, "name-taken"),
        ("quick", _remove("small"), "companion-refused: small"),
        ("adapter-as-draft", None, "companion-refused: style: companion-kind"),
        ("encoder-as-draft", None, "companion-misfit"),
        ("other-words", _more_words, "companion-misfit"),
    ],
)
def test_nothing_is_served_in_part_or_as_something_else(
    store: FakeStore, name: str, change: Callable[[FakeStore], None] | None, code: str
) -> None:
    more = {
        "foreign-bot": serving("base", foreign=1000),
        "vectors": serving("encoder", style=1000),
        "model-as-adapter": serving("base", base=1000),
        "adapter-as-model": serving("style", tone=1000),
        "adapter-under-a-name": serving("style"),
        "encoder": serving("base"),
        "adapter-as-draft": serving("large", draft="style"),
        "encoder-as-draft": serving("large", draft="encoder"),
        "other-words": serving("large", draft="small"),
    }
    if change is not None:
        change(store)
    models = served(store, **more)
    for action in (models.verify, models.open_verified):
        with pytest.raises(Refused) as caught:
            action(name)
        assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
        assert caught.value.detail.startswith(code)
    for file in store.opened:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(file)


def test_fault_of_one_file_is_a_fault(store: FakeStore) -> None:
    store.fail["style"] = Fault("the disk")
    with pytest.raises(Fault):
        served(store).verify("bot")


@pytest.mark.parametrize("name", ["base", "style", "tone", "bot"])
def test_stamp_changes_with_each_file_and_with_one_of_its_own_name(store: FakeStore, name: str) -> None:
    models = served(store)
    before, other = models.stamp("bot"), models.stamp("encoder")
    store.touch(name)
    assert models.stamp("bot") != before
    assert models.stamp("encoder") == other


# --- the pool over it -----------------------------------------------------------------------------------------------


class Warden:
    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.launcher = FakeLauncher()
        self.audit = FakeAuditLog(Steps())
        settings = PoolSettings(
            options=LoadOptions(context_tokens=1024, slots=2),
            threads=1,
            max_loaded=3,
            memory_bytes=2**46,
            load_timeout_seconds=5.0,
        )
        self.pool = Pool(served(store), self.launcher, self.audit, settings)

    async def look(self) -> None:
        await self.pool.rescan()
        await self.pool.settled()


@pytest.fixture(autouse=True)
def _peers_take_several_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a runner does; the processes that speak over a ``Connection`` never get more than one."""
    monkeypatch.setattr(connection, "_ANCILLARY_BYTES", CMSG_SPACE(9 * 4))


@asynccontextmanager
async def warden(store: FakeStore) -> AsyncIterator[Warden]:
    one = Warden(store)
    await one.look()
    try:
        yield one
    finally:
        await one.pool.stop()


def test_runner_gets_every_file_and_the_record_names_them(store: FakeStore) -> None:
    async def scenario() -> None:
        async with warden(store) as one:
            bot = served(store).reference("bot")
            leasing = asyncio.create_task(one.pool.lease(bot))
            runner = await one.launcher.launched.get()
            load, data = await runner.load()
            assert data == b"base style tone"
            assert load.companions == (
                LoadedWith(kind="adapter", scale_thousandths=1000),
                LoadedWith(kind="adapter", scale_thousandths=500),
            )
            runner.peer.say(Ready(context_tokens=128, slots=load.slots))
            await leasing
            [record] = one.audit.of(ModelLoaded)
            assert isinstance(record, ModelLoaded)
            assert record.model == bot
            assert [one.digest for one in record.model.companions] == [STYLE.digest, TONE.digest]

    run(scenario)


def _distrust(store: FakeStore) -> None:
    store.distrusted["tone"] = Refused(Reason.MODEL_NOT_VERIFIED, "signer-revoked: tone")


def _replace(store: FakeStore) -> None:
    store.models["tone"] = msgspec.structs.replace(TONE, digest=Digest.of(b"new bytes"))


def _distrust_base(store: FakeStore) -> None:
    store.distrusted["base"] = Refused(Reason.MODEL_NOT_VERIFIED, "not-in-catalogue: base")


def _take_its_name(store: FakeStore) -> None:
    store.models["bot"] = model("bot")


@pytest.mark.parametrize("change", [_distrust, _replace, _distrust_base, _take_its_name])
def test_runner_does_not_outlive_the_trust_in_its_adapter(store: FakeStore, change: Any) -> None:
    async def scenario() -> None:
        async with warden(store) as one:
            bot, encoder = served(store).reference("bot"), reference(ENCODER)
            for wanted in (bot, encoder):
                leasing = asyncio.create_task(one.pool.lease(wanted))
                runner = await one.launcher.launched.get()
                await runner.become_ready()
                await leasing
            change(store)
            await one.look()
            await until(lambda: len(one.audit.of(RunnerEnded)) > 0)
            assert [record.model_digest for record in one.audit.of(RunnerEnded)] == [BASE.digest]  # type: ignore[union-attr]
            for wanted in {bot, reference(model("bot"))}:
                with pytest.raises(Refused) as caught:
                    await one.pool.lease(wanted)
                assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
            assert bot not in {reference(each) for each in one.pool.servable()}

    run(scenario)


def test_draft_model_is_reckoned_with_and_handed_over(store: FakeStore) -> None:
    async def scenario() -> None:
        async with warden(store) as one:
            plans = {each.name: each.plan for each in one.pool.planned()}
            assert plans["quick"].total > plans["large"].total + plans["small"].cache
            assert plans["quick"].process == plans["large"].process
            leasing = asyncio.create_task(one.pool.lease(served(store).reference("quick")))
            runner = await one.launcher.launched.get()
            load, data = await runner.load()
            assert (load.companions, data) == ((LoadedWith(kind="draft"),), b"large small")
            runner.peer.say(Ready(context_tokens=128, slots=load.slots))
            await leasing

    run(scenario)


def test_adapter_is_nobodys_model(store: FakeStore) -> None:
    async def scenario() -> None:
        async with warden(store) as one:
            assert [each.name for each in one.pool.servable()] == ["base", "bot", "encoder", "large", "quick", "small"]
            assert {each.name for each in one.pool.models()} >= {"style", "tone", "foreign"}
            assert {each.name for each in one.pool.planned()} == {"base", "bot", "encoder", "large", "quick", "small"}
            with pytest.raises(Refused, match="is an adapter"):
                await one.pool.lease(reference(STYLE))
            assert one.launcher.count == 0

    run(scenario)
