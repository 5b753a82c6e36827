"""Over a thousand probes, each in a live runner of its own, with every layer on; and each class with one layer less.

What a probe tries stands in ``support.deeds`` and ``support.probes``; ``support.probe_mother`` has how a runner is made
for each in some thirty milliseconds.

A probe counts only in a runner that had loaded a model, warmed up and said ``Ready``.
An *effect* is something outside the runner that is read, written, reached, signalled, used up or left behind, or new
bytes that are executed. With a filter on, the end by SIGSYS is asserted as well; with both gone some calls come back,
and ``deeds.OWN_AFFAIR`` says of each why that is no effect. Two of them rest on the filters alone, and say so.

``PROBES=all`` makes every deed again with each layer left out, in place of some of every class.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.sandbox import layers, probe
from tests.support import live_runner, probes
from tests.support.chain_model import chain_model
from tests.support.deeds import ENDS_ITS_OWN_SENSES, OWN_AFFAIR, SAMPLE, Outside, deeds
from tests.support.probe_mother import BOTH_FILTERS
from tests.support.probed_runner import DEMO_MODEL, NoRunner, Report, held_runner, probed, unconfined

EVERY_DEED = os.environ.get("PROBES") == "all"
NOWHERE = Outside(pid=0, secret_address=0, folder="", tcp_port=0, udp_port=0, abstract="", shm_key=0)
CLASSES = {kind: tuple(names) for kind, names in deeds(NOWHERE).items()}
DEEDS = tuple(name for names in CLASSES.values() for name in names)
NOT_BY_THE_FILTER = {
    "die with a core": "killed by SIGABRT",
    "variables that are not ours": "returned 0",
    "make the mapped weights writable": "errno EACCES",
}
"""What stage 2 allows and something else stops; abort is allowed to end the process."""

COMES_BACK = {BOTH_FILTERS: OWN_AFFAIR, layers.SECCOMP_STAGE_2: {"clone thread": "stage 1 lets threads start"}}
"""What may return, and why that is no effect."""

pytestmark = pytest.mark.timeout(240)


def in_halves(names: Sequence[str], folder: Path, *, without: str = "", model: Path = DEMO_MODEL) -> list[Report]:
    """Two runners at a time."""

    def half(number: int) -> list[Report]:
        mine = folder / str(number)
        mine.mkdir()
        return probed(names[number::2], mine, without=without, model=model)

    with ThreadPoolExecutor(2) as pool:
        reports = [report for half_of in pool.map(half, range(2)) for report in half_of]
    assert sorted(report.name for report in reports) == sorted(names)
    assert [report.name for report in reports if not report.ready] == [], "not in a live runner"
    return reports


def told(record_property: Callable[[str, object], None], what: str, reports: Sequence[Report]) -> None:
    record_property("probes", len(reports))
    print(f"{what}: {len(reports)} probes in as many live runners, no effect")


# --- the probes are what they say -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a non-dumpable process")
def test_runner_under_probe_is_no_weaker_than_one_of_the_launchers(tmp_path: Path) -> None:
    async def scenario() -> dict[str, object]:
        async with live_runner.launched() as runner:
            await live_runner.load(runner, message=live_runner.LOAD)
            return _fence(live_runner.inner_pid(runner))

    with held_runner(tmp_path, threads=live_runner.LOAD.threads) as pid:
        assert _fence(pid) == live_runner.within_limit(scenario)


def _fence(pid: int) -> dict[str, object]:
    keys = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid")
    inside = Path(f"/proc/{pid}")
    shared = [
        kind
        for kind in os.listdir("/proc/self/ns")
        if os.stat(f"/proc/self/ns/{kind}").st_ino == os.stat(inside / "ns" / kind).st_ino
    ]
    return {
        "threads": [tuple(live_runner.status(pid, thread)[key] for key in keys) for thread in live_runner.threads(pid)],
        "limits": (inside / "limits").read_text(),
        "descriptors": {fd.name: os.readlink(fd).split(":")[0] for fd in (inside / "fd").iterdir()},
        "root": os.listdir(inside / "root"),
        "environment": (inside / "environ").read_bytes(),
        "namespaces shared with the host": sorted(shared),
    }


def test_every_class_and_every_attempt_of_the_command_is_among_the_deeds() -> None:
    assert set(probe.ATTEMPTS) <= {*DEEDS, *probe.CONTROLS, "abort"}
    assert len(DEEDS) == len(set(DEEDS))
    assert {kind for kind, names in CLASSES.items() if len({*names} & {*SAMPLE}) >= 2} == set(CLASSES)
    assert {*SAMPLE, *OWN_AFFAIR, *ENDS_ITS_OWN_SENSES, *NOT_BY_THE_FILTER} <= set(DEEDS)
    assert all(len(name) <= 64 for name in DEEDS)


# --- every layer on -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_system_call_number_and_no_other_entry_comes_back(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    names = [f"number {number}" for number in probes.numbers()] + [f"x32 {number}" for number in probes.x32_numbers()]
    reports = in_halves(names, tmp_path, model=chain_model())
    wrong = [r for r in reports if r.ending != probes.KILLED and r.ending != probes.SEEN_BY_NO_FILTER.get(r.name)]
    assert wrong == []
    assert [report for report in reports if report.effects] == []
    assert len(reports) > 600
    told(record_property, "every number, x32", reports)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage2", "stage1"])
def test_no_rule_lets_a_changed_argument_through(
    stage: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Stage 1's rules behind stage 1 alone, as while a model is parsed."""
    expected = {name: allowed for name, _, allowed in probes.rules(stage)}  # type: ignore[arg-type]
    without = layers.SECCOMP_STAGE_2 if stage == "stage1" else ""
    reports = in_halves(list(expected), tmp_path, without=without, model=chain_model())
    for report in reports:
        comes_back = report.ending == "returned 0" or report.ending.startswith("errno ")
        assert comes_back if expected[report.name] else report.ending == probes.KILLED, report
        assert report.effects == (), report
    assert sum(not allowed for allowed in expected.values()) > 280
    told(record_property, f"every rule of {stage}, changed bit by bit", reports)


@pytest.mark.slow
def test_nothing_that_a_compromised_runner_does_has_an_effect(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    reports = in_halves(DEEDS, tmp_path)
    assert [r for r in reports if r.ending != NOT_BY_THE_FILTER.get(r.name, probes.KILLED)] == []
    assert [report for report in reports if report.effects] == []
    told(record_property, "the probe table", reports)


# --- one layer less -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("without", [name for name in layers.LAYERS if name != layers.NO_NEW_PRIVS] + [BOTH_FILTERS])
def test_loss_of_one_layer_gives_no_effect(
    without: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    names = list(DEEDS if without == BOTH_FILTERS or EVERY_DEED else SAMPLE)
    if without == BOTH_FILTERS:
        names = [name for name in names if name not in ENDS_ITS_OWN_SENSES]
    elif without == layers.NON_DUMPABLE and Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "@")):
        names.remove("die with a core")  # RLIMIT_CORE does not bind a handler: core(5)
    reports = in_halves(names, tmp_path, without=without)
    assert [report for report in reports if report.effects] == []
    for report in reports:
        assert report.ending != "hung", report
        if report.ending.startswith("returned") and report.ending != NOT_BY_THE_FILTER.get(report.name):
            assert report.name in COMES_BACK.get(without, {}), report
    told(record_property, f"without {without}", reports)


def test_without_no_new_privs_there_is_no_runner(tmp_path: Path) -> None:
    """Neither Landlock nor a filter can be had then by a process without capabilities."""
    with pytest.raises(NoRunner, match="layer-missing: landlock: "):
        probed(["openat"], tmp_path, without=layers.NO_NEW_PRIVS)


@pytest.mark.parametrize(
    "name",
    ["write the canary", "create", "truncate", "rename", "unlink", "mkdir", "chmod", "reach tcp", "reach udp",
     "reach an abstract socket", "reach a socket by path", "change its priority", "change its limits",
     "signal", "signal by pidfd"],
)  # fmt: skip
def test_probe_has_an_effect_where_there_is_no_sandbox(name: str, tmp_path: Path) -> None:
    """What stops it above is no mistake in the attempt, and what sees nothing above can see."""
    report = unconfined(name, tmp_path)
    assert report.effects != (), report


@pytest.mark.parametrize(
    ("name", "ending"),
    [("read the canary", "returned 5"), ("read its memory", "returned 1"), ("write, then execute", "returned 7"),
     ("fork bomb", "returned 400"), ("trace", "returned 0"), ("take its descriptor", "returned"),
     ("find shared memory", "returned")],
)  # fmt: skip
def test_probe_succeeds_where_there_is_no_sandbox(name: str, ending: str, tmp_path: Path) -> None:
    assert unconfined(name, tmp_path).ending.startswith(ending)
