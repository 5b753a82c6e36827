"""The reference implementation of OpenSSF Model Signing, in a virtual environment of its own."""

from pathlib import Path

from tests.support.environments import python_or_skip


def reference() -> Path:
    """The interpreter of that environment. Skips the test where it can neither be found nor made, and says why."""
    return python_or_skip("interop")
