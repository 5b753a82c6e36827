"""Starting the transfer process and hearing what it says.

The child has the network and no store; this process has the store and, for as long as the child runs, does nothing but
wait for a line of it.

Trusts: the installed ``appliance.models.transfer``; nothing that it answers.
Promises: the child has an empty environment, no descriptor but the one of its job, and has ended on return.
Not here: what to do with what it fetched (``cli.transfer``).
"""

import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import msgspec

from appliance.core.refusals import Fault
from appliance.core.text import printable
from appliance.models.transfer import jobs

COMMAND: Final = (sys.executable, "-I", "-B", "-m", "appliance.models.transfer")
SILENCE_SECONDS: Final = 180.0

_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8"}
_READ_BYTES: Final = 64 * 1024


def run(
    job: jobs.Job, *, on_progress: Callable[[int], None] = lambda _done: None, command: tuple[str, ...] | None = None
) -> jobs.Found | jobs.Done:
    """Runs one job to its end. Raises ``Fault`` when it was refused, or when the process failed or fell silent."""
    with ExitStack() as ending:
        child = subprocess.Popen(
            command or COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            pass_fds=() if isinstance(job, jobs.Resolve) else (job.fd,),
        )
        ending.callback(_end, child)
        event = _converse(child, jobs.encode(job), on_progress)
    if isinstance(event, jobs.No):
        raise Fault(f"{event.reason}: {printable(event.detail)}")
    return event


def _converse(
    child: "subprocess.Popen[bytes]", job: bytes, on_progress: Callable[[int], None]
) -> jobs.Found | jobs.Done | jobs.No:
    assert child.stdin is not None  # noqa: S101 - PIPE above
    try:
        with child.stdin:
            child.stdin.write(job)
    except BrokenPipeError:
        raise Fault("the transfer process ended before it had its job") from None
    pending = b""
    while piece := _read(child):
        pending += piece
        *lines, pending = pending.split(b"\n")
        if len(pending) > jobs.MAX_EVENT_BYTES:
            break
        for line in lines:
            try:
                event = jobs.decode_event(line)
            except msgspec.DecodeError:
                raise Fault("the transfer process says something that cannot be read") from None
            if not isinstance(event, jobs.Moved):
                return event
            on_progress(event.done_bytes)
    raise Fault("the transfer process ended without an answer")


def _read(child: "subprocess.Popen[bytes]") -> bytes:
    assert child.stdout is not None  # noqa: S101 - PIPE above
    readable, _, _ = select.select([child.stdout], [], [], SILENCE_SECONDS)
    if not readable:
        raise Fault(f"too-slow: the transfer process said nothing for {SILENCE_SECONDS:.0f} seconds")
    return child.stdout.read1(_READ_BYTES)  # type: ignore[attr-defined, no-any-return]


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()  # it has answered, or will not
    if child.stdout is not None:
        child.stdout.close()
    child.wait()
