import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("openapi")
    group.addoption("--openapi-examples", type=int, default=4, help="requests for each operation, by schemathesis")
