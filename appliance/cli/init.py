"""``paddock init``: the directories and the default policy of a new appliance.

Trusts: the operator who runs it.
Promises: what exists is left as it is; what is made is private to this user.
Not here: keys, which the notary makes at its first start.
"""

from importlib.resources import files
from pathlib import Path

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


def demo_model() -> Path:
    """The built-in demo model, as it was installed."""
    return Path(str(files("appliance").joinpath("data", "paddock-demo.gguf")))
