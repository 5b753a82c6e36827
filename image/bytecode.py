"""Bytecode beside every module, made by the image's own Python, since the image is read-only.

The hash-based, unchecked kind (PEP 552) holds no time. One process compiles in sorted order with a fixed hash seed:
what marshal writes depends on which strings the interpreter has seen before.

Trusts: the base layer's Python, which runs here on the C library of the same Debian release.
Promises: equal sources give equal bytecode.
Not here: which modules there are.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tree import File, Tree, to_folder

_COMPILE: Final = """
import pathlib, py_compile, sys
root = pathlib.Path(sys.argv[1])
for source in sorted(root.rglob("*.py")):
    py_compile.compile(
        str(source), dfile="/" + str(source.relative_to(root)), doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def with_bytecode(tree: Tree, base: Tree) -> Tree:
    """Adds ``__pycache__`` files to a layer, with the Python of ``base``. Raises ``CalledProcessError`` if one module
    does not compile."""
    sources: Tree = {path: entry for path, entry in tree.items() if path.endswith(".py") and isinstance(entry, File)}
    with tempfile.TemporaryDirectory(prefix="paddock-image-") as name:
        python, folder = Path(name, "python"), Path(name, "sources")
        to_folder({path: entry for path, entry in base.items() if path.startswith(_PYTHON)}, python)
        to_folder(sources, folder)
        subprocess.run(
            [python / "usr/bin/python3.11", "-B", "-S", "-s", "-c", _COMPILE, folder],
            check=True,
            timeout=600,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        compiled: Tree = {
            path.relative_to(folder).as_posix(): File(path.read_bytes()) for path in sorted(folder.rglob("*.pyc"))
        }
    return {**tree, **compiled}


_PYTHON: Final = ("usr/bin/python3.11", "usr/lib/python3.11/")
