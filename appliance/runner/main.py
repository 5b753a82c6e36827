"""One runner, from its first instruction to its last: builds the sandbox around itself, takes one model, serves.

The order is the protection, and the steps are numbered in ``_run``. A process that serves has passed all of them; the
filters are on before the first byte of the model is parsed. Whatever goes wrong ends the process: there is nothing
that a runner could usefully do after a failure, and its death is how the warden learns of it.

Trusts: the installed package until the model arrives; afterwards nothing.
Promises: the exit statuses below; ``Fenced`` names only layers that are on, and is the last word before a stranger's
bytes; ``Ready`` is sent only when both filters are on as well.
Not here: whether the model is the signed one (the warden hashed it); whether a request was paid for (the gateway).
"""

import argparse
import os
import select
import signal
import socket
import stat
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Never

from appliance.core.text import printable
from appliance.core.values import MAX_COMPANIONS
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, FrameError, encode
from appliance.ipc.messages import Fenced, Load, LoadFailed, Ready, ToRunner
from appliance.sandbox import given, layers, probe, seccomp
from appliance.sandbox.bpf import PolicyError

EXIT_CHANNEL_CLOSED: Final = 0
"""The peer closed the channel: the ordinary end."""
EXIT_USAGE: Final = 64
"""Wrong arguments, or an environment that cannot be made right."""
EXIT_LAYER_MISSING: Final = 70
"""The host lacks a layer that nobody agreed to do without. ``LoadFailed`` named it."""
EXIT_CHANNEL_INVALID: Final = 71
"""The first message was not one Load with as many regular files as it names."""
EXIT_LOAD_FAILED: Final = 72
"""The engine refused the model. ``LoadFailed`` said why."""
EXIT_INTERNAL: Final = 73
"""Anything else; a line on stderr names it."""

ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",  # ggml would fork a debugger when it aborts
    "LC_ALL": "C.UTF-8",  # or Python adds a variable of its own
    "MALLOC_ARENA_MAX": "1",  # one heap: no mappings per thread, less to fragment
    "OMP_WAIT_POLICY": "passive",  # spinning threads cost a tenfold of CPU on a busy host
    "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would come before the layers that are per thread
}
"""The whole environment of a runner, whoever starts it."""

_CHANNEL_FD: Final = 3
_GRACE_MS: Final = 1000
"""Between the end of the channel and the end of a runner that does not heed it, in a unit."""


def main(arguments: list[str]) -> Never:
    """Runs one runner to its end and ends the process. Never returns, never runs Python's shutdown: that would open
    files and join threads, which the filters forbid."""
    _quiet_hooks()
    try:
        status = _run(arguments)
    except BaseException as error:  # noqa: BLE001 - the one place where anything at all ends the process
        _say(f"{_describe(error)}: {error}")
        status = EXIT_INTERNAL
    os._exit(status)


def _run(arguments: list[str]) -> int:
    # 1. Arguments: the channel's number, who starts us, and the names of layers that may be missing. Nothing secret is
    # ever in them.
    options = _parse(arguments)
    if options is None:
        return EXIT_USAGE
    channel_fd, in_a_unit, stack = options

    # 2. The environment is exactly ours, in memory too: /proc/self/environ is what a compromised runner could read.
    if not _environment_is_ours():
        return _start_again(arguments)

    # 3. Descriptors: nothing to read, stderr twice, the channel; all others are closed.
    channel = _keep_only(channel_fd)

    # 4. Privileges and namespaces, while this process still has one thread. A unit has made them, or has not.
    with suppress(OSError):  # a help for the host, which may forbid it
        layers.first_for_the_oom_killer()
    if in_a_unit:
        given.account(stack)
        try:
            stack.require()
        except layers.LayerMissing as error:
            return _refuse(channel, "layer-missing", str(error), EXIT_LAYER_MISSING)
    else:
        layers.leave_host(stack)
    layers.die_with_parent()  # after the user namespace, which would clear it

    # 5. Into the new pid namespace. The process outside only waits, and ends as its child ends; in a unit it also ends
    # its child, which nobody else may signal there.
    if in_a_unit or layers.PID_NAMESPACE in stack.on:
        child = os.fork()
        if child and in_a_unit:
            _stand_guard(child, channel)
        if child:
            _wait_for(child)
        layers.die_with_parent()

    # 6. Everything that will ever be imported, while there still are files.
    from appliance.runner import channel as requests
    from appliance.runner.bindings import LoadError, load_engine

    sys.meta_path.clear()  # a forgotten import is an ImportError now, not a call that the filter kills for

    try:
        filters = seccomp.prepare(os.getpid())

        # 7. No files, no capabilities, no new executable memory, no core.
        layers.shut_in(stack)

        # 8. Judge the account before anything comes from outside.
        stack.require()
    except (PolicyError, layers.LayerMissing) as error:
        return _refuse(channel, "layer-missing", str(error), EXIT_LAYER_MISSING)

    # 9. Say what is on, while this process can still be believed. Then one message: the model, and what goes with it.
    try:
        channel.send(encode(Fenced(layers=stack.on, degraded=stack.degraded, filter_digest=filters.digest)))
        load, files = _receive(channel)
    except BrokenPipeError:
        return EXIT_CHANNEL_CLOSED
    except (FrameError, OSError) as error:
        _say(f"no model: {error}")
        return EXIT_CHANNEL_INVALID
    if load is None:
        return EXIT_CHANNEL_CLOSED

    # 10. Memory is bounded, and stage 1 is on, before the first byte of the model is read. A failure is an exception:
    # the process ends.
    layers.memory_limits(private_bytes=load.memory_bytes, shared_bytes=sum(os.fstat(file).st_size for file in files))
    seccomp.install(filters.stage1)

    # 11. Parse the model, start every thread, touch every path.
    try:
        engine = load_engine(files, load)
        _close(files)
        engine.warm_up()
    except LoadError as error:
        return _refuse(channel, error.reason, error.detail, EXIT_LOAD_FAILED)

    # 12. Stage 2, on every thread. From here on: compute and talk.
    seccomp.install(filters.stage2)
    channel.send(encode(Ready(context_tokens=engine.context_tokens, slots=engine.slots)))
    requests.serve(channel, engine, probe.attempt)  # ends the process itself if anything goes wrong
    channel.close()  # its finaliser would make a call that no stage allows
    return EXIT_CHANNEL_CLOSED


# --- steps 1 to 3: from nothing -------------------------------------------------------------------------------------


def _parse(arguments: list[str]) -> tuple[int, bool, layers.Stack] | None:
    parser = argparse.ArgumentParser(prog="appliance.runner", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--launcher", choices=("spawn", "systemd"), default="spawn")
    parser.add_argument("--degraded", default="")
    try:
        options = parser.parse_args(arguments)
        in_a_unit = options.launcher == "systemd"
        allowed = frozenset(filter(None, options.degraded.split(",")))
        return options.channel_fd, in_a_unit, layers.Stack(allowed | given.NOT_GIVEN if in_a_unit else allowed)
    except (argparse.ArgumentError, SystemExit, ValueError) as error:
        _say(f"wrong arguments: {error}")
        return None


def _environment_is_ours() -> bool:
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")[:-1]
    return sorted(entries) == sorted(f"{name}={value}".encode() for name, value in ENVIRONMENT.items())


def _start_again(arguments: list[str]) -> int:
    """The same program with our environment and no other. An init system that adds variables comes by here once."""
    command = [sys.executable, "-I", "-B", "-m", "appliance.runner", *arguments]
    os.execve(sys.executable, command, ENVIRONMENT)  # noqa: S606 - no shell; the descriptors are kept on purpose


def _keep_only(channel_fd: int) -> socket.socket:
    if channel_fd != _CHANNEL_FD:
        os.dup2(channel_fd, _CHANNEL_FD)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.closerange(_CHANNEL_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(_CHANNEL_FD, False)
    return socket.socket(fileno=_CHANNEL_FD)


# --- step 5: the process outside ------------------------------------------------------------------------------------


def _wait_for(child: int) -> Never:
    """Waits for the runner proper and ends the way it ended. Holds no descriptor and no capability.

    SIGTERM is the warden's way to end both: it kills the runner at once, and this process ends after it, so that the
    runner's memory is free when the warden sees the end. Any other death of this process kills the runner too.
    """
    runner = os.pidfd_open(child)
    signal.signal(signal.SIGTERM, lambda *_: signal.pidfd_send_signal(runner, signal.SIGKILL))
    layers.non_dumpable()
    layers.no_capabilities()
    os.closerange(0, runner)
    os.closerange(runner + 1, os.sysconf("SC_OPEN_MAX"))
    _end_as(child)


def _stand_guard(child: int, channel: socket.socket) -> Never:
    """Waits for the runner proper, and for the end of the channel, and ends the way the runner ended.

    Under systemd the warden may signal nobody: it shuts the channel, for all who hold it. A runner that hears that ends
    itself; one that does not, busy or hostile, is killed. It can do nothing about this process, which holds its user's
    rights, has met no model, and keeps its own copy of the channel, so that the channel ends only when the runner did.
    A SIGTERM is for both, since systemd sends it to all of a unit: this process ends after the other.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    layers.non_dumpable()
    os.closerange(0, channel.fileno())
    os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    runner = os.pidfd_open(child)
    either = select.poll()
    either.register(channel, select.POLLRDHUP)
    either.register(runner, select.POLLIN)
    if (runner, select.POLLIN) not in either.poll():
        either.unregister(channel)
        either.poll(_GRACE_MS)
        signal.pidfd_send_signal(runner, signal.SIGKILL)  # no effect on one that has ended: it is not waited for yet
    _end_as(child)


def _end_as(child: int) -> Never:
    """The child's exit status, or death by the signal that it died of."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


# --- step 9: the model ----------------------------------------------------------------------------------------------

_DECODER: Final = FrameDecoder[ToRunner](ToRunner)


def _receive(channel: socket.socket) -> tuple[Load | None, list[int]]:
    """The one Load and its descriptors: the model's, and those of its companions; None when the channel was closed
    first. Raises ``FrameError``."""
    data, descriptors, flags, _ = socket.recv_fds(channel, MAX_FRAME_BYTES, 2 + MAX_COMPANIONS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None, []
    message = _DECODER.decode(data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(message, Load):
        raise FrameError(f"expected one Load, got {type(message).__name__}")
    if len(descriptors) != 1 + len(message.companions):
        raise FrameError(f"a Load of {1 + len(message.companions)} files with {len(descriptors)} descriptors")
    if not all(stat.S_ISREG(os.fstat(one).st_mode) for one in descriptors):
        raise FrameError("a descriptor is not a regular file")
    return message, descriptors


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


# --- endings --------------------------------------------------------------------------------------------------------

_MAX_DETAIL: Final = 2000


def _refuse(channel: socket.socket, reason: str, detail: str, status: int) -> int:
    _say(f"{reason}: {detail}")
    with suppress(OSError), channel:  # the warden may have gone; the exit status says it too
        channel.send(encode(LoadFailed(reason=reason, detail=printable(detail[:_MAX_DETAIL]))))
    return status


def _say(text: str) -> None:
    """One line on stderr, by one write: after the filters are on, nothing may be opened or allocated lazily for it."""
    with suppress(OSError):  # a reader that has gone is no reason to end differently
        os.write(2, (" ".join(text.split()) + "\n").encode("utf-8", "backslashreplace"))


def _describe(error: BaseException) -> str:
    """The kind of an error and the places it passed. Without source lines, for which Python would open files, and
    without its text, which could quote a prompt."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(places)}"


def _quiet_hooks() -> None:
    """Every way in which Python would print a traceback, which opens source files, says one line instead; a warning,
    which opens them too, says nothing. An exception that nobody caught in a thread ends the process: an engine without
    its thread would hang its callers."""

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        del kind, trace
        _say(_describe(error))

    def on_thread(arguments: "threading.ExceptHookArgs") -> None:
        if arguments.exc_value is not None:
            _say(_describe(arguments.exc_value))
        os._exit(EXIT_INTERNAL)

    def on_unraisable(arguments: "sys.UnraisableHookArgs") -> None:
        if arguments.exc_value is not None:
            _say(f"unraisable {_describe(arguments.exc_value)}")

    warnings.simplefilter("ignore")
    sys.excepthook = on_exception
    threading.excepthook = on_thread
    sys.unraisablehook = on_unraisable
