"""``paddock gateway``, ``notary``, ``warden`` and ``liaison``: one process of one role.

Trusts: the settings file.
Promises: a role that cannot work as configured says so in one line and ends with EX_CONFIG (78, sysexits.h); one that
    misses what it depends on ends with EX_UNAVAILABLE (69), to be started again.
Not here: what the roles are made of (``assemble``); restarting (``supervisor``, systemd).
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from appliance import settings
from appliance.cli.logs import log_to_stderr
from appliance.core.refusals import Fault, Misconfigured, Refused
from appliance.sandbox.layers import die_with_parent
from appliance.settings import SettingsInvalid

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
"""sysexits.h EX_CONFIG: the role cannot work as configured; the supervisor then ends everything."""
NOBODY: Final[Mapping[int, str]] = MappingProxyType({})


def known_service(text: str) -> tuple[int, str]:
    """``gateway=123`` -> (123, "gateway"). Raises ``ValueError``."""
    role, _, pid = text.partition("=")
    if role not in {"gateway", "warden"} or not pid.isdecimal() or int(pid) == 0:
        raise ValueError(f"not ROLE=PID: {text}")
    return int(pid), role


def run(role: str, config_file: Path | None, parent: int | None, beside: Mapping[int, str] = NOBODY) -> int:
    """Runs until a signal. Returns the exit status. ``beside``: for the notary, the services that live already."""
    log_to_stderr(f"%(asctime)s {role} %(levelname)s %(name)s: %(message)s")
    if parent is not None:
        die_with_parent()
        if os.getppid() != parent:
            return 1  # it died before we could ask to be told
    os.umask(0o027)
    try:
        config = settings.load(config_file)
        asyncio.run(_role(role, config, beside))
    except (SettingsInvalid, Misconfigured) as error:
        print(f"paddock {role}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (Refused, Fault, OSError) as error:  # what it depends on failed or is away: starting again may help
        print(f"paddock {role}: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


async def _role(role: str, config: settings.Settings, beside: Mapping[int, str]) -> None:
    from appliance import assemble

    if role == "gateway":
        await assemble.gateway(config)  # uvicorn handles its signals
        return
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if role == "notary":
        await assemble.notary(config, stop, beside)
    elif role == "liaison":
        await assemble.liaison(config, stop)
    else:
        await assemble.warden(config, stop)
