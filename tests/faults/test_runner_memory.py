"""A runner that wants all the memory there is: it gets what was allowed, and nobody else goes without.

The limit is on before the model is read, so a model, a template and a runner that was taken over all run into it.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.ipc.messages import Load, LoadFailed, Probe, ProbeResult, Ready
from tests.support.appliance import appliance
from tests.support.chain_model import chain_model
from tests.support.live_runner import LOAD, inner_pid, launched, load, receive, send, status, within_limit

MIB = 2**20
LIMIT_BYTES = 512 * MIB
SMALL = Load(**{name: getattr(LOAD, name) for name in LOAD.__struct_fields__} | {"memory_bytes": LIMIT_BYTES})

PLAIN = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"

TAKEN_OVER = """
import mmap, sys
from appliance.runner import main
from appliance.sandbox import probe

def attempt(name):
    kept, protection = [], mmap.PROT_READ if name == "read" else mmap.PROT_READ | mmap.PROT_WRITE
    size = 2**40 if name == "terabyte" else 2**24
    try:
        while True:
            one = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
            if name != "read":
                for at in range(0, size, 4096):
                    one[at] = 1
            kept.append(one)
    except (OSError, MemoryError) as error:
        had = len(kept) * size
        del kept
        return f"{type(error).__name__} after {had}"

probe.attempt = attempt
main.main(sys.argv[1:])
"""
"""What somebody would do who runs code in a runner that serves."""


def skip_without_layers(first: object) -> None:
    if isinstance(first, LoadFailed) and first.reason == "layer-missing":
        pytest.skip(first.detail)


@pytest.mark.parametrize(
    ("bomb", "at_most_bytes"),
    [("terabyte", 0), ("grow", LIMIT_BYTES), ("read", LIMIT_BYTES + 3 * 2**30)],
)
def test_runner_that_was_taken_over_gets_no_more_memory_than_was_allowed(bomb: str, at_most_bytes: int) -> None:
    """One TiB at once; page by page; and pages that are only read, which cost the kernel their tables."""

    async def scenario() -> str:
        async with launched(command=(sys.executable, "-I", "-B", "-c", TAKEN_OVER)) as runner:
            first = await load(runner, message=SMALL)
            skip_without_layers(first)
            assert isinstance(first, Ready), first
            send(runner, Probe(name=bomb))
            answer = await receive(runner)
            assert isinstance(answer, ProbeResult)
            return answer.outcome

    kind, had = re.fullmatch(r"(\w+) after (\d+)", within_limit(scenario)).groups()  # type: ignore[union-attr]
    assert kind in {"OSError", "MemoryError"}
    assert int(had) <= at_most_bytes


def test_limits_are_hard_and_an_ordinary_model_has_room_to_spare() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            first = await load(runner, message=SMALL)
            skip_without_layers(first)
            assert isinstance(first, Ready), first
            pid = inner_pid(runner)
            kept = status(pid)
            data_bytes = int(kept["VmData"].split()[0]) * 1024
            address_bytes = int(kept["VmSize"].split()[0]) * 1024
            print(
                f"the demo's runner has {data_bytes / MIB:.0f} MiB of its own, {address_bytes / MIB:.0f} of addresses"
            )
            assert data_bytes < LIMIT_BYTES / 2
            limits = _limits(pid)
            assert limits["Max data size"] == (str(LIMIT_BYTES), str(LIMIT_BYTES))
            soft, hard = limits["Max address space"]
            assert soft == hard
            assert address_bytes < int(hard) / 2
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "900\n"

    within_limit(scenario)


def _limits(pid: int) -> dict[str, tuple[str, str]]:
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {row[:26].strip(): (row[26:47].strip(), row[47:68].strip()) for row in rows}


def test_a_limit_that_the_host_set_is_not_raised() -> None:
    script = (
        "import resource, sys\n"
        "from appliance.sandbox import layers\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**29, 2**29))\n"
        "layers.memory_limits(private_bytes=2**30, shared_bytes=0)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA))\n"
    )
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == f"({2**29}, {2**29})"


def test_template_that_doubles_at_load_is_refused_within_the_limit() -> None:
    model = chain_model("a b c", template=DOUBLING + PLAIN, dim=64)

    async def scenario() -> None:
        async with launched() as runner:
            first = await load(runner, model, message=SMALL)
            skip_without_layers(first)
            assert isinstance(first, LoadFailed), first
            assert first.reason == "template-invalid"
            assert first.detail.startswith("MemoryError")

    within_limit(scenario)


@pytest.mark.timeout(120)
def test_template_that_doubles_for_one_request_costs_that_request_alone(tmp_path: Path) -> None:
    """Behind the whole appliance: harmless when it is tried out, not for a conversation of two."""
    template = "{% if messages|length > 1 %}" + DOUBLING + "{% endif %}" + PLAIN
    model = chain_model("a b c", template=template, dim=64)
    config = f"[models]\nrunner_memory_bytes = {LIMIT_BYTES}\n"
    with appliance(tmp_path, {"chain": model}, config) as server:
        token = server.token()
        assert server.chat(token, max_tokens=1).status == 200
        gateway = server.pid_of("gateway")
        before = _resident_bytes(gateway)
        said = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "user", "content": "z"},
        ]
        body = {"model": "chain", "messages": said, "max_tokens": 1}
        answer = server.request("POST", "/v1/chat/completions", token=token, body=body)
        assert answer.status in {400, 503}
        assert server.pid_of("gateway") == gateway
        assert _resident_bytes(gateway) - before < 32 * MIB
        server.wait_until(lambda: server.chat(token, max_tokens=1).status == 200, "an answer after it")


def test_cache_beyond_the_limit_is_a_refusal_that_says_so() -> None:
    """Two million tokens of context in half a gigabyte."""
    message = Load(runner_id="r", context_tokens=32768, slots=64, threads=1, memory_bytes=LIMIT_BYTES)

    async def scenario() -> None:
        async with launched() as runner:
            first = await load(runner, chain_model(), message=message)
            skip_without_layers(first)
            assert isinstance(first, LoadFailed), first
            assert first.reason == "context-failed"
            assert "alloc" in first.detail

    within_limit(scenario)


def _resident_bytes(pid: int) -> int:
    return int(status(pid)["VmRSS"].split()[0]) * 1024
