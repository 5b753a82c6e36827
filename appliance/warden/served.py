"""Models as they are served: some with LoRA adapters or a draft model, some under a name of their own.

The settings say which: ``[model."support-bot"]`` with a ``base`` is one more name, for the model of the base; with
``adapters`` or a ``draft`` alone, what has this name is served with them. Whatever is asked about such a name is
asked about each of its files, so that it stands and falls with all of them: its stamp changes with any, it means
something only while each is trusted, and it is opened whole or not at all.

Trusts: the settings for what belongs together; the store below to verify each file.
Promises: what a served name means names the digest of every file that is loaded for it; none is ever left out, or put
    in by anybody who asks.
Not here: verifying a file (``models.store``); whether an adapter's matrices, or a draft's tokens, are the model's (the
    runner).
"""

import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from appliance.core.manifest import accompanied, as_companion
from appliance.core.records import CompanionRef, ModelRef
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Companion,
    CompanionKind,
    ScaleThousandths,
    SealMode,
    Value,
    VerifiedModel,
    weakest_seal,
)
from appliance.warden.ports import VerifiedFiles


class Beside(Value, frozen=True, kw_only=True):
    """A file of the store, its part beside a model, and how strongly it counts if it is an adapter."""

    name: str
    kind: CompanionKind
    scale_thousandths: ScaleThousandths | None = None


class Serving(Value, frozen=True, kw_only=True):
    """What one name is served as: the file ``base`` with these, in this order."""

    base: str
    beside: tuple[Beside, ...] = ()


class Opened:
    """``warden.ports.OpenedModel``."""

    def __init__(self, model: VerifiedModel, file: int, companions: tuple[int, ...], seal_mode: SealMode) -> None:
        self.model: Final = model
        self.file: Final = file
        self.companions: Final = companions
        self.seal_mode: Final = seal_mode


class ServedModels:
    """``warden.ports.VerifiedStore`` over the files of one. Safe to use from several threads."""

    def __init__(self, files: VerifiedFiles, serving: Mapping[str, Serving]) -> None:
        self._files = files
        self._serving = dict(serving)

    def names(self) -> list[str]:
        added = {name for name, serving in self._serving.items() if serving.base != name}
        return sorted({*self._files.names(), *added})

    def stamp(self, name: str) -> Hashable:
        serving = self._of(name)
        wanted = {name, serving.base, *(one.name for one in serving.beside)}
        return tuple((one, self._files.stamp(one)) for one in sorted(wanted))

    def reference(self, name: str) -> ModelRef:
        serving = self._of(name)
        self._require_own_name(name, serving)
        base = self._files.reference(serving.base)
        companions = []
        for one in serving.beside:
            with _said_of(one.name):
                companions.append(_companion_ref(self._files.reference(one.name), one))
        return ModelRef(
            name=name,
            digest=base.digest,
            signer=base.signer,
            bundle_digest=base.bundle_digest,
            companions=tuple(companions),
        )

    def verify(self, name: str) -> VerifiedModel:
        serving = self._of(name)
        self._require_own_name(name, serving)
        base = self._files.verify(serving.base)
        companions: list[Companion] = []
        for one in serving.beside:
            with _said_of(one.name):
                companions.append(as_companion(self._files.verify(one.name), one.kind, one.scale_thousandths))
        return _joined(base, name, tuple(companions))

    def open_verified(self, name: str) -> Opened:
        serving = self._of(name)
        self._require_own_name(name, serving)
        with ExitStack() as opened:
            base = self._files.open_verified(serving.base)
            opened.callback(os.close, base.file)
            companions, files, seals = [], [], [base.seal_mode]
            for one in serving.beside:
                with _said_of(one.name):
                    file = self._files.open_verified(one.name)
                    opened.callback(os.close, file.file)
                    companions.append(as_companion(file.model, one.kind, one.scale_thousandths))
                files.append(file.file)
                seals.append(file.seal_mode)
            whole = Opened(_joined(base.model, name, tuple(companions)), base.file, tuple(files), weakest_seal(*seals))
            opened.pop_all()
            return whole

    def _of(self, name: str) -> Serving:
        return self._serving.get(name, Serving(base=name))

    def _require_own_name(self, name: str, serving: Serving) -> None:
        """Policy decides on names: one that means two models would be decided on as the wrong one."""
        if serving.base != name and name in self._files.names():
            raise Refused(
                Reason.MODEL_NOT_VERIFIED, f"name-taken: {name} is a model of the store and, in the settings, another"
            )


def _joined(base: VerifiedModel, name: str, companions: tuple[Companion, ...]) -> VerifiedModel:
    """A file that nobody gave a companion or another name, adapters among them, is what it is."""
    return accompanied(base, name, companions) if companions or name != base.name else base


def _companion_ref(file: ModelRef, beside: Beside) -> CompanionRef:
    return CompanionRef(
        kind=beside.kind,
        scale_thousandths=beside.scale_thousandths,
        name=file.name,
        digest=file.digest,
        signer=file.signer,
        bundle_digest=file.bundle_digest,
    )


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """A companion that is not there is no model that is not there: what was asked for exists, and is not served."""
    try:
        yield
    except Refused as refused:
        raise Refused(Reason.MODEL_NOT_VERIFIED, f"companion-refused: {name}: {refused.detail}") from refused
