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
from collections.abc import Set as AbstractSet
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from appliance.core.codec import canonical_json
from appliance.core.delegation import Service, issuer_of_users
from appliance.core.forwarded import Trust, network
from appliance.core.memory import KvType, LoadOptions, Speculating
from appliance.core.values import MAX_ADAPTERS, Digest, SealMode, Value

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
    """Whose tokens are believed. The local issuer is the notary; ``issuer.NAME`` adds others. ``public_url`` is the
    origin under which clients know this server: its identifier as a protected resource (RFC 9728), and what DPoP proofs
    are made for (RFC 9449). Where the local issuer is that very origin, clients can get tokens from it there: an
    issuer's name is where its metadata are (RFC 8414 section 3)."""

    issuer: Annotated[str, Meta(min_length=1, max_length=255)] = "https://paddock.local"
    audience: Annotated[str, Meta(min_length=1, max_length=255)] = "paddock"
    max_lifetime_seconds: Annotated[int, Meta(ge=60, le=86400)] = 86400
    public_url: Annotated[str, Meta(max_length=255, pattern=r"\Ahttps://[a-z0-9.-]+(:[0-9]{1,5})?\Z")] | None = None

    @property
    def issues_tokens(self) -> bool:
        return self.issuer == self.public_url


ClaimPath = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...], Meta(max_length=8)]
HttpsUrl = Annotated[str, Meta(min_length=9, max_length=1024, pattern=r"\Ahttps://[^/?#@]+[^#@]*\Z")]
Names = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...], Meta(max_length=64)]
Scopes = Annotated[
    tuple[Annotated[str, Meta(max_length=255, pattern=r"\A[\x21\x23-\x5b\x5d-\x7e]+\Z")], ...], Meta(max_length=64)
]
"""RFC 6749 section 3.3; a challenge quotes them."""
Algorithm = Literal["ES256", "RS256", "PS256", "EdDSA"]


class IssuerSettings(Value, frozen=True, kw_only=True):
    """A foreign issuer whose tokens are believed, and how far: nothing that is not said here is.

    Its tokens are JWTs if it has a ``jwks_uri``, or opaque ones that are asked about if it has an
    ``introspection_endpoint``. Claims are named by their path from the outside in. ``token_types`` are the values of
    ``typ`` that its JWTs may have, "" for none at all.
    """

    issuer: Annotated[str, Meta(min_length=1, max_length=255)]
    audiences: Annotated[Names, Meta(min_length=1)]
    ca_file: Path
    audience_list: bool = False
    jwks_uri: HttpsUrl | None = None
    algorithms: tuple[Algorithm, ...] = ()
    token_types: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(min_length=1, max_length=4)] = (
        "at+jwt",
    )
    introspection_endpoint: HttpsUrl | None = None
    introspection_client_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    introspection_secret_file: Path | None = None
    introspection_cache_seconds: Annotated[int, Meta(ge=0, le=60)] = 1
    refresh_seconds: Annotated[int, Meta(ge=10, le=86400)] = 300
    cooldown_seconds: Annotated[int, Meta(ge=1, le=3600)] = 30
    keep_seconds: Annotated[int, Meta(ge=60, le=7 * 86400)] = 86400
    max_lifetime_seconds: Annotated[int, Meta(ge=60, le=86400)] = 86400
    clients: Names = ()
    scopes: Scopes = ()
    required_claims: dict[str, str] = msgspec.field(default_factory=dict)
    refused_claims: Names = ("nonce", "at_hash", "c_hash", "s_hash")
    subject_claim: Annotated[ClaimPath, Meta(min_length=1)] = ("sub",)
    client_claim: Annotated[ClaimPath, Meta(min_length=1)] = ("client_id",)
    token_id_claim: ClaimPath = ("jti",)
    groups_claim: ClaimPath = ()
    groups: dict[str, str] = msgspec.field(default_factory=dict)
    models_claim: ClaimPath = ()
    models: Names = ()

    def problems(self) -> list[str]:
        """What each field by itself does not show."""
        found = []
        if (self.jwks_uri is None) == (self.introspection_endpoint is None):
            found.append("needs a jwks_uri or an introspection_endpoint, and not both")
        if self.jwks_uri is not None and not self.algorithms:
            found.append("algorithms: must name at least one")
        if self.introspection_endpoint is not None and None in (
            self.introspection_client_id,
            self.introspection_secret_file,
        ):
            found.append("introspection needs introspection_client_id and introspection_secret_file")
        if not self._says_access_token and not self.clients:
            found.append("clients: must name those whose tokens are meant for this server, since token_types does not")
        if self.models and self.models_claim:
            found.append("models: has no effect beside models_claim")
        if self.groups and not self.groups_claim:
            found.append("groups: has no effect without groups_claim")
        if self.keep_seconds < self.refresh_seconds or self.refresh_seconds < self.cooldown_seconds:
            found.append("keep_seconds must be at least refresh_seconds, and that at least cooldown_seconds")
        return found

    @property
    def _says_access_token(self) -> bool:
        """RFC 9068 section 4: no token of another kind has this type."""
        return self.jwks_uri is None or set(self.token_types) <= {"at+jwt", "application/at+jwt"}


class DelegationSettings(Value, frozen=True, kw_only=True):
    """A service that may say for which user it asks (``core.delegation``), and how far that is believed.

    It is known by its own token: of ``issuer`` (none: ours), of the client ``client_id``, with ``subject`` (none: the
    client's id, as our own tokens for a client have it). In the form ``user-token`` it sends the user's own access
    token, of one of ``user_issuers``; in ``openwebui-jwt`` a JWT under HS256 with the secret in ``secret_file``, whose
    users have the groups that are given here by role, e-mail address and id, and no others.

    All its users together have ``requests_per_minute`` and ``concurrent_requests``, and are at most ``max_users``
    different ones in one window of the budgets; each besides has what ``limits`` says.
    """

    form: Literal["user-token", "openwebui-jwt"]
    client_id: Annotated[str, Meta(min_length=1, max_length=255)]
    issuer: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    subject: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    user_issuers: Names = ()
    secret_file: Path | None = None
    jwt_issuer: Annotated[str, Meta(min_length=1, max_length=255)] = "open-webui"
    max_lifetime_seconds: Annotated[int, Meta(ge=10, le=600)] = 300
    groups_by_role: dict[str, Names] = msgspec.field(default_factory=dict)
    groups_by_email: dict[str, Names] = msgspec.field(default_factory=dict)
    groups_by_id: dict[str, Names] = msgspec.field(default_factory=dict)
    requests_per_minute: Positive = 1200
    concurrent_requests: Annotated[int, Meta(ge=1, le=100_000)] = 64
    max_users: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000

    def problems(self, issuers: AbstractSet[str]) -> list[str]:
        """What each field by itself does not show. ``issuers`` are all whose tokens are believed."""
        found = []
        if self.issuer is not None and self.issuer not in issuers:
            found.append("issuer: its tokens are not believed")
        if self.form == "user-token":
            found.extend(
                f"user_issuers: tokens of {name} are not believed" for name in set(self.user_issuers) - issuers
            )
            if not self.user_issuers:
                found.append("user_issuers: must name at least one")
            if self.secret_file is not None or self._groups:
                found.append('secret_file and groups are for the form "openwebui-jwt": a token says its own groups')
        else:
            if self.secret_file is None:
                found.append("secret_file: must be given")
            if self.user_issuers:
                found.append('user_issuers: is for the form "user-token"')
            if any("" in table for table in self._groups):
                found.append("groups: a role, e-mail address or id must not be empty")
        return found

    @property
    def _groups(self) -> list[dict[str, Names]]:
        return [table for table in (self.groups_by_role, self.groups_by_email, self.groups_by_id) if table]


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
    liaison: str | None = None
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
    issuer: dict[str, IssuerSettings] = msgspec.field(default_factory=dict)
    delegation: dict[str, DelegationSettings] = msgspec.field(default_factory=dict)
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
    def liaison_socket(self) -> Path:
        return self.runtime_dir / "liaison.sock"

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
    def takes_certificates(self) -> bool:
        """Of clients, or by the word of a proxy that may give it."""
        return any(one.client_certificates != "none" or one.trusted for one in self.listen)

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
    added = {name for name, named in values.get("model", {}).items() if named.base is not None}
    for name, named in values.get("model", {}).items():
        speculation = named.speculation or values.get("models", ModelSettings()).speculation
        problems.extend(f'model."{name}".{problem}' for problem in _conflicts(name, named, speculation, added))
    if values.get("models", ModelSettings()).speculation == "draft":
        problems.append('models.speculation: "draft" is for single models, each with its model.NAME.draft')
    longest = len(os.fsencode(values.get("runtime_dir", ""))) + len("/liaison.sock")
    if longest > SOCKET_PATH_BYTES:
        problems.append(
            f"runtime_dir: its sockets would have {longest} bytes, of which Linux takes {SOCKET_PATH_BYTES}"
        )
    problems.extend(_issuer_problems(values.get("issuer", {}), values.get("identity", IdentitySettings())))
    problems.extend(_delegation_problems(values))
    problems.extend(_listen_problems(document, values))
    if problems:
        raise SettingsInvalid(problems)
    return Settings(**values)


def _issuer_problems(issuers: dict[str, IssuerSettings], identity: IdentitySettings) -> list[str]:
    """What the table of one issuer does not show by itself."""
    found = [f'issuer."{name}": {problem}' for name, issuer in issuers.items() for problem in issuer.problems()]
    found.extend(f'issuer."{name}": must have a name of at most 64 characters' for name in issuers if len(name) > 64)
    try:
        _ = urlsplit(identity.public_url or "").port
    except ValueError as error:
        found.append(f"identity.public_url: {error}")
    names = [identity.issuer, *(issuer.issuer for issuer in issuers.values())]
    found.extend(f"issuer: {name} is there twice" for name in sorted({name for name in names if names.count(name) > 1}))
    if sum(issuer.introspection_endpoint is not None for issuer in issuers.values()) > 1:
        found.append("issuer: an opaque token does not say whose it is, so only one may have an introspection_endpoint")
    return found


def _delegation_problems(values: dict[str, Any]) -> Iterator[str]:
    """Two of one service would leave open which holds; and no issuer may have the name of a service's users."""
    ours = values.get("identity", IdentitySettings()).issuer
    issuers = {ours, *(issuer.issuer for issuer in values.get("issuer", {}).values())}
    services = []
    for name, one in values.get("delegation", {}).items():
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            yield f'delegation."{name}": must have a name of at most 64 letters, digits, dots, dashes and underscores'
        yield from (f'delegation."{name}".{problem}' for problem in one.problems(issuers))
        service = Service(issuer=one.issuer or ours, client_id=one.client_id, subject=one.subject or one.client_id)
        if service in services:
            yield f'delegation."{name}": the same service is there twice'
        services.append(service)
        if issuer_of_users(service.issuer, name) in issuers:
            yield f'delegation."{name}": an issuer has the name of its users'


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
        if _is_table(field.type):
            if not isinstance(given, dict):
                problems.append(f"{prefix}{name}: must be a table")
                continue
            values[name] = field.type(**_fields(field.type, given, f"{prefix}{name}.", problems))
        elif field.type == tuple[ListenSettings, ...]:
            values[name] = _array(ListenSettings, given, f"{prefix}{name}", problems)
        elif get_origin(field.type) is dict and _is_table(get_args(field.type)[1]):
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


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Value)


def _tables(kind: type[Value], given: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """A table of tables, one for each name. One that lacks what it must have is left out, with its problem told."""
    if not isinstance(given, dict):
        problems.append(f"{path}: must be a table of tables")
        return {}
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    found = {}
    for name, table in given.items():
        if not name:  # it would be what all models are loaded by, and only by the warden
            problems.append(f'{path}."": must have a name')
        elif not isinstance(table, dict):
            problems.append(f'{path}."{name}": must be a table')
        else:
            problems.extend(f'{path}."{name}".{field}: is missing' for field in required if field not in table)
            values = _fields(kind, table, f'{path}."{name}".', problems)
            if values.keys() >= set(required):
                found[name] = kind(**values)
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
