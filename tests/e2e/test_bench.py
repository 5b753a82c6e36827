"""The benchmarks work: each runs to its end and says what it promises. Their figures are for people, not for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gate_bench_ends_with_one_line_of_figures():
    done = subprocess.run(
        [sys.executable, "bench/gate.py", "--quick", "--without-litellm"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode in {0, 1}, done.stderr  # 1: a bar was missed, which a busy machine may
    *tables, last = done.stdout.splitlines()
    summary = json.loads(last)
    assert (done.returncode == 1) == bool(summary["missed"])
    figures = summary["figures"]
    for callers in ("1", "8", "32"):
        request = figures["requests"][callers]
        assert request["gateway_us"]["median"] > 0
        assert request["notary_us"]["median"] > 0
        assert request["peer_runner_us"]["median"] > 0
    for callers in ("1", "8"):
        assert figures["streams"][callers]["gateway_us"]["median"] > 0
    assert any(line.startswith("CPU us per whole request") for line in tables)
    assert any(line.startswith("CPU us per streamed token") for line in tables)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sandbox_bench_compares_runners_that_differ_by_their_layers_alone():
    done = subprocess.run(
        [sys.executable, "bench/sandbox.py", "--quick"], cwd=_ROOT, capture_output=True, text=True, timeout=150
    )
    if "layer-missing" in done.stderr:
        pytest.skip("this host lacks a layer")
    assert done.returncode in {0, 1}, done.stderr
    *tables, last = done.stdout.splitlines()
    summary = json.loads(last)
    assert (done.returncode == 1) == bool(summary["missed"])
    assert [line.split(":")[0] in {"passed", "missed"} for line in tables].count(True) == 2
    assert {"user-namespace", "landlock", "seccomp-stage-1", "seccomp-stage-2"} <= summary["figures"]["steps_ms"].keys()
    for kind in ("wall_ms", "cpu_ms"):
        assert summary["figures"]["tokens"][kind]["with"]["median"] > 0
        assert summary["figures"]["start"][kind]["without"]["median"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the first time on a machine, llama-server is compiled
def test_engine_bench_asks_both_servers_for_the_same():
    command = [sys.executable, "bench/engine.py", "--quick", "--models", "mini", "--no-packaged"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=1750)
    if "layer-missing" in done.stderr:
        pytest.skip("this host lacks a layer")
    assert done.returncode in {0, 1}, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode == 1) == bool(summary["missed"])
    for callers in ("1", "8"):
        found = summary["figures"]["mini"][callers]
        for name in ("tokens_per_second", "prompt_tokens_per_second", "cpu_ms", "first_p50_ms", "first_p99_ms"):
            assert found[name]["ours"]["median"] > 0
            assert found[name]["peer"]["median"] > 0
        assert found["memory_megabytes"]["llama-server"]["rss"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_speculation_bench_has_guesses_as_right_as_it_says():
    command = [sys.executable, "bench/speculation.py", "--quick", "--callers", "1"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode in {0, 1}, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode == 1) == bool(summary["missed"])
    figures = summary["figures"]
    assert figures["mini, 1, repeats"]["accepted_share"] > 0.9  # rounding may change a token
    assert figures["mini, 1, hostile"]["accepted_share"] == 0
