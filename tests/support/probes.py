"""The probes of a live runner, by name; the same table inside (what to do) and outside (what must come of it).

* ``numbers``: every system call number that stage 2 does not allow.
* ``x32_numbers``: the calls that it does allow, through the other entry, and those that exist only there.
* ``rules``: every argument that a rule of a stage looks at, with its bits changed one by one.
* the deeds: what a compromised runner would do, by class, against targets that the test holds ready outside.

Each probe that the policy allows (a flag that it does not look at, for instance) is a control: it must come back, so
that what stops the others is the change and not a mistake in the call.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from appliance.sandbox import libc, probe, seccomp
from appliance.sandbox.bpf import Policy, Rule
from appliance.sandbox.syscalls import X86_64
from tests.support.deeds import HOLD, Outside, deeds, hold, sample_of

Attempt = Callable[[], int]

KILLED: Final = "killed by SIGSYS"
LAST_NUMBER: Final = 600
SEEN_BY_NO_FILTER: Final = {"number 335": "killed by SIGILL", "number 336": "errno ENXIO"}
"""uretprobe and uprobe, which newer kernels do not show to seccomp: called by anybody but the kernel's own trampoline
the one ends the process and the other is an error."""

_PAGE: Final = 4096
_NONE: Final = -1 & 0xFFFFFFFFFFFFFFFF


def ending(status: int) -> str:
    """An exit status, as ``cli.sandbox_probe`` says it."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def attempts(outside: Outside, model: Path) -> dict[str, Attempt]:
    """Every probe by name, for use inside."""
    made = {f"number {number}": _number(number) for number in numbers()}
    made |= {f"x32 {number}": _number(number | probe._X32_BIT) for number in x32_numbers()}
    for stage in ("stage1", "stage2"):
        made |= {name: action for name, action, _ in rules(stage)}
    for of_a_kind in deeds(outside, sample_of(model)).values():
        made |= of_a_kind
    return made | {HOLD: hold}


# --- numbers --------------------------------------------------------------------------------------------------------


def numbers() -> list[int]:
    allowed = {X86_64[name] for name in seccomp.load_policy("stage2").allowed}
    return [number for number in range(LAST_NUMBER) if number not in allowed]


def x32_numbers() -> list[int]:
    """Those that stage 2 allows by the other entry, and those that exist only there (512 to 547)."""
    return [*sorted(X86_64[name] for name in seccomp.load_policy("stage2").allowed), *range(512, 548)]


def _number(number: int) -> Attempt:
    return lambda: libc.syscall(number, 0, 0, 0, 0, 0, 0)


# --- rules ----------------------------------------------------------------------------------------------------------


def rules(stage: seccomp.Stage) -> Iterator[tuple[str, Attempt, bool]]:
    """Name, action and whether the policy allows it. Stage 1's rules that stage 2 has too come with stage 2; of the
    others' high words three bits are tried here, and all in ``tests/attacks``, on the program."""
    policy = seccomp.load_policy(stage)
    bits = range(64) if stage == "stage2" else (*range(33), 47, 63)
    known = set() if stage == "stage2" else set(seccomp.load_policy("stage2").rules)
    for index, rule in enumerate(rule for rule in policy.rules if rule.when and rule not in known):
        yield f"{stage} {rule.syscall} {index} as it is", _as_allowed(rule), True
        for condition in rule.when:
            for bit in bits:
                action, allowed = _changed(policy, rule, condition.argument, bit)
                yield f"{stage} {rule.syscall} {index} argument {condition.argument} bit {bit}", action, allowed


def _changed(policy: Policy, rule: Rule, argument: int, bit: int) -> tuple[Attempt, bool]:
    """The call with one bit changed, and whether some rule of the policy takes it all the same."""
    wanted = {c.argument: c.equals for c in rule.when}

    def values() -> dict[int, int]:
        whole = {n: _value(text) for n, text in wanted.items()}
        return whole | {argument: whole[argument] ^ 1 << bit}

    def action() -> int:
        arguments = list(_arguments(rule))
        for n, value in values().items():
            arguments[n] = value
        return int(libc.syscall(X86_64[rule.syscall], *arguments) < 0)

    alternatives = [other for other in policy.rules if other.syscall == rule.syscall]
    return action, any(_holds(other, values()) for other in alternatives)


def _value(text: str) -> int:
    return os.getpid() if text == "pid" else int(text, 0)


def _holds(rule: Rule, values: dict[int, int]) -> bool:
    return all(values.get(c.argument, 0) & int(c.mask, 0) == _value(c.equals) for c in rule.when)


def _page() -> int:
    return probe._map(3)


def _arguments(rule: Rule) -> tuple[libc.Argument, ...]:
    """Harmless values for the arguments that the rule does not look at."""
    shared = any(c.equals == "1" for c in rule.when)
    match rule.syscall:
        case "mmap":
            return (0, _PAGE, 0, 0, 0 if shared else _NONE, 0)
        case "mprotect":
            return (_page(), _PAGE, 0)
        case "mremap":
            return (_page(), _PAGE, _PAGE, 0, 0)
        case "tgkill":
            return (0, threading.get_native_id(), 0)
        case "newfstatat":
            return (0, b"", ctypes.create_string_buffer(256), 0)
        case "fcntl":
            return (0, 0, 0)
        case "rt_sigaction":
            return (0, None, None, 8)
        case "clone" | "seccomp":
            return (0, 0, 0, 0, 0)
    raise AssertionError(f"say how to call {rule.syscall}")


def _as_allowed(rule: Rule) -> Attempt:
    def thread() -> int:
        one = threading.Thread(target=int)
        one.start()
        one.join()
        return 0

    def call() -> int:
        arguments = list(_arguments(rule))
        for condition in rule.when:
            arguments[condition.argument] = _value(condition.equals)
        return int(libc.syscall(X86_64[rule.syscall], *arguments) < 0)

    return thread if rule.syscall == "clone" else call
