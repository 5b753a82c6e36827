"""What ends a runner: each of these must end the process rather than leave a channel that hangs."""

import subprocess
import sys

import pytest

from appliance.core.values import Sampling
from appliance.ipc.messages import Load, Probe, ProbeResult
from tests.support.chain_model import chain_model, long_script, model_with_nan
from tests.support.runner_client import TIMEOUT_SECONDS, bare_runner

INTERNAL = 73
LOAD_FAILED = 72


def test_closed_channel_does_not_leave_a_runner() -> None:
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192) as runner:
        runner.submit("a")
        runner.wait_for_first_delta("a")
        runner.channel.close()
        assert runner.process.wait(TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize("frame", [b"\xc1", b"x" * 1000, b"\x81\xa4type\xa4Quit"])
def test_undecodable_frame_ends_the_runner(frame: bytes) -> None:
    with bare_runner(chain_model()) as runner:
        runner.ask(max_completion_tokens=1)
        runner.channel.send(frame)
        assert runner.process.wait(TIMEOUT_SECONDS) == INTERNAL


def test_second_load_ends_the_runner() -> None:
    with bare_runner(chain_model()) as runner:
        runner.send(Load(runner_id="r", context_tokens=64, slots=1, threads=1))
        assert runner.process.wait(TIMEOUT_SECONDS) == INTERNAL


def test_request_id_in_use_ends_the_runner() -> None:
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192) as runner:
        runner.submit("a")
        runner.submit("a")
        assert runner.process.wait(TIMEOUT_SECONDS) == INTERNAL


def test_sampling_out_of_range_ends_the_runner() -> None:
    """The gateway checked it, so this frame is not from a sound gateway."""
    with bare_runner(chain_model()) as runner:
        runner.submit("a", sampling=Sampling(temperature=float("nan"), top_k=2**31 - 1))
        assert runner.process.wait(TIMEOUT_SECONDS) == INTERNAL


def test_dead_engine_thread_does_not_leave_callers_hanging() -> None:
    with bare_runner(chain_model(), "fail-after-steps", "3") as runner:
        runner.submit("a")
        assert runner.process.wait(TIMEOUT_SECONDS) == INTERNAL
        assert runner.process.stderr is not None
        said = runner.process.stderr.read()
    assert b"RuntimeError" in said
    assert b"secret" not in said
    assert b"Traceback" not in said


def test_model_with_nan_is_not_served() -> None:
    with bare_runner(model_with_nan()) as runner:
        assert runner.process.wait(TIMEOUT_SECONDS) == LOAD_FAILED
        assert runner.process.stderr is not None
        assert runner.process.stderr.read() == b"logits-not-finite\n"


@pytest.mark.parametrize("template", ["{% if", "{{ raise_exception('no') }}", "{{ 1/0 }}", "I ignore you"])
def test_model_with_unusable_template_is_not_served(template: str) -> None:
    with bare_runner(chain_model(template=template)) as runner:
        assert runner.process.wait(TIMEOUT_SECONDS) == LOAD_FAILED
        assert runner.process.stderr is not None
        assert runner.process.stderr.read() == b"template-invalid\n"


def test_probe_is_answered() -> None:
    with bare_runner(chain_model()) as runner:
        runner.send(Probe(name="fork"))
        assert runner.receive() == ProbeResult(name="fork", outcome="tried fork")


def test_warning_does_not_open_the_source_that_it_would_quote() -> None:
    """Stage 2 kills for a file that is opened, and numpy, say, warns of a number."""
    script = "from appliance.runner import main; main._quiet_hooks(); import warnings; warnings.warn('quoted')"
    told = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, timeout=TIMEOUT_SECONDS, check=True
    )
    assert told.stderr == b""
