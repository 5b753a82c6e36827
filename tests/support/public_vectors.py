"""Where test vectors from other projects lie, if they are on this machine. They are not part of the repository."""

import os
from pathlib import Path

import pytest

_SIBLING = Path(__file__).parents[3] / "shared" / "vectors"


def vectors_folder(name: str) -> Path:
    """The folder of one set. Skips the test when it is absent: set ``PADDOCK_VECTORS`` to the folder that holds it."""
    folder = Path(os.environ.get("PADDOCK_VECTORS", _SIBLING)) / name
    if not folder.is_dir():
        pytest.skip(f"the public test vectors '{name}' are not here; set PADDOCK_VECTORS to their folder")
    return folder
