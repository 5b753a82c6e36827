"""What a runner may have: above what a sound model takes, below what the host has; and what all may have together."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core.memory import COPIED_TYPES, COPIED_TYPES_ELSEWHERE, MemoryPlan, plan
from appliance.warden import memory
from tests.support.made_values import model

GIB = 2**30
MIB = 2**20


def limit(
    host_gib: int = 1024, slots: int = 4, threads: int = 8, context_tokens: int = 4096, **changed: int
) -> tuple[int, MemoryPlan]:
    facts = msgspec.structs.replace(model(context_tokens=2**20).facts, **changed)
    planned = plan(facts, context_tokens=context_tokens, slots=slots, threads=threads, kv_type="f16")
    return memory.limit_bytes(planned, threads=threads, host_bytes=host_gib * GIB), planned


def test_no_model_is_without_a_limit() -> None:
    assert limit()[0] >= memory.LEAST_BYTES
    assert limit(file_bytes=2**62, host_gib=2**20)[0] <= memory.MOST_BYTES
    assert limit(file_bytes=2**62, host_gib=16)[0] == 12 * GIB
    assert limit(host_gib=0)[0] == memory.LEAST_BYTES


def test_every_part_of_what_a_model_needs_raises_it() -> None:
    shape = {"block_count": 28, "embedding_length": 1024, "vocabulary_tokens": 152_000, "file_bytes": 640_000_000}
    before, _ = limit(**shape)
    for name, value in shape.items():
        assert limit(**{**shape, name: 2 * value})[0] > before, name
    assert limit(**shape, slots=8)[0] > before
    assert limit(**shape, threads=16)[0] > before
    assert limit(**shape, context_tokens=8192)[0] > before


def test_known_shapes_have_room_for_copies_and_whole_cache() -> None:
    """Keys and values as llama.cpp keeps them (2 bytes each), for heads that are wider than the embedding too."""
    for blocks, embedding, cached, file_bytes in (
        (28, 1024, 1024, 640_000_000),  # Qwen3 0.6B
        (28, 3072, 4096, 5_000_000_000),  # Gemma 7B
        (80, 8192, 1024, 40_000_000_000),  # Llama 3 70B
    ):
        given, planned = limit(
            block_count=blocks, embedding_length=embedding, vocabulary_tokens=256_000, file_bytes=file_bytes
        )
        assert given > file_bytes + 4 * 4096 * blocks * 2 * cached * 2 + GIB
        assert given > planned.private


# --- the host -------------------------------------------------------------------------------------------------------


def proc_with(tmp_path: Path, *, available_mib: int, limits: dict[str, str] | None = None) -> Path:
    """A ``/proc`` of a process in ``/a/b`` of a tree that is mounted in ``tmp_path``."""
    proc, tree = tmp_path / "proc", tmp_path / "tree"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_mib * 1024} kB\nBuffers: 2 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    (proc / "self/mountinfo").write_text(f"1 1 0:1 / {tree} rw - cgroup2 none rw\n")
    (tree / "a/b").mkdir(parents=True)
    for folder, text in (limits or {}).items():
        (tree / folder / "memory.max").write_text(text)
    return proc


@pytest.mark.parametrize(
    ("available", "limits", "budget"),
    [
        (4096, {}, 3072),
        (4096, {"a": "max\n", "a/b": "max\n"}, 3072),
        (4096, {"a": f"{2 * GIB}\n", "a/b": "max\n"}, 1536),
        (4096, {"a": f"{2 * GIB}\n", "a/b": f"{GIB}\n"}, 768),
        (1024, {"a": f"{2 * GIB}\n"}, 768),
        (4096, {"a": "nonsense"}, 3072),
    ],
)
def test_budget_is_within_what_is_free_and_what_is_allowed(
    tmp_path: Path, available: int, limits: dict[str, str], budget: int
) -> None:
    assert memory.budget_bytes(proc=proc_with(tmp_path, available_mib=available, limits=limits)) == budget * MIB


def test_host_that_tells_nothing_has_a_budget_all_the_same(tmp_path: Path) -> None:
    assert 0 < memory.budget_bytes(proc=tmp_path) < memory.host_bytes()
    assert memory.copied_types(proc=tmp_path) == COPIED_TYPES_ELSEWHERE


@pytest.mark.parametrize(
    ("machine", "flags", "copied"),
    [
        ("x86_64", "fpu avx2 avx512f", COPIED_TYPES),
        ("x86_64", "fpu avx2 amx_tile amx_int8", COPIED_TYPES_ELSEWHERE),
        ("aarch64", "fpu avx2", COPIED_TYPES_ELSEWHERE),
    ],
)
def test_unknown_processor_may_copy_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, copied: frozenset[int]
) -> None:
    name: Any = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:4], machine)))
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
    assert memory.copied_types(proc=tmp_path) == copied


def test_memory_of_a_process_that_has_gone_is_not_told() -> None:
    own = memory.taken_memory(os.getpid())
    assert own is not None
    assert own.private_bytes > MIB
    assert own.mapped_bytes > MIB
    assert memory.taken_memory(2**22 + 1) is None
