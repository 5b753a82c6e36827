"""``paddock init``: the directories and the default policy of a new appliance.

Trusts: the operator who runs it.
Promises: what exists is left as it is; what is made is private to this user.
Not here: keys, which the notary makes at its first start.
"""

from importlib.resources import files
from pathlib import Path

from appliance.core.refusals import Fault
from appliance.settings import Settings


def initialise(config: Settings) -> list[str]:
    """Makes what is missing. Returns one line for each thing made. Raises ``OSError``."""
    made = []
    for directory in (config.state_dir, config.policy_dir, config.trust_dir, config.models_dir):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
            made.append(f"made {directory}")
    for name in ("policy.wasm", "data.json"):
        target = config.policy_dir / name
        if not target.exists():
            target.write_bytes(files("appliance").joinpath("data", "policy", name).read_bytes())
            made.append(f"made {target}")
    return made


def require_initialised(config: Settings) -> None:
    """Raises ``Fault`` before anything is made where nobody asked for an appliance."""
    if not (config.policy_dir.is_dir() and config.trust_dir.is_dir()):
        raise Fault(f"{config.state_dir} is not an appliance's state directory yet: run 'paddock init'")


def demo_model() -> Path:
    """The built-in demo model, as it was installed."""
    return Path(str(files("appliance").joinpath("data", "paddock-demo.gguf")))
