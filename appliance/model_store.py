"""Opens the model store as every process of an appliance does: with headers judged in a sandbox.

Trusts: the settings.
Promises: no process that serves or imports parses a model's header itself.
Not here: the store (``models.store``) and the validator (``warden.validate``), which do not know each other.
"""

from typing import Final

from appliance.models.store import ModelStore
from appliance.sandbox import layers
from appliance.settings import Settings
from appliance.warden.validate import SandboxedValidator

_IN_A_UNIT: Final = layers.NAMESPACES | {layers.EMPTY_ROOT}
"""Under systemd the warden's unit is these: it forbids new namespaces to whatever runs in it."""


def open_store(config: Settings) -> ModelStore:
    """Raises as ``ModelStore.open``."""
    allow_degraded: frozenset[str] = frozenset(config.sandbox.allow_degraded)
    if config.sandbox.launcher == "systemd":
        allow_degraded |= _IN_A_UNIT
    return ModelStore.open(
        config.models_dir,
        facts_of=SandboxedValidator(allow_degraded=allow_degraded),
        with_verity=config.models.seal_mode == "verity",
    )
