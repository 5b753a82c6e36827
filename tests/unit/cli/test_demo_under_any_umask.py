"""The demo prepares its appliance for whoever runs it: many systems let a user's group write what the user makes."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli.demo_appliance import MODEL, TAMPERED, prepare
from appliance.cli.demo_report import Report
from appliance.models.oms import TrustedKeys
from appliance.models.store import ModelStore


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_no_umask_makes_the_demo_distrust_its_own_key(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        config, _file = prepare(tmp_path, Report(live=False))
    [key] = config.trust_dir.iterdir()
    assert not stat.S_IMODE(key.stat().st_mode) & 0o022
    with ModelStore.open(config.models_dir) as store:
        for name in (MODEL, TAMPERED):
            assert store.verify(name, TrustedKeys.load(config.trust_dir)).name == name
