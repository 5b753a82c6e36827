"""``paddock init``: the directories and the default policy of a new appliance.

Trusts: the operator who runs it.
Promises: what exists is left as it is; what is made has its mode whatever the umask: private to this user, but for what
    services of other users read where ``users`` names any.
Not here: keys, which the notary makes at its first start.
"""

import os
import pwd
from importlib.resources import files
from pathlib import Path

from appliance.core.refusals import Fault, Misconfigured
from appliance.settings import Settings


def initialise(config: Settings) -> list[str]:
    """Makes what is missing. Returns one line for each thing made. Raises ``Misconfigured`` for a user that does not
    exist, before anything is made, and ``OSError``."""
    read_by_others = bool(uids_of_services(config) - {os.getuid()})
    made = []
    for directory in (config.state_dir, config.policy_dir, config.trust_dir, config.models_dir):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
            directory.chmod(0o755 if read_by_others and directory != config.models_dir else 0o700)
            made.append(f"made {directory}")
    for name in ("policy.wasm", "data.json"):
        target = config.policy_dir / name
        if not target.exists():
            target.write_bytes(files("appliance").joinpath("data", "policy", name).read_bytes())
            target.chmod(0o644)  # who may reach it is the directory's affair
            made.append(f"made {target}")
    return made


def uids_of_services(config: Settings) -> set[int]:
    """The uids of the users that the settings name, operators not among them, though they must exist as well. Raises
    ``Misconfigured`` for one that does not."""
    users = config.users
    services = [user for user in (users.gateway, users.notary, users.warden, users.liaison) if user is not None]
    missing = [user for user in (*services, *users.operators) if not _exists(user)]
    if missing:
        raise Misconfigured(f"users: there is no user {', '.join(map(repr, missing))}")
    return {pwd.getpwnam(user).pw_uid for user in services}


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def require_initialised(config: Settings) -> None:
    """Raises ``Fault`` before anything is made where nobody asked for an appliance, ``Misconfigured`` where it is one
    of several users: run as one they would leave files behind that the others cannot read."""
    if others := uids_of_services(config) - {os.getuid()}:
        raise Misconfigured(
            f"'paddock serve' runs everything as uid {os.getuid()}, and [users] names uid"
            f" {', '.join(map(str, sorted(others)))}: start the units instead"
        )
    if not (config.policy_dir.is_dir() and config.trust_dir.is_dir()):
        raise Fault(f"{config.state_dir} is not an appliance's state directory yet: run 'paddock init'")


def demo_model() -> Path:
    """The built-in demo model, as it was installed."""
    return Path(str(files("appliance").joinpath("data", "paddock-demo.gguf")))
