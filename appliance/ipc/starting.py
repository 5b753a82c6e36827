"""What the warden and its starter say to each other.

Orders go over one socket. Each carries its descriptors and, last, one end of a socket pair made for it alone, the
*line*, over which that one process is spoken about until it has ended. Whoever closes a line ends its process.

Trusts: nothing; an order may come from a warden that was taken over.
Promises: a decoded order has its declared fields and no others, and ``DESCRIPTORS`` says how many come with it.
Not here: what is started (``warden.commands``), and by whom (``warden.starter``).
"""

from typing import Annotated, Final

from msgspec import Meta

from appliance.core.values import Value
from appliance.ipc.messages import MemoryBytes, TakenMemory, Words

MAX_WORD_BYTES: Final = 4096
Detail = Annotated[str, Meta(max_length=500)]

# --- warden -> starter, over the socket -----------------------------------------------------------------------------


class StartRunner(Value, frozen=True, kw_only=True, tag=True):
    """With its end of the channel, the writing end of a pipe for its stderr, and a line. ``runner_id`` may become the
    name of a control group, so no character of it means anything to a path; ``memory_bytes`` is that group's share."""

    runner_id: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    memory_bytes: MemoryBytes


class StartValidator(Value, frozen=True, kw_only=True, tag=True):
    """With the file to judge, the writing end of a pipe for its answer, and a line."""


Order = StartRunner | StartValidator
DESCRIPTORS: Final = 3

# --- warden -> starter, over a line ---------------------------------------------------------------------------------


class End(Value, frozen=True, kw_only=True, tag=True):
    """End the process; no answer but ``Ended``."""


class Inspect(Value, frozen=True, kw_only=True, tag=True):
    """Ask the kernel whether the filters are on, as ``warden.fence`` does; ``named`` are the layers that the runner had
    while it could be believed. Answered by ``FencedIn`` or ``NotFencedIn``."""

    named: Words


class Measure(Value, frozen=True, kw_only=True, tag=True):
    """Ask the kernel how much memory the runner has. Answered by ``Measured``, at any time between other answers."""


ToLine = End | Inspect | Measure

# --- starter -> warden, over a line ---------------------------------------------------------------------------------


class Started(Value, frozen=True, kw_only=True, tag=True):
    """First word, unless it is ``Failed``."""

    pid: int


class Failed(Value, frozen=True, kw_only=True, tag=True):
    """No process was started; the line ends."""

    detail: Detail


class FencedIn(Value, frozen=True, kw_only=True, tag=True):
    """Every thread of the process shows both filters and no privilege."""


class NotFencedIn(Value, frozen=True, kw_only=True, tag=True):
    detail: Detail


class Measured(Value, frozen=True, kw_only=True, tag=True):
    """None when it could not be seen."""

    taken: TakenMemory | None


class Ended(Value, frozen=True, kw_only=True, tag=True):
    """The process has ended and was waited for: its exit status, or minus the signal. Last word; the line ends."""

    status: int


FromLine = Started | Failed | FencedIn | NotFencedIn | Measured | Ended
