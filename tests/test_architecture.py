"""The rules of the house that a linter does not know, read from the source itself."""

import ast
import functools
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.core import ports
from appliance.core.refusals import Reason
from tests.fakes.world import FAKES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "appliance"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
CORE = sorted(name for name in TREES if name.startswith("core/"))
OUTSIDE = sorted(
    name for name in TREES if not name.startswith("core/") and Path(name).stem not in {"__init__", "__main__"}
)

MAKERS = {
    "VerifiedClaims": "identity/tokens.py",
    "ForwardedUser": "identity/delegation.py",
    "Principal": "core/claims.py",
    "VerifiedModel": "core/manifest.py",
    "Admission": "core/admit.py",
    "Decision": "core/decide.py",
    "Reservation": "core/quota.py",
    "Usage": "core/meter.py",
}


@functools.cache
def _calls(tree: ast.Module) -> tuple[tuple[str, ast.Call], ...]:
    """Every call with its callee as it is written: ``open``, ``os.environ.get``."""
    return tuple((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


@functools.cache
def _names(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


def _imports(tree: ast.Module) -> set[str]:
    """Top-level names of what is imported, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


# --- trusted values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", MAKERS)
def test_trusted_value_is_made_only_by_its_maker(value: str) -> None:
    makers = {
        name for name, tree in TREES.items() for callee, _call in _calls(tree) if callee.rpartition(".")[2] == value
    }
    assert makers == {MAKERS[value]}


def test_list_of_makers_is_the_one_in_the_docstring() -> None:
    listed = re.findall(r"^``(\w+)``\s+``([\w.]+)``$", ast.get_docstring(TREES["core/values.py"]) or "", re.MULTILINE)
    assert {value: f"{module.replace('.', '/')}.py" for value, module in listed} == MAKERS


def test_no_trusted_value_is_changed_into_another() -> None:
    """``structs.replace`` would be a second way to make one; only admission constrains its own."""
    replacing = {name for name, source in SOURCES.items() if "structs.replace" in source or "__replace__" in source}
    assert replacing <= {"core/admit.py"}
    assert [
        name for name, source in SOURCES.items() if "force_setattr" in source or "object.__setattr__" in source
    ] == []


@pytest.mark.parametrize("value", MAKERS)
def test_trusted_value_is_not_decoded_from_bytes_of_outside(value: str) -> None:
    """``convert(x, Principal)`` would be a maker in disguise. Inside a frame or a record it comes from one of us."""
    for name, tree in TREES.items():
        for callee, call in _calls(tree):
            if callee.rpartition(".")[2] in {"convert", "decode", "Decoder", "json_decoder"}:
                arguments = {
                    ast.unparse(argument) for argument in [*call.args, *(word.value for word in call.keywords)]
                }
                assert value not in arguments, f"{name}: {ast.unparse(call)}"


# --- purity ---------------------------------------------------------------------------------------------------------

IMPURE_CALLS = {"open", "input", "print", "__import__", "breakpoint", "eval", "exec", "compile", "globals", "vars"}
PURE_IMPORTS = {
    "appliance",
    "base64",
    "binascii",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "msgspec",
    "re",
    "struct",
    "typing",
    "zlib",
}


@pytest.mark.parametrize("name", CORE)
def test_core_does_no_io_and_has_no_clock_and_no_chance(name: str) -> None:
    tree = TREES[name]
    assert not IMPURE_CALLS & {callee for callee, _call in _calls(tree)}
    assert _imports(tree) <= PURE_IMPORTS
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and name != "core/ports.py"]


@pytest.mark.parametrize("name", CORE)
def test_core_keeps_no_state_between_calls(name: str) -> None:
    assert not [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Global | ast.Nonlocal)]


# --- what nobody does -----------------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {
    "pickle",
    "marshal",
    "shelve",
    "dbm",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "imp",
    "telnetlib",
    "yaml",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "breakpoint",
    "yaml.load",
    "asyncio.create_subprocess_shell",
}


@pytest.mark.parametrize("name", sorted(TREES))
def test_nobody_runs_or_unpickles_data(name: str) -> None:
    assert not FORBIDDEN_IMPORTS & _imports(TREES[name])
    for callee, call in _calls(TREES[name]):
        assert callee not in FORBIDDEN_CALLS, callee
        shell = [word for word in call.keywords if word.arg == "shell"]
        assert not shell, f"{name}: {ast.unparse(call)}"


@pytest.mark.parametrize("name", sorted(set(TREES) - {"settings.py"}))
def test_only_settings_reads_the_environment(name: str) -> None:
    """The runner replaces its environment as a whole before it starts itself again; that is not reading a setting."""
    used = {found for found in _names(TREES[name]) if re.match(r"os\.(environ|getenv|putenv)", found)}
    assert used <= ({"os.environ"} if name == "runner/main.py" else set())


# --- docstrings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_module_says_what_it_trusts_and_promises(name: str) -> None:
    docstring = ast.get_docstring(TREES[name]) or ""
    places = [docstring.find(f"\n{word}: ") for word in ("Trusts", "Promises", "Not here")]
    assert -1 not in places, f"{name} lacks a line"
    assert places == sorted(places)
    assert "\n\n" not in docstring[places[0] + 1 :], "these lines are the last of the docstring"


@pytest.mark.parametrize("name", CORE)
def test_module_of_core_has_a_docstring(name: str) -> None:
    assert Path(name).stem == "__init__" or ast.get_docstring(TREES[name])


# --- refusals -------------------------------------------------------------------------------------------------------


def test_reason_codes_are_unique_and_kebab_case() -> None:
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_every_reason_is_given_somewhere(reason: Reason) -> None:
    users = [name for name, tree in TREES.items() if f"Reason.{reason.name}" in _names(tree)]
    assert users, f"{reason.code} is never given: remove it"


# --- the seams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", FAKES, ids=lambda port: port.__name__)
def test_fake_has_the_methods_of_its_port(port: type) -> None:
    for name, wanted in inspect.getmembers(port, inspect.isfunction):
        if name.startswith("_"):
            continue
        given = getattr(FAKES[port], name)
        assert list(inspect.signature(given).parameters) == list(inspect.signature(wanted).parameters)
        assert inspect.iscoroutinefunction(given) == inspect.iscoroutinefunction(wanted)
    for name, _wanted in inspect.getmembers(port, lambda member: isinstance(member, property)):
        assert isinstance(getattr(FAKES[port], name), property)


def test_every_port_has_one_fake() -> None:
    assert {port.__name__ for port in FAKES} == set(ports.__all__)


# --- import-linter --------------------------------------------------------------------------------------------------

OFFENCES = [
    ("1. Rooms", "gateway/guard.py", "from appliance.identity import tokens"),
    ("1. Rooms", "policy/embedded.py", "import appliance.limits.budget"),
    ("2. core is pure", "core/admit.py", "import os"),
    ("2. core is pure", "core/claims.py", "import time"),
    ("2. core is pure", "core/values.py", "from appliance import settings"),
    ("3. The runner's and the validator's world", "runner/outbox.py", "from appliance import settings"),
    ("4. litestar", "identity/keys.py", "import litestar"),
    ("5. ctypes", "gateway/asgi.py", "import ctypes"),
    ("6. subprocess", "notary/files.py", "import subprocess"),
]


def _lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def offended(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """One run over a copy of the package with every offence in it."""
    folder = tmp_path_factory.mktemp("offended")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(PACKAGE, folder / "appliance", ignore=shutil.ignore_patterns("__pycache__", "data"))
    for _contract, name, line in OFFENCES:
        path = folder / "appliance" / name
        path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    return _lint_imports(folder)


def test_source_keeps_every_contract() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_broken_contract_fails_the_lint_step(offended: "subprocess.CompletedProcess[str]") -> None:
    assert offended.returncode != 0
    assert "0 kept" in offended.stdout


@pytest.mark.parametrize(("contract", "name", "line"), OFFENCES, ids=lambda value: str(value)[:40])
def test_offending_import_is_named(
    offended: "subprocess.CompletedProcess[str]", contract: str, name: str, line: str
) -> None:
    importer = f"appliance.{name.removesuffix('.py').replace('/', '.')}"
    _from, imported = re.fullmatch(r"(?:from (?P<a>[\w.]+) import \w+|import (?P<b>[\w.]+))", line).groups()  # type: ignore[union-attr]
    assert re.search(rf"{re.escape(contract)}\D*BROKEN", offended.stdout)
    assert re.search(rf"{re.escape(importer)} -> {re.escape(_from or imported)}", offended.stdout)


# --- what the repository may not say --------------------------------------------------------------------------------


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    """Written in pieces, so that this file is not the first to break the rule."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=30, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    words = [
        b"pypi" + b".org",
        b"files.python" + b"hosted",
        b"/work" + b"/main",
        b"/work" + b"/shared",
        b".." + b"/shared",
    ]
    found = []
    for name in filter(None, listed.stdout.split(b"\0")):
        path = ROOT / os.fsdecode(name)
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [(os.fsdecode(name), word) for word in words if word in data]
    assert found == []
