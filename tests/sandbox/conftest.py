"""Options for runs that take longer than a check may."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("paddock")
    group.addoption("--mutants", type=int, default=0, help="load so many accepted GGUF mutants, not the usual few")
    group.addoption("--mutant-seed", type=int, default=1, help="other mutants")
