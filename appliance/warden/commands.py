"""What the warden's processes are started as: fixed here, and sent by nobody.

Trusts: the installed package and this interpreter.
Promises: nothing of the starting process's environment or arguments is in them.
Not here: starting them (``starter``, and ``starter_client`` for the starter itself).
"""

import sys
from typing import Final

_PYTHON: Final = (sys.executable, "-I", "-B", "-m")

STARTER_COMMAND: Final = (*_PYTHON, "appliance.warden.starter")
STARTER_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8"}

RUNNER_COMMAND: Final = (*_PYTHON, "appliance.runner")
RUNNER_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The reasons stand in ``runner.main``, which starts itself again if it finds any other environment."""

VALIDATOR_COMMAND: Final = (*_PYTHON, "appliance.validator")
VALIDATOR_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}
