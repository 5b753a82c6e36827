"""What transfers need on this side: settings with trusted keys and a model, and the process as this checkout has it."""

import os
import sys
from pathlib import Path

from appliance import settings
from appliance.models.oms import TrustedKeys
from appliance.models.store import ModelStore
from appliance.settings import Settings
from tests.support.signed_models import KEY, OTHER_KEY, memory_file, public_pem, signed

ROOT = Path(__file__).parents[2]

PULLER = (
    sys.executable,
    "-I",
    "-B",
    "-c",
    f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); "
    "runpy.run_module('appliance.models.transfer', run_name='__main__')",
)
"""``puller.COMMAND``, but the code is surely that of this checkout, installed or not."""


def settings_in(folder: Path) -> Settings:
    """A state directory in which ``acme`` is trusted and no model is."""
    folder.mkdir(parents=True, exist_ok=True)
    config = settings.parse({"state_dir": str(folder / "state"), "runtime_dir": "/run/unused"})
    config.trust_dir.mkdir(parents=True)
    (config.trust_dir / "acme.pem").write_bytes(public_pem(KEY.public_key()))
    return config


def also_trusts_board(config: Settings, *, requires: int = 2) -> Settings:
    (config.trust_dir / "board.pem").write_bytes(public_pem(OTHER_KEY.public_key()))
    (config.trust_dir / "policy.toml").write_text(f"required_signers = {requires}\n")
    return config


def put_model(config: Settings, data: bytes, name: str, *bundles: bytes) -> None:
    fd = memory_file(data)
    try:
        with ModelStore.open(config.models_dir) as store:
            store.import_model(fd, name, bundles or (signed(data),), TrustedKeys.load(config.trust_dir))
    finally:
        os.close(fd)


def names_in(config: Settings) -> tuple[str, ...]:
    with ModelStore.open(config.models_dir) as store:
        return store.entries()
