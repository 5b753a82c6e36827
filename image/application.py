"""The two layers above the base: the locked wheels, and the appliance itself, below one prefix.

The prefix is a virtual environment in form (``pyvenv.cfg`` and ``bin/python3``), so that ``python -I`` finds the
packages without a variable or a ``.pth`` file, here and on a Debian 12 host alike.

Trusts: the hashes in ``requirements/runtime.txt``; the engine wheel that the caller names.
Promises: every wheel's bytes have a locked hash; no ``.pth``, no script, no test suite, no installer of any kind.
Not here: Python itself (``debian``); bytecode (``bytecode``).
"""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from tree import File, Link, Tree, from_folder

PREFIX: Final = "usr/lib/paddock"
PACKAGES: Final = f"{PREFIX}/lib/python3.11/site-packages"

WITHOUT: Final = {
    "faker": "test data, for litestar's test helpers",
    "polyfactory": "test data, for litestar's test helpers",
    "litestar-htmx": "no page here uses it",
    "httpx": "litestar's test client",
    "httpcore": "httpx only",
    "certifi": "httpx only; the image has Debian's certificates",
    "h11": "uvicorn's other parser; ours is httptools",
    "rich": "litestar's command line",
    "rich-click": "litestar's command line",
    "pygments": "rich only",
    "markdown-it-py": "rich only",
    "mdurl": "rich only",
    "pycparser": "cffi's declaration parser; compiled modules need only its backend",
}
"""Locked distributions that stay out of the image; the reason each. The image test imports the rest without them."""

_SKIPPED: Final = re.compile(
    r"""
      .*/(tests|_pyinstaller)/.*            # test suites, packaging hooks
    | .*\.(pyi|pxd|pyx|h|a|pc|c|cpp|pth)    # what only compilers read; code that would run at every start
    | (site|user)customize[./].*            # what Python imports at every start, by name
    | (lib|bin|include)/.*                  # llama.cpp's own install tree: a second copy of every library
    | [^/]+\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|entry_points\.txt|top_level\.txt)
    | numpy/(f2py|_core/lib|_core/include)/.*
    | llama_cpp/server/.*                   # the upstream server: no authentication
    | litestar/(cli|testing)/.*
    """,
    re.VERBOSE,
)


class WrongWheel(Exception):
    """A wheel is missing, or is not the locked one."""


def locked(lock: Path) -> dict[str, frozenset[str]]:
    """``requirements/runtime.txt`` -> allowed SHA-256 digests per distribution that the image wants."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==", line)
        if match and "sys_platform == 'win32'" not in line and match[1] not in WITHOUT:
            found[_canonical(match[1])] = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


def fetch_wheels(lock: Path, cache: Path) -> list[Path]:
    """The locked wheels, from the cache or through pip. Raises ``WrongWheel`` unless each has a locked hash."""
    wanted = locked(lock)
    folder = cache / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if set(wanted) - {_distribution(path) for path in folder.glob("*.whl")}:
        command = [_with_pip(lock), "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--python-version=3.11", "--only-binary=:all:", f"--dest={folder}", f"--requirement={lock}"]
        subprocess.run(command, check=True, timeout=900)
    wheels = {_distribution(path): path for path in sorted(folder.glob("*.whl"))}
    for name, hashes in wanted.items():
        if name not in wheels or hashlib.sha256(wheels[name].read_bytes()).hexdigest() not in hashes:
            raise WrongWheel(f"{name}: missing, or not the locked file; delete {folder}")
    return [wheels[name] for name in sorted(wanted)]


def _with_pip(lock: Path) -> str:
    """The checkout's virtual environment where there is one: Debian's own Python comes without pip."""
    environment = lock.parent.parent / ".venv" / "bin" / "python"
    return str(environment) if environment.exists() else sys.executable


def wheels_layer(wheels: list[Path]) -> Tree:
    """Wheels, the engine's among them -> the layer of dependencies."""
    tree: Tree = {
        f"{PREFIX}/pyvenv.cfg": File(b"home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"),
        f"{PREFIX}/bin/python3": Link("/usr/bin/python3.11"),
    }
    for wheel in wheels:
        tree.update(_relinked(_unpack(wheel)))
    return tree


def appliance_layer(repository: Path, settings: Path) -> Tree:
    """The package, the ``paddock`` command and the container's settings file."""
    package = from_folder(repository / "appliance")
    start = f"#!/{PREFIX}/bin/python3 -IB\nfrom appliance.cli.main import main\n\nraise SystemExit(main())\n"
    return {
        **{f"{PACKAGES}/appliance/{name}": entry for name, entry in package.items()},
        f"{PREFIX}/bin/paddock": File(start.encode(), executable=True),
        "usr/bin/paddock": Link(f"/{PREFIX}/bin/paddock"),
        "etc/paddock/paddock.toml": File(settings.read_bytes()),
    }


def _unpack(wheel: Path) -> Tree:
    tree: Tree = {}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename
            if info.is_dir():
                continue
            if ".data/" in name:
                _, _, inside = name.partition(".data/")
                kind, _, name = inside.partition("/")
                if kind not in {"purelib", "platlib"}:
                    continue  # scripts, headers, data: nothing that an import needs
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise WrongWheel(f"{wheel.name}: {name} points out of the wheel")
            if not _SKIPPED.fullmatch(name):
                tree[f"{PACKAGES}/{name}"] = File(archive.read(info))
    return tree


def _relinked(tree: Tree) -> Tree:
    """Wheels cannot hold links, so the engine's holds every library three times: libx.so, libx.so.0, libx.so.0.25.3.
    The longest name stays a file; the others become links to it."""
    longest: dict[bytes, str] = {}
    for path, entry in sorted(tree.items()):
        if isinstance(entry, File) and "/llama_cpp/lib/" in path:
            longest[entry.data] = path  # sorted: a longer name follows its prefix
    return {
        path: Link(PurePosixPath(longest[entry.data]).name)
        if isinstance(entry, File) and longest.get(entry.data, path) != path
        else entry
        for path, entry in tree.items()
    }


def _distribution(wheel: Path) -> str:
    return _canonical(wheel.name.split("-")[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
