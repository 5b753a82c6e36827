"""``warden.ports.VerifiedStore`` in memory. Its methods run in worker threads, as the real one's."""

import os
import threading
from dataclasses import dataclass

from appliance.core.values import SealMode, VerifiedModel


@dataclass(frozen=True)
class FakeOpened:
    """``warden.ports.OpenedModel``: a descriptor at its end, as verifying leaves it."""

    model: VerifiedModel
    file: int
    seal_mode: SealMode = "sealed-memfd"


class FakeStore:
    def __init__(self, *models: VerifiedModel) -> None:
        self.models = {model.name: model for model in models}
        self.fail: dict[str, Exception] = {}
        self.verified: list[str] = []
        self.opened: list[int] = []
        self.let_open = threading.Event()
        self.let_open.set()

    def names(self) -> list[str]:
        return list(self.models)

    def verify(self, name: str) -> VerifiedModel:
        self.verified.append(name)
        if name in self.fail:
            raise self.fail[name]
        return self.models[name]

    def open_verified(self, name: str) -> FakeOpened:
        assert self.let_open.wait(10)
        if name in self.fail:
            raise self.fail[name]
        fd = os.memfd_create("model", os.MFD_CLOEXEC)
        os.write(fd, name.encode())
        self.opened.append(fd)
        return FakeOpened(model=self.models[name], file=fd)
