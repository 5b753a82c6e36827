"""``paddock sandbox probe``: does the fence hold here, on this host, now?

Each attempt is made inside a real runner that has loaded a model and serves: started, loaded, told to try, watched.
An attempt that the filter forbids ends the runner by SIGSYS, so each needs a runner of its own (a third of a second).
``run_without_filters`` asks the other layers the same question with the filters left out, in a process that never
sees a model.

Trusts: the launcher to start what the appliance would start.
Promises: a ``ProbeOutcome`` for each attempt asked for; ``ok`` is true only for the outcome that was expected.
Not here: the attempts (``sandbox.probe``), which run inside; printing.
"""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

import msgspec

import appliance
from appliance.core.refusals import Fault
from appliance.core.values import Value
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import Fenced, FromRunner, Load, LoadFailed, Probe, ProbeResult, Ready
from appliance.sandbox import layers
from appliance.sandbox.probe import ATTEMPTS, CONTROLS, WITHOUT_FILTERS

DEMO_MODEL: Final = Path(appliance.__file__).parent / "data" / "paddock-demo.gguf"

KILLED: Final = "killed by SIGSYS"
REFUSED: Final = "an error"
_LOAD: Final = Load(runner_id="probe", context_tokens=256, slots=1, threads=1, batch_tokens=64)
_LIMIT_SECONDS: Final = 60.0
_AT_ONCE: Final = 2

_DECODER: Final = FrameDecoder[FromRunner](FromRunner)


class ProbeOutcome(Value, frozen=True, kw_only=True):
    """One attempt: what should have happened and what did."""

    name: str
    expected: str
    observed: str
    ok: bool


class Launched(Protocol):
    """What a launcher returns, as far as a probe needs it (``warden.launch_spawn.LaunchedRunner``)."""

    @property
    def channel(self) -> socket.socket: ...

    async def wait(self) -> int: ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    async def launch(self, runner_id: str) -> Launched: ...


async def run_probe(launcher: Launcher, names: Iterable[str] = tuple(ATTEMPTS)) -> list[ProbeOutcome]:
    """Makes the attempts, each in a fresh runner with the demo model, and returns their outcomes in the order asked.

    Raises ``Fault`` when a runner does not come up: then nothing was proven.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> ProbeOutcome:
        async with turns, asyncio.timeout(_LIMIT_SECONDS):
            return await _attempt(launcher, name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(name)) for name in names]
    except ExceptionGroup as failures:  # not except*, whose own exception would be a group again
        expected, others = failures.split((Fault, TimeoutError))
        if expected is None or others is not None:
            raise
        failure = expected.exceptions[0]
        raise Fault(f"a runner for the probe did not come up or hung: {str(failure) or 'no answer in time'}") from None
    return [task.result() for task in tasks]


async def _attempt(launcher: Launcher, name: str) -> ProbeOutcome:
    runner = await launcher.launch(f"probe-{name.replace(' ', '-')}")
    try:
        with closing(runner.channel) as channel:
            channel.setblocking(False)
            await _bring_up(channel)
            channel.send(encode(Probe(name=name)))
            answer = await _next(channel)
            if isinstance(answer, ProbeResult):
                return _outcome(name, answer.outcome)
            return _outcome(name, _ending(await runner.wait()))
    finally:
        runner.kill()
        await runner.wait()


async def _bring_up(channel: socket.socket) -> None:
    _require(await _next(channel), Fenced)
    with DEMO_MODEL.open("rb") as model:
        socket.send_fds(channel, [encode(_LOAD)], [model.fileno()])
    _require(await _next(channel), Ready)


def _require(answer: FromRunner | None, expected: type) -> None:
    if isinstance(answer, LoadFailed):
        raise Fault(f"the runner refused: {answer.reason}: {answer.detail}")
    if not isinstance(answer, expected):
        raise Fault("the runner ended before it was ready")


async def _next(channel: socket.socket) -> FromRunner | None:
    """The next message; None when the runner has gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(channel, MAX_FRAME_BYTES)
    except ConnectionResetError:
        return None
    return _DECODER.decode(data) if data else None


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _outcome(name: str, observed: str) -> ProbeOutcome:
    expected = CONTROLS.get(name, KILLED)
    ok = observed == expected
    if not ok and observed.startswith("returned"):
        observed = f"ESCAPED: {observed}"
    return ProbeOutcome(name=name, expected=expected, observed=observed, ok=ok)


# --- the second line of defence -------------------------------------------------------------------------------------


SOLE_GUARDS: Final = {
    "mmap write exec": layers.MDWE,
    "mprotect exec": layers.MDWE,
    "udp send": layers.NETWORK_NAMESPACE,
}
"""The attempts that nothing but this layer refuses once the filters are left out."""


def run_without_filters(allow_degraded: Collection[str] = ()) -> list[ProbeOutcome]:
    """The attempts of ``WITHOUT_FILTERS`` against namespaces, empty root, Landlock, capabilities and MDWE alone.

    Each should fail with an error, unless its only guard is a layer that this host lacks and ``allow_degraded`` names.
    Raises ``Fault`` when the process does not answer.
    """
    command = [sys.executable, "-I", "-B", "-m", "appliance.sandbox.probe"]
    try:
        done = subprocess.run(command, env={}, cwd="/", capture_output=True, timeout=_LIMIT_SECONDS, check=True)
        report = msgspec.json.decode(done.stdout, type=_Report)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise Fault(f"the probe without filters failed: {error}") from error
    lacking = frozenset(report.degraded) & frozenset(allow_degraded)
    return [_refusal(name, report.answers.get(name, "no answer"), lacking) for name in WITHOUT_FILTERS]


class _Report(Value, frozen=True, kw_only=True):
    on: tuple[str, ...]
    degraded: tuple[str, ...]
    answers: dict[str, str]


def _refusal(name: str, observed: str, lacking: Collection[str]) -> ProbeOutcome:
    guard = SOLE_GUARDS.get(name)
    if guard in lacking and observed.startswith("returned"):
        return ProbeOutcome(name=name, expected=f"as without {guard}", observed=f"{observed}: no {guard} here", ok=True)
    return ProbeOutcome(name=name, expected=REFUSED, observed=observed, ok=observed.startswith("errno "))
