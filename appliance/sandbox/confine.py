"""The fence of a service, put on by itself once it has everything that it will ever open.

The services are trusted when they start and talk to others ever after. So each starts as any
process does, makes its sockets, reads what it needs, and then, before its first peer or client is accepted, gives up
the rest: privileges, executable memory, files beyond its own, the network, every system call without a reason.

Trusts: the kernel to do what a successful call says; what ran in this process so far.
Promises: ``confine`` returns with every layer on, for every thread to come, or raises; nothing takes one off again.
Not here: what each service may open (its caller says); runners (``layers.shut_in``).
"""

import logging
import os
import sysconfig
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from appliance.core.refusals import Misconfigured
from appliance.sandbox import bpf, layers, seccomp
from appliance.sandbox.landlock_read import landlock_files

SECCOMP: Final = "seccomp"

SERVICE_LAYERS: Final = (
    layers.NO_NEW_PRIVS, layers.NO_CAPABILITIES, layers.MDWE, layers.LANDLOCK, layers.NON_DUMPABLE, SECCOMP,
)  # fmt: skip
"""In the order in which they are put on. The filter is last, because it forbids putting on the others."""

log = logging.getLogger(__name__)


def confine(
    role: seccomp.Role,
    *,
    allow_degraded: Iterable[str],
    readable: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    connect_ports: Iterable[int] = (),
) -> tuple[str, ...]:
    """Irreversible. Returns the layers that are on, and says so in the operator's log.

    Besides ``readable`` and ``writable`` only the Python installation can be read afterwards, and only to
    ``connect_ports`` can TCP be connected, by a filter that allows any. The log names Landlock
    with its ABI: it covers TCP from 4 on, abstract sockets and signals from 6 on; before, the filter alone holds them.
    Raises ``Misconfigured`` for a layer that the host lacks and ``allow_degraded`` does not name, or cannot do without;
    ``RuntimeError`` beside another thread, since Landlock and capabilities are per thread.
    """
    if layers.threads() != 1:
        raise RuntimeError("a thread was started before the layers that are per thread")
    stack = layers.Stack(frozenset(allow_degraded))
    abi = _landlock_abi()
    _import_machine_code()
    try:
        program = seccomp.prepare_service(role, os.getpid())
        _put_on(stack, program, [*python_installation(), *readable], writable, connect_ports)
        stack.require()
    except (bpf.PolicyError, layers.LayerMissing) as error:
        raise Misconfigured(f"this host cannot fence the {role} in: {error}") from error
    on = (f"{name} (ABI {abi})" if name == layers.LANDLOCK else name for name in stack.on)
    log.info("fenced in by %s; missing: %s", ", ".join(on), ", ".join(stack.degraded) or "none")
    return stack.on


def _put_on(
    stack: layers.Stack,
    program: bytes,
    readable: Iterable[Path],
    writable: Iterable[Path],
    connect_ports: Iterable[int],
) -> None:
    stack.apply(layers.NO_NEW_PRIVS, layers.no_new_privs)
    stack.apply(layers.NO_CAPABILITIES, layers.no_capabilities)
    stack.apply(layers.MDWE, layers.memory_deny_write_execute)
    stack.apply(
        layers.LANDLOCK,
        lambda: landlock_files(
            readable=map(os.fspath, readable), writable=map(os.fspath, writable), connect_ports=connect_ports
        ),
    )
    stack.apply(layers.NON_DUMPABLE, layers.non_dumpable)
    stack.apply(SECCOMP, lambda: seccomp.install(program))


_WITH_MACHINE_CODE: Final = ("encodings.idna", "unicodedata", "zoneinfo", "decimal", "uuid", "queue", "bisect")
"""What libraries import only when a rare input asks for it, and the fence would no longer let be mapped."""


def _import_machine_code() -> None:
    for name in _WITH_MACHINE_CODE:
        import_module(name)


def _landlock_abi() -> int:
    """0 where there is none; whether one may do without is judged when the layer is put on."""
    try:
        return layers.landlock_abi()
    except OSError:
        return 0


def python_installation() -> tuple[Path, ...]:
    """Where modules of Python text that are imported late come from, and the source lines of a traceback."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (Path(__file__).parents[1], *map(Path, sorted(libraries)))
