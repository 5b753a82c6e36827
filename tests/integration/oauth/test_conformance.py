"""The conformance table (``CONFORMANCE.md``): each test that it names exists, and each RFC that is claimed is in it."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
TEXT = Path(__file__).with_name("CONFORMANCE.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TEXT.splitlines() if line.startswith("| ")
]
CLAUSES = [row for row in ROWS if row[0] not in {"clause", "---"}]

RESOURCE_SERVER = ["6750", "7519", "8725", "9068", "7662", "9728", "9449", "8705"]
AUTHORIZATION_SERVER = ["6749", "7009", "7523", "7662", "8414", "8693", "8705", "8707", "9700", "9068"]
CLIENT = ["8628"]


@functools.cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_no_test_is_named_that_there_is_not() -> None:
    named = re.findall(r"`([^`]+\.py)::([^`]+)`", "\n".join(row[2] for row in CLAUSES))
    assert len(named) > len(CLAUSES)
    assert [f"{file}::{name}" for file, name in named if name not in functions(TESTS / file)] == []


@pytest.mark.parametrize("row", CLAUSES, ids=lambda row: row[0])
def test_no_clause_is_without_a_test_or_a_reason(row: tuple[str, ...]) -> None:
    assert len(row) == 3
    assert row[2].startswith(("`", "none: "))


def test_no_rfc_that_is_claimed_is_missing() -> None:
    titles = re.findall(r"^## RFC (\d+)", TEXT, re.MULTILINE)
    assert titles == RESOURCE_SERVER + AUTHORIZATION_SERVER + CLIENT
