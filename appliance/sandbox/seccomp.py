"""The filters of the runner, the validator and the services: read, compiled, named by a digest, installed.

The runner's stage 1 is installed before the first byte of a model is parsed, stage 2 once the model is loaded and every
thread is started. Filters stack: a call must pass both, and none can be removed again. A service has one: its own
rules, and those that all services share (``filters/service.json``) for the calls that its own do not name.

Trusts: the policy files beside this module.
Promises: ``install`` returns with the filter on every thread of the process, or raises.
Not here: what the filters allow (``filters/*.json``), how they compile (``bpf``).
"""

import ctypes
import platform
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliance.core.values import Digest
from appliance.sandbox import bpf, libc
from appliance.sandbox.syscalls import X86_64

Role = Literal["gateway", "notary", "warden", "liaison"]
Stage = Literal["stage1", "stage2", "validate", "service"] | Role

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_FOLDER: Final = Path(__file__).parent / "filters"


@dataclass(frozen=True)
class Filters:
    """Both programs, ready to install, and the digest by which the log names them."""

    stage1: bytes
    stage2: bytes
    digest: Digest


def load_policy(stage: Stage) -> bpf.Policy:
    """A policy with those of the rules that it extends which are for calls that it does not name itself.

    Raises ``bpf.PolicyError`` when a file is absent or not a policy: then nothing may start.
    """
    try:
        policy = msgspec.json.decode((_FOLDER / f"{stage}.json").read_bytes(), type=bpf.Policy)
    except (OSError, msgspec.MsgspecError) as error:
        raise bpf.PolicyError(f"{stage}: {error}") from None
    if policy.extends is None:
        return policy
    own = {rule.syscall for rule in policy.rules}
    shared = tuple(rule for rule in load_policy(policy.extends).rules if rule.syscall not in own)
    return bpf.Policy(
        architecture=policy.architecture, default=policy.default, about=policy.about, rules=shared + policy.rules
    )


def prepare(pid: int) -> Filters:
    """Reads and compiles both stages for a process with this pid. Raises ``bpf.PolicyError``.

    The digest is of the programs for pid 1, the runner's pid in its own namespace, so that it names a release and
    not a process.
    """
    if platform.machine() != "x86_64":
        raise bpf.PolicyError(f"there is no filter for {platform.machine()}")
    policies = load_policy("stage1"), load_policy("stage2")
    stage1, stage2 = (bpf.compile_policy(policy, {"pid": pid}) for policy in policies)
    named = b"".join(bpf.compile_policy(policy, {"pid": 1}) for policy in policies)
    return Filters(stage1=stage1, stage2=stage2, digest=Digest(hex=sha256(named).hexdigest()))


def prepare_validator() -> bytes:
    """The one filter of the validator's process, compiled. Raises ``bpf.PolicyError``."""
    if platform.machine() != "x86_64":
        raise bpf.PolicyError(f"there is no filter for {platform.machine()}")
    return bpf.compile_policy(load_policy("validate"), {})


def prepare_service(role: Role, pid: int) -> bytes:
    """The filter of a service whose process has this pid, compiled. Raises ``bpf.PolicyError``."""
    if platform.machine() != "x86_64":
        raise bpf.PolicyError(f"there is no filter for {platform.machine()}")
    return bpf.compile_policy(load_policy(role), {"pid": pid})


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Installs a filter on every thread (TSYNC). Needs no-new-privs. Raises ``OSError``; then the caller must end."""
    if not program:
        raise OSError("an empty filter protects nothing")
    fprog = _Program(len(program) // 8, program)
    result = libc.syscall(X86_64["seccomp"], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.addressof(fprog))
    if result != 0:
        raise OSError(f"thread {result} could not take the filter")
