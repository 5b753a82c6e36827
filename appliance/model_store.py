"""Opens the model store as every process of an appliance does: with headers judged in a sandbox.

Trusts: the settings.
Promises: no process that serves or imports parses a model's header itself.
Not here: the store (``models.store``) and the validator (``warden.validate``), which do not know each other.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from appliance.core.values import GgufFacts
from appliance.models.store import FactsOf, ModelStore
from appliance.sandbox import layers
from appliance.settings import Settings
from appliance.warden.starter_client import Starter
from appliance.warden.validate import SandboxedValidator

_IN_A_UNIT: Final = layers.NAMESPACES | {layers.EMPTY_ROOT}
"""Under systemd the warden's unit is these: it forbids new namespaces to whatever runs in it."""


def begin_starter(config: Settings, *, groups: Path | None = None) -> Starter:
    """The process that starts this one's runners and validators. To be begun on the main thread, and by a
    process that serves before anything foreign is read. ``groups``: where its runners get control groups. Raises
    ``Fault``."""
    allow_degraded: frozenset[str] = frozenset(config.sandbox.allow_degraded)
    if config.sandbox.launcher == "systemd":
        return Starter(allow_degraded=allow_degraded | _IN_A_UNIT, validators_only=True)
    return Starter(allow_degraded=allow_degraded, groups=groups)


def store_with(config: Settings, validator: SandboxedValidator) -> ModelStore:
    """Raises as ``ModelStore.open``."""
    return _opened(config, validator)


@contextmanager
def open_store(config: Settings) -> Iterator[ModelStore]:
    """The store for one command, on the main thread. Its starter is begun when the first header is to be judged, since
    many commands judge none; this process has checked signatures and hashed the file by then, and parsed no header.
    Raises as ``ModelStore.open``."""
    with ExitStack() as stack:
        validator = functools.cache(lambda: SandboxedValidator(stack.enter_context(begin_starter(config))))

        def facts_of(fd: int) -> GgufFacts:
            return validator()(fd)

        yield stack.enter_context(_opened(config, facts_of))


def _opened(config: Settings, facts_of: FactsOf) -> ModelStore:
    return ModelStore.open(config.models_dir, facts_of=facts_of, with_verity=config.models.seal_mode == "verity")
