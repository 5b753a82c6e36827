"""One TOML file -> frozen ``Settings``. The only module that reads the environment.

Unknown keys are errors; all problems are reported at once, each with its dotted path. Limits carry their unit in
their names. No key turns a protection off: ``sandbox.allow_degraded`` names layers that a host may lack, and status
and audit then say so. Secrets are never settings; keys live in the notary's own directory.

Trusts: the operator who can write the file.
Promises: what ``load`` returns has the declared types and ranges, and nothing was changed outside this process.
Not here: whether the directories exist and are safe (each process checks what it opens).
"""

import os
import re
import tomllib
from collections.abc import Set as AbstractSet
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from appliance.core.codec import canonical_json
from appliance.core.memory import KvType, LoadOptions, Speculating
from appliance.core.values import MAX_ADAPTERS, Digest, SealMode, Value

Positive = Annotated[int, Meta(ge=1)]


class GatewaySettings(Value, frozen=True, kw_only=True):
    """The HTTP side. An empty ``allowed_hosts`` means the listening address, 127.0.0.1 and ``localhost``, with
    the port."""

    listen_host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    listen_port: Annotated[int, Meta(ge=0, le=65535)] = 11435
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=262144)] = 262144
    body_timeout_seconds: Annotated[int, Meta(ge=1, le=120)] = 15
    request_timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 600
    runner_silence_seconds: Annotated[int, Meta(ge=1, le=600)] = 120
    queue_timeout_seconds: Annotated[int, Meta(ge=1, le=600)] = 60


class IdentitySettings(Value, frozen=True, kw_only=True):
    """Whose tokens are believed. The local issuer is the notary."""

    issuer: Annotated[str, Meta(min_length=1, max_length=255)] = "https://paddock.local"
    audience: Annotated[str, Meta(min_length=1, max_length=255)] = "paddock"
    max_lifetime_seconds: Annotated[int, Meta(ge=60, le=86400)] = 86400


class LimitSettings(Value, frozen=True, kw_only=True):
    """Requests per address and per principal, and tokens per principal and window. 0 ``concurrent_requests`` of one
    principal means one fewer than a runner has slots, at least one, so that nobody holds them all."""

    address_requests_per_minute: Positive = 1200
    principal_requests_per_minute: Positive = 120
    concurrent_requests: Annotated[int, Meta(ge=0, le=100_000)] = 0
    budget_tokens: Positive = 1_000_000
    budget_window_seconds: Annotated[int, Meta(ge=1, le=31 * 86400)] = 86400


ContextTokens = Annotated[int, Meta(ge=64, le=262144)]
Slots = Annotated[int, Meta(ge=1, le=64)]
KeepAliveSeconds = Annotated[int, Meta(ge=-1, le=366 * 86400)]


class ModelSettings(Value, frozen=True, kw_only=True):
    """How models are loaded. ``context_tokens`` is per request; 0 threads means one per core, at most 8. A runner that
    has had nothing to do for ``keep_alive_seconds`` ends; -1 is never. All of them together may take ``memory_bytes``,
    as reckoned before each is loaded (``core.memory``).

    With ``speculation`` a step may decode tokens that are only expected to come, which changes the time that an answer
    takes, and the answer by no more than the rounding of larger batches.

    Without a ``seal_mode``, models of up to 4 GiB are copied into sealed memory before they are hashed. ``ro-store``
    maps the stored file: no memory for a copy, and sound only while nobody else can act as the warden's user.
    ``verity`` maps it too, and the kernel checks each block that is read against what was verified; it needs fs-verity
    in the kernel and in the store's file system, and models that were imported under this setting.

    ``runner_memory_bytes`` bounds each runner's own memory, the mapped model not counted. Without it the bound follows
    from the model and from what is asked of it here (``warden.memory``), at most three quarters of the host's memory.
    """

    context_tokens: ContextTokens = 4096
    slots: Slots = 4
    kv_type: KvType = "f16"
    speculation: Speculating = "off"
    keep_alive_seconds: KeepAliveSeconds = 300
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    default_max_tokens: Annotated[int, Meta(ge=1, le=262144)] = 512
    seal_mode: SealMode | None = None
    max_loaded: Annotated[int, Meta(ge=1, le=64)] = 2
    load_timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 120
    memory_bytes: Annotated[int, Meta(ge=2**28, le=2**46)] | None = None
    runner_memory_bytes: Annotated[int, Meta(ge=2**28, le=2**46)] | None = None


STORED_NAME: Final = r"\A[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,31})?\Z"
StoredName = Annotated[str, Meta(pattern=STORED_NAME)]


class AdapterSettings(Value, frozen=True, kw_only=True):
    """A LoRA adapter by its name in the store. ``scale`` is how strongly it counts, in whole thousandths."""

    name: StoredName
    scale: Annotated[float, Meta(ge=0.0, le=4.0)] = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.scale) or abs(self.scale * 1000 - self.scale_thousandths) > 1e-6:
            raise ValueError("scale is a number of whole thousandths")

    @property
    def scale_thousandths(self) -> int:
        return round(self.scale * 1000)


Adapters = Annotated[tuple[AdapterSettings, ...], Meta(max_length=MAX_ADAPTERS)]


class NamedModelSettings(Value, frozen=True, kw_only=True):
    """What one model, by its name in the store, has otherwise than ``[models]`` says, and which ``adapters`` it is
    served with; ``draft`` is the model that guesses for it where its ``speculation`` is that. With a ``base`` the name
    is a new one, for the model that the store has under that."""

    base: StoredName | None = None
    adapters: Adapters = ()
    draft: StoredName | None = None

    context_tokens: ContextTokens | None = None
    slots: Slots | None = None
    kv_type: KvType | None = None
    speculation: Speculating | None = None
    keep_alive_seconds: KeepAliveSeconds | None = None


Degradable = Literal[
    "user-namespace",
    "pid-namespace",
    "network-namespace",
    "mount-namespace",
    "ipc-namespace",
    "uts-namespace",
    "cgroup-namespace",
    "empty-root",
    "rlimits",
    "mdwe",
    "landlock",
]
"""The layers that ``sandbox.layers`` can do without; a test keeps the two lists equal."""


class SandboxSettings(Value, frozen=True, kw_only=True):
    """``allow_degraded``: layers that this host may lack, by name; a missing one that is not named refuses to start.

    ``launcher``: who starts runners, the warden itself or systemd (``paddock-runner.socket``, whose unit then decides
    which layers may be missing).

    ``cgroup``: with ``required``, the warden does not start unless the host delegates control groups for its runners;
    otherwise they get them where it does. Under systemd each runner's unit has its own in any case.
    """

    allow_degraded: tuple[Degradable, ...] = ()
    launcher: Literal["spawn", "systemd"] = "spawn"
    cgroup: Literal["where-delegated", "required"] = "where-delegated"


class NotarySettings(Value, frozen=True, kw_only=True):
    """``log_origin`` names the log in its checkpoints (C2SP tlog-checkpoint)."""

    log_origin: Annotated[str, Meta(pattern=r"\A[a-z0-9.-]+(/[a-z0-9._-]+)*\Z")] = "paddock.local/log"


class UserSettings(Value, frozen=True, kw_only=True):
    """The system users of the processes, where each has its own. A user that is not named is the process's own."""

    gateway: str | None = None
    notary: str | None = None
    warden: str | None = None
    operators: tuple[str, ...] = ()


class Settings(Value, frozen=True, kw_only=True):
    """Everything an operator can choose.

    ``state_dir`` holds ``notary/`` (private), ``models/``, ``trust/`` (PEM keys of trusted signers), ``policy/`` and
    ``public/`` (verifying keys); ``runtime_dir`` holds the sockets.
    """

    state_dir: Path
    runtime_dir: Path
    gateway: GatewaySettings = GatewaySettings()
    identity: IdentitySettings = IdentitySettings()
    limits: LimitSettings = LimitSettings()
    models: ModelSettings = ModelSettings()
    model: dict[str, NamedModelSettings] = msgspec.field(default_factory=dict)
    sandbox: SandboxSettings = SandboxSettings()
    notary: NotarySettings = NotarySettings()
    users: UserSettings = UserSettings()

    @property
    def notary_dir(self) -> Path:
        return self.state_dir / "notary"

    @property
    def public_dir(self) -> Path:
        return self.state_dir / "public"

    @property
    def models_dir(self) -> Path:
        return self.state_dir / "models"

    @property
    def trust_dir(self) -> Path:
        return self.state_dir / "trust"

    @property
    def policy_dir(self) -> Path:
        return self.state_dir / "policy"

    @property
    def notary_socket(self) -> Path:
        return self.runtime_dir / "notary.sock"

    @property
    def admin_socket(self) -> Path:
        return self.runtime_dir / "admin.sock"

    @property
    def warden_socket(self) -> Path:
        return self.runtime_dir / "warden.sock"

    @property
    def runner_socket(self) -> Path:
        """systemd listens here when it is the launcher."""
        return self.runtime_dir / "runner.sock"

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The values of ``Host`` that this gateway answers for, in lower case; port 80 is also the absent one."""
        host, port = self.gateway.listen_host, self.gateway.listen_port
        names = {f"[{host}]" if ":" in host else host, "localhost"}
        default = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        return frozenset(name.lower() for name in self.gateway.allowed_hosts or default)

    def load_options(self, name: str) -> LoadOptions:
        """How the model of this name is loaded."""
        named = self.model.get(name, NamedModelSettings())
        chosen = {key: getattr(named, key) for key in LoadOptions.__struct_fields__}
        return LoadOptions(
            **{key: getattr(self.models, key) if value is None else value for key, value in chosen.items()}
        )

    def effective(self) -> bytes:
        """The effective values as canonical JSON, without any secret (there is none to mask)."""
        return canonical_json(msgspec.to_builtins(self, enc_hook=str))

    def digest(self) -> Digest:
        """What the first record of each log names."""
        return Digest.of(self.effective())


class SettingsInvalid(Exception):
    """All problems of a settings file, one line each, with dotted paths."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


SOCKET_PATH_BYTES: Final = 107
"""unix(7): ``sun_path`` has 108 bytes, the last of them zero."""

_DEFAULT_FILE: Final = Path("/etc/paddock/paddock.toml")


def load(path: Path | None = None) -> Settings:
    """Reads ``path``, or /etc/paddock/paddock.toml when it exists, or takes the defaults.

    Raises ``SettingsInvalid`` with every problem found.
    """
    if path is None and _DEFAULT_FILE.exists():
        path = _DEFAULT_FILE
    if path is None:
        return parse({})
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid([f"{path}: {error}"]) from error
    return parse(document)


def parse(document: dict[str, Any]) -> Settings:
    """A TOML document -> Settings. Raises ``SettingsInvalid`` with every problem found."""
    problems: list[str] = []
    document = {**_default_directories(), **document}
    values = _fields(Settings, document, "", problems)
    added = {name for name, named in values.get("model", {}).items() if named.base is not None}
    for name, named in values.get("model", {}).items():
        speculation = named.speculation or values.get("models", ModelSettings()).speculation
        problems.extend(f'model."{name}".{problem}' for problem in _conflicts(name, named, speculation, added))
    if values.get("models", ModelSettings()).speculation == "draft":
        problems.append('models.speculation: "draft" is for single models, each with its model.NAME.draft')
    longest = len(os.fsencode(values.get("runtime_dir", ""))) + len("/notary.sock")
    if longest > SOCKET_PATH_BYTES:
        problems.append(
            f"runtime_dir: its sockets would have {longest} bytes, of which Linux takes {SOCKET_PATH_BYTES}"
        )
    if problems:
        raise SettingsInvalid(problems)
    return Settings(**values)


def _fields(kind: type[Value], document: dict[str, Any], prefix: str, problems: list[str]) -> dict[str, Any]:
    """Converts each field by itself, so that one mistake does not hide the next."""
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    problems.extend(f"{prefix}{name}: unknown key" for name in document if name not in known)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name not in document:
            continue
        given = document[name]
        if isinstance(field.type, type) and issubclass(field.type, Value):
            if not isinstance(given, dict):
                problems.append(f"{prefix}{name}: must be a table")
                continue
            values[name] = field.type(**_fields(field.type, given, f"{prefix}{name}.", problems))
        elif get_origin(field.type) is dict:
            values[name] = _tables(get_args(field.type)[1], given, f"{prefix}{name}", problems)
        else:
            try:
                values[name] = msgspec.convert(given, field.type, dec_hook=_path_hook)
            except msgspec.ValidationError as error:
                problems.append(f"{prefix}{name}: {error}")
    return values


def _conflicts(name: str, named: NamedModelSettings, speculation: Speculating, added: AbstractSet[str]) -> list[str]:
    """``added`` are the names that are served and that no file of the store has."""
    problems = []
    if named.base != name and named.base in added:
        problems.append("base: has a base itself, and is no model of the store")
    if named.draft in added:
        problems.append("draft: has a base, and is no model of the store")
    if not added.isdisjoint(one.name for one in named.adapters):
        problems.append("adapters: one of them has a base, and is no adapter of the store")
    if named.base == name:
        problems.append("base: is this name itself; leave it out")
    if named.base is not None and not re.fullmatch(STORED_NAME, name):
        problems.append("base: its name must be like those of the store, 'support-bot' or 'support-bot:v2'")
    if len({one.name for one in named.adapters}) < len(named.adapters):
        problems.append("adapters: one of them is there twice")
    if (named.draft is not None) != (speculation == "draft"):
        problems.append('draft: goes with speculation = "draft", and that with a draft')
    return problems


def _tables(kind: type[Value], given: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """A table of tables, one for each name."""
    if not isinstance(given, dict):
        problems.append(f"{path}: must be a table of tables")
        return {}
    found = {}
    for name, table in given.items():
        if not name:  # it would be what all models are loaded by, and only by the warden
            problems.append(f'{path}."": must have a name')
        elif isinstance(table, dict):
            found[name] = kind(**_fields(kind, table, f'{path}."{name}".', problems))
        else:
            problems.append(f'{path}."{name}": must be a table')
    return found


def _path_hook(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and Path(value).is_absolute():
        return Path(value)
    raise ValueError("must be an absolute path")


def _default_directories() -> dict[str, str]:
    """Where a service manager says, else where the XDG base directory specification says."""
    home = Path(os.environ.get("HOME", "/nonexistent"))
    state = os.environ.get("XDG_STATE_HOME") or str(home / ".local" / "state")
    state_dir = Path(state) / "paddock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    runtime_dir = Path(runtime) / "paddock" if runtime else state_dir / "run"
    return {"state_dir": str(state_dir), "runtime_dir": str(runtime_dir)}


def inherited_listeners() -> int:
    """How many listening descriptors the service manager passed, from 3 on (sd_listen_fds(3)); 0 if none for us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isdigit() else 0


def inherited_listener_names() -> tuple[str, ...]:
    """The names of those descriptors, in their order (``FileDescriptorName=`` of each socket unit, LISTEN_FDNAMES).

    Their order is the service manager's own, so whoever takes more than one must go by name.
    """
    return tuple(os.environ.get("LISTEN_FDNAMES", "").split(":"))[: inherited_listeners()]


def child_environment() -> dict[str, str]:
    """What the supervisor's children get: where to find things, and nothing else of ours."""
    names = ("PATH", "HOME", "LANG", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR")
    return {name: os.environ[name] for name in names if name in os.environ}
