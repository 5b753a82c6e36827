"""LiteLLM's proxy, the peer of the gate's benchmark, in a virtual environment of its own, before a mock upstream.

It checks one static master key and nothing else: no policy, no budget, no rates, no record of what it did.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.support.models import PACED, QUICK
from bench.support.peers import free_port, listening, private_python
from tools import setup

MASTER_KEY: Final = "sk-bench"
_ROOT: Final = Path(__file__).resolve().parents[2]


@contextmanager
def litellm_proxy(directory: Path) -> Iterator[tuple[int, int]]:
    """The proxy's process id and its port on the loopback. One worker, as the gateway is one process."""
    with _mock_upstream() as upstream:
        config, log, port = directory / "litellm.json", directory / "litellm.log", free_port()
        config.write_text(json.dumps(_configuration(upstream)))  # JSON is YAML
        environment = {
            "HOME": str(directory),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks a server on the Internet for prices
            "LITELLM_MODE": "PRODUCTION",
            "PATH": "/usr/bin:/bin",
        }
        program = private_python("litellm", setup.REQUIREMENTS / "litellm.txt").with_name("litellm")
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        with listening([str(program), *arguments], port, environment, log=log) as pid:
            yield pid, port


def _configuration(upstream: int) -> dict[str, object]:
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{upstream}/v1",
                "api_key": "none",
            },
        }
        for name in (QUICK, PACED)
    ]
    return {"model_list": models, "general_settings": {"master_key": MASTER_KEY}}


@contextmanager
def _mock_upstream() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.support.mock_upstream"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
