"""Is the fence up? Asked before a runner gets a model, and looked at again before anybody gets the runner.

A runner's word counts as long as nothing of a stranger's has reached it: ``Fenced`` comes before ``Load``. Afterwards
the kernel is asked: by the starter about its child (*spawn*), or by the warden about the process that the kernel named
as the sender of ``Fenced`` (*systemd*). What it shows is that two filters were installed on every thread; that the
first is ours rests on code that had not yet met the model.

Trusts: the installed runner until it takes a model, the kernel's ``/proc`` afterwards.
Promises: a model goes only to a runner that accounts for every layer of the closed list, lacks none but those that may
    be missing, and is about to install the filters of this release.
Not here: putting the layers on (``sandbox``); starting processes (the launchers).
"""

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest
from appliance.ipc.messages import Fenced, Load, Ready
from appliance.sandbox import layers, seccomp
from appliance.sandbox.bpf import PolicyError
from appliance.sandbox.procfs import status_fields

FILTERS: Final = (layers.SECCOMP_STAGE_1, layers.SECCOMP_STAGE_2)
_NAMED_BY_THE_RUNNER: Final = frozenset(layers.LAYERS) - frozenset(FILTERS)
_NO_CAPABILITIES: Final = "0" * 16


@functools.cache
def filter_digest() -> Digest:
    """The filters of this release. Raises ``Fault`` where there are none: then no runner may be started."""
    try:
        return seccomp.prepare(1).digest
    except PolicyError as error:
        raise Fault(f"the runner's filters cannot be read: {error}") from error


def require_whole(fenced: Fenced, allow_degraded: frozenset[str]) -> None:
    """Raises ``Refused(RUNNER_UNAVAILABLE)`` unless every layer is named once, as on or as one that may be missing."""
    on, missing = frozenset(fenced.layers), frozenset(fenced.degraded)
    if len(fenced.layers) + len(fenced.degraded) != len(_NAMED_BY_THE_RUNNER) or on | missing != _NAMED_BY_THE_RUNNER:
        raise _refused(f"it accounts for {', '.join(sorted(on | missing))}")
    if missing - allow_degraded:
        raise _refused(f"it lacks {', '.join(sorted(missing - allow_degraded))}")
    if fenced.filter_digest != filter_digest():
        raise _refused(f"its filters are {fenced.filter_digest}, not this release's")


def require_as_asked(ready: Ready, load: Load) -> None:
    """Raises ``Refused(RUNNER_UNAVAILABLE)`` for other slots, or a larger context, than it was told to have."""
    if ready.slots != load.slots or ready.context_tokens > load.context_tokens:
        raise _refused(f"it has {ready.slots} slots of {ready.context_tokens} tokens")


def _refused(detail: str) -> Refused:
    return Refused(Reason.RUNNER_UNAVAILABLE, f"the runner is not fenced in: {detail}")


# --- the kernel's view ----------------------------------------------------------------------------------------------


def inspect(pid: int, named: frozenset[str]) -> None:
    """Reads the state of every thread of a runner whose outermost process is ``pid``, our child.

    Raises ``Fault`` unless each has no capability, no-new-privs, and two filters more than this process, from which it
    inherited the others; or when ``/proc`` does not show it.
    """
    try:
        inherited = int(_status(Path("/proc/self/status")).get("Seccomp_filters", "0"))
        runner = _only_child(pid) if layers.PID_NAMESPACE in named else pid
        for thread in Path(f"/proc/{runner}/task").iterdir():
            _require_fenced(_status(thread / "status"), inherited + len(FILTERS))
    except (OSError, ValueError) as error:
        raise Fault(f"the runner's process cannot be looked at: {error}") from error


@dataclass(frozen=True)
class Sender:
    """Who sent a message, by the kernel's word (``SCM_CREDENTIALS``, unix(7)). ``pid`` is 0 for a process that this one
    cannot see."""

    pid: int
    uid: int


class Witness:
    """Another user's process, held by its open folder in ``/proc``: what is read there later is read of this process or
    fails, whoever has its number then. And how many filters it had before it met a model: those of its unit."""

    def __init__(self, sender: Sender) -> None:
        """To be called while the sender waits for its ``Load``. Raises ``Fault`` when it is not to be seen, is root or
        this process's user."""
        if sender.pid <= 0:
            raise Fault("the runner's process cannot be seen from here")
        if sender.uid in (0, os.getuid()):
            raise Fault(f"the runner is the user {sender.uid}, not one of its own")
        with ExitStack() as on_failure, _looking():
            self._folder = os.open(f"/proc/{sender.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            on_failure.callback(self.close)
            seen = _status_in(self._folder)
            self._own = (str(sender.pid), seen["PPid"])
            self._uid = str(sender.uid)
            self._inherited = int(seen["Seccomp_filters"])
            if not self._inherited:
                raise Fault("the runner's unit put no filter on it")
            on_failure.pop_all()

    def require_alone(self) -> None:
        """Every process of a user may signal every other: a runner's user is no other's, but its guardian's, which is
        its parent. Looks at each process there is, some 0.1 ms each: for a thread. Raises ``Fault``."""
        with _looking():
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and process.name not in self._own:
                    self._require_other_user(process)

    def _require_other_user(self, process: Path) -> None:
        try:
            users = _status(process / "status")["Uid"].split()
        except (FileNotFoundError, ProcessLookupError):
            return  # it has just ended
        if self._uid in users:
            raise Fault(f"the runner's user {self._uid} has another process, {process.name}")

    def require_fenced(self) -> None:
        """As ``inspect``. Raises ``Fault``, also when the process has ended."""
        with _looking():
            tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
            try:
                for thread in os.listdir(tasks):  # noqa: PTH208 - of a descriptor
                    _require_fenced(_status_in(tasks, thread), self._inherited + len(FILTERS))
            finally:
                os.close(tasks)
            if _status_in(self._folder)["State"].startswith(("Z", "X")):  # ended, and not waited for yet
                raise Fault("the runner's process has ended")

    def close(self) -> None:
        os.close(self._folder)


@contextmanager
def _looking() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise Fault(f"the runner's process cannot be looked at: {error}") from error


def _status_in(folder: int, thread: str = ".") -> dict[str, str]:
    status = os.open(f"{thread}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(status, encoding="utf-8", errors="replace") as file:
        return status_fields(file.read())


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return int(child)


def _status(path: Path) -> dict[str, str]:
    return status_fields(path.read_text("utf-8", "replace"))


def _require_fenced(seen: dict[str, str], filters: int) -> None:
    """The kernel's words: Seccomp 2 is filtering (proc(5))."""
    if seen.get("Seccomp") != "2" or int(seen.get("Seccomp_filters", "0")) < filters:
        raise Fault(f"a thread of the runner has {seen.get('Seccomp_filters')} filters, not {filters}")
    if seen.get("NoNewPrivs") != "1":
        raise Fault("a thread of the runner may gain privileges")
    if any(seen.get(f"Cap{kind}") != _NO_CAPABILITIES for kind in ("Inh", "Prm", "Eff", "Amb")):
        raise Fault("a thread of the runner has capabilities")
