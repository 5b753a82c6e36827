"""The starter: the process that starts runners and validators, so that the warden need not be able to.

``python -I -B -m appliance.warden.starter``, begun by the warden before the warden has read anything of a stranger's.
It parses the orders of ``ipc.starting``, which are a few bytes of msgpack, and nothing else; holds no key; opens no
file for anybody but a runner's control group. Commands and environments are fixed: a warden that was taken over can
start what an honest one starts, up to ``MAX_PROCESSES``, and nothing more.

What it does without: a terminal, privileges by execve, core files and being traced. What it must keep, because the
processes that it starts would inherit the lack: fork and exec; namespaces, mount and pivot_root, hence no Landlock rule
on files (a domain that has one forbids mounting to all below it) and no system call filter of its own; root's
capabilities where it has them, since a host may reserve user namespaces for those. One thread: the kernel kills a
runner when the *thread* that started it ends (PR_SET_PDEATHSIG).

Trusts: the arguments; the installed package.
Promises: every process that it started ends with its line, with the warden, and with this process. A pid is signalled
    or looked at only while it is this process's own child. An order that is not as agreed ends everything.
Not here: the sandbox (``sandbox.layers``, by the started processes themselves); time limits (the warden's).
"""

import argparse
import functools
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Never

import msgspec

from appliance.core.refusals import Fault
from appliance.ipc.frames import FrameDecoder, FrameError, encode
from appliance.ipc.starting import (
    DESCRIPTORS,
    MAX_WORD_BYTES,
    End,
    Ended,
    Failed,
    FencedIn,
    Inspect,
    Measure,
    Measured,
    NotFencedIn,
    Order,
    Started,
    StartRunner,
    ToLine,
)
from appliance.sandbox import layers
from appliance.warden import commands, fence
from appliance.warden.cgroups import RunnerGroup, RunnerGroups, enter
from appliance.warden.memory import taken_memory

MAX_PROCESSES: Final = 128
"""At once: the 64 runners that settings allow, the validators of 32 worker threads, and some that are ending."""

KILL_AFTER_SECONDS: Final = 2.0
_MAX_DETAIL: Final = 500

_ORDERS: Final = FrameDecoder[Order](Order)
_WORDS: Final = FrameDecoder[ToLine](ToLine)


class Child:
    """One started process. ``line`` is None while there is nobody to tell."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, gently: bool, group: RunnerGroup | None = None) -> None:
        """Raises ``OSError`` when there is no descriptor for it; the process has then ended."""
        self.process: Final = process
        self.group: Final = group
        try:
            self.pidfd: Final = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self.line: socket.socket | None = None
        self.gently: Final = gently
        self.kill_at_seconds: float | None = None

    def end(self) -> None:
        """Ends a runner by SIGTERM, because the process is only the runner's guardian: it kills the runner and ends
        after it. Where there is no guardian (no pid namespace) a hostile runner could ignore that, so SIGKILL follows.
        """
        if not self.gently:
            self.process.kill()
        elif self.kill_at_seconds is None:
            self.process.terminate()
            self.kill_at_seconds = time.monotonic() + KILL_AFTER_SECONDS


class Starter:
    """The state of the process: the socket on which orders come, and its children."""

    def __init__(
        self, orders: socket.socket, *, degraded: str, validators_only: bool, groups: RunnerGroups | None
    ) -> None:
        self._orders = orders
        self._degraded = ("--degraded", degraded)
        self._validators_only = validators_only
        self._groups = groups
        self._children: set[Child] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ, self._ordered)

    def run(self) -> str:
        """Returns why it is over, once every child has ended: empty when the warden left."""
        why = ""
        try:
            while True:
                self._turn()
        except EOFError:
            pass
        except FrameError as error:
            why = str(error)
        self._selector.unregister(self._orders)
        for child in self._children:
            self._abandon(child)
        while self._children:
            self._turn()
        return why

    def _turn(self) -> None:
        for key, _events in self._selector.select(self._patience_seconds()):
            react: Callable[[], None] = key.data
            react()
        for child in self._children:
            if child.kill_at_seconds is not None and child.kill_at_seconds <= time.monotonic():
                child.process.kill()
                child.kill_at_seconds = None

    def _patience_seconds(self) -> float | None:
        due = [child.kill_at_seconds for child in self._children if child.kill_at_seconds is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # --- orders -----------------------------------------------------------------------------------------------------

    def _ordered(self) -> None:
        """Raises ``EOFError`` when the warden has gone, ``FrameError`` for anything that is not an order."""
        data, fds, flags, _address = socket.recv_fds(self._orders, MAX_WORD_BYTES, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        try:
            order = _decode(_ORDERS, data, flags)
            if len(fds) != DESCRIPTORS:
                raise FrameError(f"an order with {len(fds)} descriptors")
            line = _line(fds.pop())
            outcome = self._obey(order, *fds)
        finally:
            for fd in fds:
                os.close(fd)
        if isinstance(outcome, Child):
            self._attend(outcome, line)
        else:
            _tell(line, outcome)
            line.close()

    def _objection(self, order: Order, given: int, pipe: int) -> str | None:
        """Why the order is not carried out. The kinds of the descriptors are no secret of the warden's that it could
        give away, but each has its one use."""
        if len(self._children) >= MAX_PROCESSES:
            return f"{MAX_PROCESSES} processes run already"
        if isinstance(order, StartRunner) and self._validators_only:
            return "runners are started by systemd here"
        is_kind = stat.S_ISSOCK if isinstance(order, StartRunner) else stat.S_ISREG
        if not is_kind(os.fstat(given).st_mode) or not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return "the descriptors are not of the kinds agreed"
        return None

    def _obey(self, order: Order, given: int, pipe: int) -> Child | Failed:
        if (why := self._objection(order, given, pipe)) is not None:
            return Failed(detail=why)
        try:
            if isinstance(order, StartRunner):
                return self._start_runner(order, given, pipe)
            return Child(self._start_validator(given, pipe), gently=False)
        except (OSError, subprocess.SubprocessError, Fault) as error:  # no memory, process, group or interpreter
            return Failed(detail=str(error)[:_MAX_DETAIL])

    def _start_runner(self, order: StartRunner, channel: int, stderr: int) -> Child:
        if self._groups is None:
            return Child(self._run(channel, stderr, None), gently=True)
        group = self._groups.make(order.runner_id, order.memory_bytes)
        try:
            return Child(self._run(channel, stderr, functools.partial(enter, group.procs)), gently=True, group=group)
        except BaseException:
            group.remove()
            raise
        finally:
            os.close(group.procs)

    def _run(self, channel: int, stderr: int, first: Callable[[], None] | None) -> "subprocess.Popen[bytes]":
        """A runner; ``first`` is done in it before it becomes one, which is safe since this process has one thread."""
        return subprocess.Popen(
            [*commands.RUNNER_COMMAND, "--channel-fd", str(channel), *self._degraded],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[channel],
            env=commands.RUNNER_ENVIRONMENT,
            cwd="/",
            preexec_fn=first,  # noqa: PLW1509
        )

    def _start_validator(self, model: int, answer: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*commands.VALIDATOR_COMMAND, *self._degraded],
            stdin=model,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env=commands.VALIDATOR_ENVIRONMENT,
            cwd="/",
        )

    # --- lines ------------------------------------------------------------------------------------------------------

    def _attend(self, child: Child, line: socket.socket) -> None:
        child.line = line
        self._children.add(child)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        self._selector.register(line, selectors.EVENT_READ, lambda: self._spoken_to(child))
        self._say(child, Started(pid=child.process.pid))

    def _spoken_to(self, child: Child) -> None:
        """Raises ``FrameError`` for anything that is not a word. A line that the warden closed ends its process."""
        if child.line is None:
            return
        try:
            data, fds, flags, _address = socket.recv_fds(child.line, MAX_WORD_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            for fd in fds:
                os.close(fd)
            word = _decode(_WORDS, data, flags)
        except (EOFError, ConnectionError):
            self._abandon(child)
            return
        if fds:
            raise FrameError("a word with a descriptor")
        match word:
            case End():
                child.end()
            case Inspect():
                self._say(child, _seen(child, frozenset(word.named)))
            case Measure():
                self._say(child, Measured(taken=taken_memory(child.process.pid)))

    def _ended(self, child: Child) -> None:
        status = child.process.wait()  # returns at once: a readable pidfd is an ended process
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        self._children.discard(child)
        if child.group is not None:
            child.group.remove()
        self._say(child, Ended(status=status))
        self._hang_up(child)

    def _say(self, child: Child, word: msgspec.Struct) -> None:
        if child.line is not None and not _tell(child.line, word):
            self._abandon(child)

    def _abandon(self, child: Child) -> None:
        """There is nobody who wants this process."""
        self._hang_up(child)
        child.end()

    def _hang_up(self, child: Child) -> None:
        if child.line is not None:
            self._selector.unregister(child.line)
            child.line.close()
            child.line = None


# --- bytes and descriptors ------------------------------------------------------------------------------------------


def _decode(decoder: FrameDecoder[Any], data: bytes, flags: int) -> Any:
    if not data:
        raise EOFError
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise FrameError("a frame or its descriptors were cut short")
    return decoder.decode(data)


def _line(fd: int) -> socket.socket:
    """Takes the descriptor over. Raises ``FrameError`` unless it is a line."""
    try:
        line = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise FrameError(f"a line that is no socket: {error.strerror}") from None
    if (line.family, line.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        line.close()
        raise FrameError("a line of another kind")
    return line


def _tell(line: socket.socket, word: msgspec.Struct) -> bool:
    """False when nobody hears it any more, or somebody who asks much and reads nothing."""
    try:
        line.send(encode(word), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def _seen(child: Child, named: frozenset[str]) -> FencedIn | NotFencedIn:
    if child.process.poll() is not None:
        return NotFencedIn(detail="the runner has ended")
    try:
        fence.inspect(child.process.pid, named)
    except Fault as fault:
        return NotFencedIn(detail=fault.detail[:_MAX_DETAIL])
    return FencedIn()


# --- the process ----------------------------------------------------------------------------------------------------

EXIT_BREACH: Final = 71
"""The warden said what no warden says. A line on stderr names it."""


def main(arguments: list[str]) -> Never:
    parser = argparse.ArgumentParser(prog="appliance.warden.starter", allow_abbrev=False)
    parser.add_argument("--orders-fd", type=int, required=True)
    parser.add_argument("--degraded", default="")
    parser.add_argument("--validators-only", action="store_true")
    parser.add_argument("--groups", type=Path, help="the part of the cgroup tree in which runners get groups")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: None)  # systemd sends it to the whole unit; the warden stops in order
    layers.die_with_parent()
    layers.no_new_privs()
    layers.non_dumpable()
    os.set_inheritable(options.orders_fd, False)
    groups = RunnerGroups(options.groups) if options.groups is not None else None
    with socket.socket(fileno=options.orders_fd) as orders:
        starter = Starter(orders, degraded=options.degraded, validators_only=options.validators_only, groups=groups)
        why = starter.run()
    if why:
        with suppress(OSError):
            os.write(2, f"the starter ends: {why}\n".encode())
        sys.exit(EXIT_BREACH)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
