"""The benchmark works: it runs to its end and says what it promises. Its figures are for people, not for a test."""

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
        [sys.executable, "bench/gate.py", "--quick"], cwd=_ROOT, capture_output=True, text=True, timeout=240
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
