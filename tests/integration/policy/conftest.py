"""The real opa binary: $PADDOCK_OPA, PATH or ~/go/bin. Without it these tests are skipped, except where CI is true."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def build_policy():
    """tools/build_policy.py as a module."""
    spec = importlib.util.spec_from_file_location("build_policy", ROOT / "tools" / "build_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def opa(build_policy):
    """The path of the opa binary."""
    found = build_policy.find_opa()
    if found is not None:
        return found
    missing = f"opa is not here: go install github.com/open-policy-agent/opa@v{build_policy.OPA_VERSION}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def pinned_opa(opa, build_policy):
    """The path of the opa binary if it is the version that the committed module is made with."""
    version = build_policy.opa_version(opa)
    if version == build_policy.OPA_VERSION:
        return opa
    other = f"opa is {version}, the committed module is made with {build_policy.OPA_VERSION}"
    if os.environ.get("CI") == "true":
        pytest.fail(other)
    pytest.skip(other)
