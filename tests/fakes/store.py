"""``warden.ports.VerifiedStore`` in memory. Its methods run in worker threads, as the real one's."""

import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass

from appliance.core.records import ModelRef, reference
from appliance.core.refusals import Reason, Refused
from appliance.core.values import SealMode, VerifiedModel


@dataclass(frozen=True)
class FakeOpened:
    """``warden.ports.OpenedModel``: a descriptor at its end, as verifying leaves it."""

    model: VerifiedModel
    file: int
    seal_mode: SealMode = "sealed-memfd"
    companions: tuple[int, ...] = ()


class FakeStore:
    """``fail`` is what the bytes of a model fail with, ``distrusted`` what its signature does."""

    def __init__(self, *models: VerifiedModel) -> None:
        self.models = {model.name: model for model in models}
        self.fail: dict[str, Exception] = {}
        self.distrusted: dict[str, Exception] = {}
        self.touches: dict[str, int] = {}
        self.hashed: list[str] = []
        self.verified: list[str] = []
        self.opened: list[int] = []
        self.opening = threading.Event()
        self.let_open = threading.Event()
        self.let_open.set()
        self.let_verify = threading.Event()
        self.let_verify.set()

    def names(self) -> list[str]:
        return list(self.models)

    def stamp(self, name: str) -> Hashable:
        return repr(self.models.get(name)), repr(self.distrusted.get(name)), self.touches.get(name, 0)

    def touch(self, name: str) -> None:
        self.touches[name] = self.touches.get(name, 0) + 1

    def reference(self, name: str) -> ModelRef:
        if name in self.distrusted:
            raise self.distrusted[name]
        if name not in self.models:
            raise Refused(Reason.MODEL_NOT_FOUND, f"there is no model {name}")
        return reference(self.models[name])

    def verify(self, name: str) -> VerifiedModel:
        assert self.let_verify.wait(10)
        self.verified.append(name)
        if name in self.fail:
            raise self.fail[name]
        return self.models[name]

    def open_verified(self, name: str) -> FakeOpened:
        self.opening.set()
        assert self.let_open.wait(10)
        self.hashed.append(name)
        if name in self.fail:
            raise self.fail[name]
        fd = os.memfd_create("model", os.MFD_CLOEXEC)
        os.write(fd, name.encode())
        self.opened.append(fd)
        return FakeOpened(model=self.models[name], file=fd)
