"""The plan against what llama.cpp allocates: never less, and not much more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.core import memory
from appliance.core.gguf import parse_header
from appliance.core.memory import KvType, MemoryPlan, Speculating
from tests.support.chain_model import chain_model
from tests.support.runner_client import sandboxed_runner
from tests.support.shaped_model import Shape, write_shaped_model

MIB = 2**20
COMPUTE_MARGIN = 2.5
"""How much more may be planned for a step than is taken, some MiB apart: small beside weights and cache. Beside it the
mask of a unified cache, which is as many times smaller as there are streams."""
CACHE_MARGIN_MIB = 0.01  # its log has two decimals

SHAPES: dict[str, tuple[Shape, int, int, KvType]] = {
    "small": (Shape(), 4096, 4, "f16"),
    "not a whole number of steps": (Shape(), 1000, 3, "q8_0"),
    "heads of their own": (Shape(heads=4, kv_heads=4, key=96, value=96), 2048, 2, "f16"),
    "heads that vary": (Shape(blocks=4, heads=8, kv_heads=(8, 2, 2, 1), embedding=256), 8192, 2, "q4_0"),
    "copied": (Shape(blocks=4, embedding=512, feed_forward=2048, heads=8, quantised=True), 16384, 2, "q8_0"),
    "many words": (Shape(vocabulary=64_000, feed_forward=1024), 1024, 8, "q4_0"),
}


def plan_of(
    path: Path, context_tokens: int, slots: int, kv_type: KvType, speculation: Speculating = "off"
) -> MemoryPlan:
    data = path.read_bytes()
    facts = parse_header(data, len(data))
    return memory.plan(
        facts, context_tokens=context_tokens, slots=slots, threads=1, kv_type=kv_type, speculation=speculation
    )


def allocated(path: Path, context_tokens: int, slots: int, kv_type: str, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.support.engine_allocations", str(path)]
    command += [str(context_tokens), str(slots), kv_type, kind]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=root, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("cache", ["unified", "streams"])
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_allocated_that_was_not_planned(name: str, cache: str, tmp_path: Path) -> None:
    shape, context_tokens, slots, kv_type = SHAPES[name]
    path = write_shaped_model(tmp_path / "model.gguf", shape)
    took = allocated(path, context_tokens, slots, kv_type, cache)
    plan = plan_of(path, context_tokens, slots, kv_type)
    kept = took["KV"] + took["RS"]
    assert kept - CACHE_MARGIN_MIB <= plan.cache / MIB
    if cache == "streams":
        assert plan.cache / MIB <= kept + CACHE_MARGIN_MIB
    assert took["REPACK model"] <= plan.copies / MIB <= path.stat().st_size / MIB
    compute = took["compute"] + took["output"]
    mask = 512 * 2 * context_tokens * slots / MIB
    assert compute <= plan.compute / MIB <= COMPUTE_MARGIN * compute + mask + 8, (compute, plan.compute / MIB)
    assert took["own"] <= plan.private / MIB


def test_nothing_is_allocated_for_proposed_tokens_that_was_not_planned(tmp_path: Path) -> None:
    shape, context_tokens, slots, kv_type = SHAPES["many words"]
    path = write_shaped_model(tmp_path / "model.gguf", shape)
    plain, took = (allocated(path, context_tokens, slots, kv_type, kind) for kind in ("streams", "ahead"))
    planned = plan_of(path, context_tokens, slots, kv_type, "lookup")
    more = planned.compute - plan_of(path, context_tokens, slots, kv_type).compute
    grown = took["compute"] + took["output"] - plain["compute"] - plain["output"]
    assert 0 < grown <= more / MIB
    assert took["compute"] + took["output"] <= planned.compute / MIB
    assert took["own"] <= planned.private / MIB


@pytest.mark.parametrize("context_tokens", [512, 1024])
def test_nothing_is_allocated_for_a_batch_that_is_pooled_and_was_not_planned(
    context_tokens: int, tmp_path: Path
) -> None:
    shape = Shape(vocabulary=60_000, heads=8, pooling=3)
    path = write_shaped_model(tmp_path / "model.gguf", shape)
    took = allocated(path, context_tokens, 4, "f16", "pooled")
    plan = plan_of(path, context_tokens, 4, "f16")
    assert took["KV"] <= plan.cache / MIB
    assert took["compute"] + took["output"] <= plan.compute / MIB
    assert took["own"] <= plan.private / MIB <= 2 * took["own"]


def test_real_runner_stays_within_its_plan() -> None:
    path = chain_model()
    plan = plan_of(path, 4096, 4, "f16")
    with sandboxed_runner(path, context_tokens=4096, slots=4, threads=1) as runner:
        for _ in range(3):
            assert runner.ask("hello " * 100).end is not None
        taken = _private_bytes(runner.process.pid)
    assert taken <= plan.private, (taken / MIB, plan)
    assert taken >= plan.private / 4, (taken / MIB, plan)


def _private_bytes(pid: int) -> int:
    """Of a process and those below it."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kib) * 1024 + sum(_private_bytes(int(child)) for child in children)
