"""What the warden needs from the model store and from a launcher; ``assemble`` joins them.

Trusts: nothing; these are declarations.
Promises: nothing but their types.
Not here: the implementations (``models.store``, ``warden.launch_spawn``, ``warden.launch_systemd``).
"""

import socket
from collections.abc import Hashable
from typing import Protocol

from appliance.core.records import ModelRef
from appliance.core.values import SealMode, VerifiedModel
from appliance.ipc.messages import TakenMemory


class OpenedModel(Protocol):
    """A model whose open descriptors hold exactly the bytes that were verified. The receiver closes ``file``, and the
    ``companions``: one for each of the model's, in their order. ``seal_mode`` is how the weakest of them is kept."""

    @property
    def model(self) -> VerifiedModel: ...

    @property
    def file(self) -> int: ...

    @property
    def companions(self) -> tuple[int, ...]: ...

    @property
    def seal_mode(self) -> SealMode: ...


class OpenedFile(Protocol):
    """As ``OpenedModel``, of one file of the store."""

    @property
    def model(self) -> VerifiedModel: ...

    @property
    def file(self) -> int: ...

    @property
    def seal_mode(self) -> SealMode: ...


class VerifiedFiles(Protocol):
    """The files of the store under the operator's trust: as ``VerifiedStore``, one name for each file, models and
    adapters alike."""

    def names(self) -> list[str]: ...

    def stamp(self, name: str) -> Hashable: ...

    def reference(self, name: str) -> ModelRef: ...

    def verify(self, name: str) -> VerifiedModel: ...

    def open_verified(self, name: str) -> OpenedFile: ...


class VerifiedStore(Protocol):
    """All methods block and may take seconds: call them in a thread."""

    def names(self) -> list[str]:
        """The models in the store, verified or not."""
        ...

    def stamp(self, name: str) -> Hashable:
        """Changes when anything changes on which ``verify`` rests: entry, bundle, file or trusted keys. Reads no byte
        of the model. Raises ``Fault``."""
        ...

    def reference(self, name: str) -> ModelRef:
        """What the entry means to the keys that are trusted now, as far as its signature tells; no byte of the model is
        hashed. Raises as ``verify``."""
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

    async def wait(self) -> int | None:
        """Its exit status, once it has ended; negative for a signal, None where nobody tells."""
        ...

    async def inspect(self, named: frozenset[str]) -> None:
        """Looks at the live process from outside: are the filters on that it says it has?

        ``named`` are the layers it had while it could be believed. Raises ``Fault`` if not, or if nothing can be seen.
        """
        ...

    async def taken(self) -> TakenMemory | None:
        """How much memory it has now; None where nobody can look. May take as long as the one who is asked."""
        ...

    def kill(self) -> None:
        """Ends it at once. Safe to call when it has ended."""
        ...


class Needed(Protocol):
    """What this process cannot do without: the starter."""

    async def run(self) -> None:
        """Raises ``Fault`` when it has ended."""
        ...


class Launcher(Protocol):
    @property
    def allow_degraded(self) -> frozenset[str]:
        """The layers that its runners may report as missing."""
        ...

    async def launch(self, runner_id: str, memory_bytes: int) -> LaunchedRunner:
        """A runner that will be told to have so much memory for itself at most. Raises ``Fault`` when no process could
        be started."""
        ...
