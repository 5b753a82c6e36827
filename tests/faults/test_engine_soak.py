"""A runner in its whole sandbox under mixed load: no leak, no stuck sequence, no text of another caller's.

Some seconds by default. ``--soak-minutes 120`` is the long one; CI gives it ten minutes beside everything else.
"""

import random
from pathlib import Path

import pytest

from tests.support.live_runner import children, threads
from tests.support.marked_model import write_marked_model
from tests.support.runner_client import sandboxed_runner
from tests.support.soak import Soak

_SLOTS = 4
_MOST_GROWTH_MEGABYTES = 4.0
"""Of a process of a hundred, in whatever time."""
_DEFAULT_MINUTES = 0.25


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_every_caller_gets_its_own_text_for_as_long_as_it_lasts(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    minutes = float(pytestconfig.getoption("--soak-minutes", _DEFAULT_MINUTES))
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    model = tmp_path / "marked.gguf"
    write_marked_model(model)
    with sandboxed_runner(model, context_tokens=512, slots=_SLOTS, threads=1) as runner:
        (inner,) = children(runner.process.pid)
        soak = Soak(runner, _SLOTS, chance)
        soak.calmly(40)
        before = len(threads(inner))
        soak.run(minutes * 60)
        report = soak.report
        print({name: value for name, value in vars(report).items() if name != "megabytes"}, report.megabytes[::40])
        soak.calmly(40)
        assert len(threads(inner)) == before
        assert report.whole > 100
        assert report.cancelled
        assert report.growth_megabytes <= _MOST_GROWTH_MEGABYTES, report.megabytes
