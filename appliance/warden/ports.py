"""What the warden needs from the model store and from a launcher; ``assemble`` joins them.

Trusts: nothing; these are declarations.
Promises: nothing but their types.
Not here: the implementations (``models.store``, ``warden.launch_spawn``, ``warden.launch_systemd``).
"""

import socket
from typing import Protocol

from appliance.core.values import SealMode, VerifiedModel


class OpenedModel(Protocol):
    """A model whose open descriptor holds exactly the bytes that were verified. The receiver closes ``file``."""

    @property
    def model(self) -> VerifiedModel: ...

    @property
    def file(self) -> int: ...

    @property
    def seal_mode(self) -> SealMode: ...


class VerifiedStore(Protocol):
    """All methods block and may take seconds: call them in a thread."""

    def names(self) -> list[str]:
        """The models in the store, verified or not."""
        ...

    def verify(self, name: str) -> VerifiedModel:
        """Raises ``Refused(MODEL_NOT_VERIFIED)``, or ``Fault`` when the store cannot be read."""
        ...

    def open_verified(self, name: str) -> OpenedModel:
        """Raises as ``verify``."""
        ...


class LaunchedRunner(Protocol):
    """A runner process that waits for its ``Load`` message."""

    @property
    def channel(self) -> socket.socket: ...

    async def wait(self) -> int:
        """Its exit status, once it has ended; negative for a signal."""
        ...

    def kill(self) -> None:
        """Ends it at once. Safe to call when it has ended."""
        ...


class Launcher(Protocol):
    def launch(self, runner_id: str) -> LaunchedRunner:
        """Raises ``Fault`` when no process could be started."""
        ...
