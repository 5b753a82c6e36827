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
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from appliance.core.codec import canonical_json
from appliance.core.forwarded import Trust, network
from appliance.core.memory import KvType, LoadOptions
from appliance.core.values import Digest, SealMode, Value

Positive = Annotated[int, Meta(ge=1)]


class GatewaySettings(Value, frozen=True, kw_only=True):
    """The HTTP side. An empty ``allowed_hosts`` means the listening addresses and ``localhost``, with their ports.
    ``listen_host`` and ``listen_port`` are the one listener where no ``[[listen]]`` says otherwise."""

    listen_host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    listen_port: Annotated[int, Meta(ge=0, le=65535)] = 11435
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=262144)] = 262144
    body_timeout_seconds: Annotated[int, Meta(ge=1, le=120)] = 15
    request_timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 600
    runner_silence_seconds: Annotated[int, Meta(ge=1, le=600)] = 120
    queue_timeout_seconds: Annotated[int, Meta(ge=1, le=600)] = 60


ClientCertificates = Literal["none", "optional", "required"]


class ListenSettings(Value, frozen=True, kw_only=True):
    """One place where clients or proxies connect: an address (``host``, ``port``), a Unix socket (``path``), or what
    the service manager passes under a name (``inherited``, its ``FileDescriptorName=``).

    ``trusted`` are the proxies whose word about their clients is taken here: addresses, networks, and ``unix`` for
    whoever may connect to a Unix socket. With ``proxy_protocol`` they must give it in front of each connection.

    A Unix socket has ``mode`` and ``group``; ``users``, where any are named, are the only ones besides root who may
    connect. ``tls`` is the folder of ``certificate.pem``, ``key.pem`` and, where clients may have certificates,
    ``clients.pem``.
    """

    host: Annotated[str, Meta(min_length=1)] | None = None
    port: Annotated[int, Meta(ge=0, le=65535)] = 11435
    path: Path | None = None
    mode: Annotated[int, Meta(ge=0o600, le=0o770)] = 0o660
    group: Annotated[str, Meta(min_length=1)] | None = None
    users: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    inherited: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,255}\Z")] | None = None
    trusted: tuple[str, ...] = ()
    proxy_protocol: bool = False
    tls: Path | None = None
    client_certificates: ClientCertificates = "none"

    @property
    def trust(self) -> Trust:
        networks = tuple(network(one) for one in self.trusted if one != UNIX)
        return Trust(networks=networks, unix=UNIX in self.trusted)


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
    keep_alive_seconds: KeepAliveSeconds = 300
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    default_max_tokens: Annotated[int, Meta(ge=1, le=262144)] = 512
    seal_mode: SealMode | None = None
    max_loaded: Annotated[int, Meta(ge=1, le=64)] = 2
    load_timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 120
    memory_bytes: Annotated[int, Meta(ge=2**28, le=2**46)] | None = None
    runner_memory_bytes: Annotated[int, Meta(ge=2**28, le=2**46)] | None = None


class NamedModelSettings(Value, frozen=True, kw_only=True):
    """What one model, by its name in the store, has otherwise than ``[models]`` says."""

    context_tokens: ContextTokens | None = None
    slots: Slots | None = None
    kv_type: KvType | None = None
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
    listen: tuple[ListenSettings, ...] = ()
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
    def listeners(self) -> tuple[ListenSettings, ...]:
        """Where the gateway listens. Without ``[[listen]]``, what the service manager passes goes before."""
        return self.listen or (ListenSettings(host=self.gateway.listen_host, port=self.gateway.listen_port),)

    @property
    def tls_dirs(self) -> tuple[Path, ...]:
        return tuple(one.tls for one in self.listen if one.tls is not None)

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The values of ``Host`` that this gateway answers for, in lower case; a scheme's own port is also the absent
        one."""
        default: set[str] = set()
        for one in self.listeners:
            if one.host is not None:
                names = {f"[{one.host}]" if ":" in one.host else one.host, "localhost"}
                default |= {f"{name}:{one.port}" for name in names}
                default |= names if one.port == (443 if one.tls else 80) else set()
        return frozenset(name.lower() for name in self.gateway.allowed_hosts or default)

    def load_options(self, name: str) -> LoadOptions:
        """How the model of this name is loaded."""
        named = self.model.get(name, NamedModelSettings())
        chosen = {key: value for key, value in msgspec.structs.asdict(named).items() if value is not None}
        defaults = {key: getattr(self.models, key) for key in NamedModelSettings.__struct_fields__}
        return LoadOptions(**(defaults | chosen))

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

UNIX: Final = "unix"
"""In ``listen.trusted``: whoever may connect to the Unix socket."""

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
    longest = len(os.fsencode(values.get("runtime_dir", ""))) + len("/notary.sock")
    if longest > SOCKET_PATH_BYTES:
        problems.append(
            f"runtime_dir: its sockets would have {longest} bytes, of which Linux takes {SOCKET_PATH_BYTES}"
        )
    problems.extend(_listen_problems(document, values))
    if problems:
        raise SettingsInvalid(problems)
    return Settings(**values)


def _listen_problems(document: dict[str, Any], values: dict[str, Any]) -> Iterator[str]:
    """What no single field shows: a listener's settings that do not go together, or that nothing would come of."""
    listeners: tuple[ListenSettings, ...] = values.get("listen", ())
    if not listeners:
        return
    gateway = document.get("gateway")
    for name in ("listen_host", "listen_port"):
        if isinstance(gateway, dict) and name in gateway:
            yield f"gateway.{name}: has no meaning beside [[listen]]"
    for number, (given, one) in enumerate(zip(document["listen"], listeners, strict=True)):
        yield from (f"listen[{number}]: {problem}" for problem in _problems_of(one, set(given)))
    names = [one.inherited for one in listeners if one.inherited]
    if len(set(names)) < len(names):
        yield "listen: an inherited name occurs more than once"
    hosts = values.get("gateway", GatewaySettings()).allowed_hosts
    if not hosts and not any(one.host for one in listeners):
        yield "gateway.allowed_hosts: must name what clients write, as no listener has an address"


_MEANT_FOR: Final = {
    "port": {"host"},
    "mode": {"path"},
    "group": {"path"},
    "users": {"path", "inherited"},
}


def _problems_of(one: ListenSettings, given: set[str]) -> Iterator[str]:
    places = given & {"host", "path", "inherited"}
    if len(places) != 1:
        yield "must have one of host, path and inherited"
        return
    for name in given & set(_MEANT_FOR):
        if not places & _MEANT_FOR[name]:
            yield f"{name} has no meaning here"
    if one.mode & 0o007:
        yield "mode lets everybody connect"
    if one.path is not None and len(os.fsencode(one.path)) > SOCKET_PATH_BYTES:
        yield f"path has more than the {SOCKET_PATH_BYTES} bytes that Linux takes"
    if one.client_certificates != "none" and one.tls is None:
        yield "client_certificates without tls"
    if one.proxy_protocol and not one.trusted:
        yield "proxy_protocol without trusted: nobody's header would be believed"
    if one.host is not None and UNIX in one.trusted:
        yield "trusted: nobody connects to an address by a Unix socket"
    for name in one.trusted:
        if name != UNIX:
            try:
                network(name)
            except ValueError as error:
                yield f"trusted: {error}"


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
        elif field.type == tuple[ListenSettings, ...]:
            values[name] = _array(ListenSettings, given, f"{prefix}{name}", problems)
        elif get_origin(field.type) is dict:
            values[name] = _tables(get_args(field.type)[1], given, f"{prefix}{name}", problems)
        else:
            try:
                values[name] = msgspec.convert(given, field.type, dec_hook=_path_hook)
            except msgspec.ValidationError as error:
                problems.append(f"{prefix}{name}: {error}")
    return values


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


def _array(kind: type[Value], given: Any, path: str, problems: list[str]) -> tuple[Any, ...]:
    """An array of tables."""
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        problems.append(f"{path}: must be an array of tables")
        return ()
    return tuple(kind(**_fields(kind, table, f"{path}[{n}].", problems)) for n, table in enumerate(given))


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


FIRST_INHERITED: Final = 3
"""sd_listen_fds(3): SD_LISTEN_FDS_START."""


def inherited_listeners() -> int:
    """How many listening descriptors the service manager passed, from 3 on (sd_listen_fds(3)); 0 if none for us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if re.fullmatch("[0-9]{1,3}", count) else 0


def inherited_listener_names() -> tuple[str, ...]:
    """The names of those descriptors, in their order (``FileDescriptorName=`` of each socket unit, LISTEN_FDNAMES).

    Their order is the service manager's own, so whoever takes more than one must go by name.
    """
    count = inherited_listeners()
    names = os.environ.get("LISTEN_FDNAMES", "")
    given = names.split(":")[:count] if names else []
    return (*given, *["unknown"] * (count - len(given)))


def child_environment() -> dict[str, str]:
    """What the supervisor's children get: where to find things, and nothing else of ours."""
    names = ("PATH", "HOME", "LANG", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR")
    return {name: os.environ[name] for name in names if name in os.environ}
