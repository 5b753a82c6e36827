"""Wires the rooms into processes. The only module that knows every room.

``gateway``, ``notary``, ``warden`` and, where foreign issuers are believed, ``liaison`` each run one process until
``stop`` is set or a signal arrives.

Trusts: the settings.
Promises: a process that cannot have everything it needs raises ``Fault`` before it serves anything.
Not here: starting and restarting the processes (``cli.supervisor``, or systemd).
"""

import asyncio
import grp
import logging
import os
import pwd
import socket
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from appliance import __version__, issuers, settings
from appliance.core.admit import AdmitLimits
from appliance.core.catalogue import Catalogue
from appliance.core.ports import TokenVerifier
from appliance.core.quota import Budget
from appliance.core.records import ModelRef
from appliance.core.refusals import Fault, Misconfigured, Reason, Refused
from appliance.core.values import Digest, SealMode, VerifiedModel
from appliance.gateway import serve as gateway_process
from appliance.gateway.answering import BodyLimits
from appliance.gateway.app import build_app
from appliance.gateway.delegation import Delegate, Delegates, Users
from appliance.gateway.gate import Gate
from appliance.gateway.listeners import Listener, inherited_listener, listen_tcp, listen_unix
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.pipeline import Pipeline, Ports
from appliance.gateway.slots import Slots
from appliance.gateway.surfaces.oauth import OAuthRoute
from appliance.gateway.tally import Tally
from appliance.gateway.tls import TlsFolder
from appliance.gateway.warden_client import WardenClient
from appliance.gateway.wire import WireLimits
from appliance.identity.foreign import LiaisonLink
from appliance.identity.keys import load_keys
from appliance.identity.liaison import Liaison
from appliance.ipc.connection import listen
from appliance.ipc.notary_client import NotaryClient
from appliance.limits.budget import MemoryTokenBudget
from appliance.limits.gate import AddressGate
from appliance.limits.rates import RequestRates
from appliance.model_store import begin_starter, store_with
from appliance.models.catalogue import IGNORED, CatalogueKeeper
from appliance.models.store import OpenedModel
from appliance.models.trust import Trust
from appliance.notary.main import NotaryConfig, run_notary
from appliance.notary.speakers import Process
from appliance.policy.reload import ReloadingPolicy
from appliance.sandbox.confine import confine
from appliance.sandbox.seccomp import Role
from appliance.settings import ListenSettings, Settings
from appliance.warden import main as warden_process
from appliance.warden.cgroups import NotDelegated, RunnerGroups
from appliance.warden.launch_spawn import SpawnLauncher
from appliance.warden.launch_systemd import SystemdLauncher
from appliance.warden.loading import PoolSettings
from appliance.warden.memory import budget_bytes
from appliance.warden.pool import Pool
from appliance.warden.ports import Launcher
from appliance.warden.served import Beside, ServedModels, Serving
from appliance.warden.starter_client import Starter
from appliance.warden.validate import SandboxedValidator

KEYS_WAIT_SECONDS: Final = 30.0
RESERVATION_SLACK_SECONDS: Final = 300
REQUEST_SLACK_SECONDS: Final = 60
LOAD_SLACK_SECONDS: Final = 5
"""For what the warden does outside its limit: it hashes the model once more, at some GB a second, and has a process
started. So its own limit comes first for a model of a few GB, and a slow load is told as what it is. For a larger one,
or from a slow disk, the gateway may give up before; the warden goes on, and whoever asks next finds the model loaded.
"""

log = logging.getLogger(__name__)


RESOLVER_FILES: Final = (
    Path("/etc/gai.conf"),
    Path("/etc/host.conf"),
    Path("/etc/hosts"),
    Path("/etc/nsswitch.conf"),
    Path("/etc/resolv.conf"),
    Path("/etc/services"),
    Path("/run/systemd/resolve"),
)
DNS_PORT: Final = 53


def fence(role: Role, config: Settings) -> None:
    """Leaves this process what its role still opens while it serves. Raises ``Misconfigured`` as ``confine`` does."""
    readable: dict[Role, tuple[Path, ...]] = {
        "gateway": (config.policy_dir, *config.tls_dirs),  # again whenever their files change
        "warden": (config.models_dir, config.trust_dir, Path("/proc")),  # where file systems and runners are looked at
        "liaison": RESOLVER_FILES,
    }
    writable: dict[Role, tuple[Path, ...]] = {
        "notary": (config.notary_dir,),
        "warden": (config.models_dir / CatalogueKeeper.MEMORY,),
    }
    confine(
        role,
        allow_degraded=config.sandbox.allow_degraded,
        readable=readable.get(role, ()),
        writable=writable.get(role, ()),
        connect_ports=sorted(issuers.provider_ports(config) | {DNS_PORT}) if role == "liaison" else (),
    )


def _now_seconds() -> int:
    return int(time.time())


async def gateway(config: Settings) -> None:
    """The process that faces the network. Raises ``Fault`` when it cannot start."""
    policy = _policy(config)
    jwks = config.public_dir / "jwks.json"
    await _file_exists(jwks)
    notary = _notary_client(config, "gateway")
    warden = WardenClient(
        config.warden_socket,
        load_timeout_seconds=config.models.load_timeout_seconds + LOAD_SLACK_SECONDS,
        silence_seconds=config.gateway.runner_silence_seconds,
        queue_seconds=config.gateway.queue_timeout_seconds,
        server_uids=frozenset({0, _uid(config.users.warden)}),
    )
    pipeline = Pipeline(
        Ports(
            models=warden,
            policy=policy,
            budget=MemoryTokenBudget(_budget(config), now_seconds=_now_seconds),
            audit=notary,
            limits=AdmitLimits(
                context_tokens=config.models.context_tokens,
                default_max_tokens=config.models.default_max_tokens,
                named_context_tokens={name: config.load_options(name).context_tokens for name in config.model},
            ),
            now_seconds=_now_seconds,
            request_timeout_seconds=config.gateway.request_timeout_seconds,
        )
    )
    body_limits = BodyLimits(
        max_bytes=config.gateway.max_body_bytes, timeout_seconds=config.gateway.body_timeout_seconds
    )
    slots = Slots(config.limits.concurrent_requests or max(1, config.models.slots - 1))
    refusals = Tally()
    link = LiaisonLink(
        config.liaison_socket, now_seconds=_now_seconds, server_uids=frozenset({0, _uid(config.users.liaison)})
    )
    challenges = issuers.challenges(config)
    verifier = issuers.verifier(config, load_keys(jwks), notary.revocations, link, started_at_seconds=_now_seconds())
    authority = issuers.authority(config, notary, verifier, now_seconds=_now_seconds)
    token_routes = authority and OAuthRoute(authority, refusals, body_timeout_seconds=body_limits.timeout_seconds)
    metrics = MetricsPage(pipeline, refusals, slots)
    gate = Gate(
        build_app(pipeline, body_limits, metrics, challenges.metadata, token_routes),  # type: ignore[arg-type]  # ASGI's scope is wider
        pipeline,
        verifier=verifier,
        addresses=AddressGate(requests_per_minute=config.limits.address_requests_per_minute),
        rates=RequestRates(requests_per_minute=config.limits.principal_requests_per_minute),
        slots=slots,
        refusals=refusals,
        allowed_hosts=config.allowed_hosts,
        now_seconds=_now_seconds,
        challenges=challenges,
        delegates=_delegates(config, verifier),
        issues_tokens=authority is not None,
    )
    following = _following(link) if config.issuer else None
    try:
        await gateway_process.serve(
            gate,
            notary=notary,
            warden=warden,
            policy=policy,
            limits=WireLimits(request_seconds=_longest_request_seconds(config)),
            listeners=lambda: _fenced_listeners(config),
        )
    finally:
        if following is not None:
            following.cancel()


def _delegates(config: Settings, verifier: TokenVerifier) -> Delegates:
    return Delegates(
        [
            Delegate(
                delegation,
                RequestRates(requests_per_minute=chosen.requests_per_minute),
                Slots(chosen.concurrent_requests),
                Users(chosen.max_users, config.limits.budget_window_seconds),
            )
            for delegation, chosen in issuers.delegations(config, verifier)
        ]
    )


def _following(link: LiaisonLink) -> asyncio.Task[None]:
    """Should it end by itself, foreign keys run out after their time and opaque tokens are a 503: our own go on."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("nobody follows the foreign issuers any more", exc_info=task.exception())

    task = asyncio.create_task(link.run())
    task.add_done_callback(ended)
    return task


def _policy(config: Settings) -> ReloadingPolicy:
    try:
        return ReloadingPolicy(config.policy_dir / "policy.wasm", config.policy_dir / "data.json")
    except Fault as fault:  # there is no policy to fall back to
        raise Misconfigured(fault.detail) from fault


def _notary_client(config: Settings, role: Literal["gateway", "warden"]) -> NotaryClient:
    return NotaryClient(config.notary_socket, role, server_uids=frozenset({0, _uid(config.users.notary)}))


def _longest_request_seconds(config: Settings) -> int:
    """After which a connection ends whatever its request is waiting for: its body, a model, the answer, its reader."""
    return (
        config.gateway.body_timeout_seconds
        + config.models.load_timeout_seconds
        + config.gateway.request_timeout_seconds
        + REQUEST_SLACK_SECONDS
    )


def _budget(config: Settings) -> Budget:
    """A reservation outlives the longest request, so that it is never charged unseen while its model is loaded or its
    answer runs."""
    return Budget(
        limit_tokens=config.limits.budget_tokens,
        window_seconds=config.limits.budget_window_seconds,
        hold_seconds=_longest_request_seconds(config) + RESERVATION_SLACK_SECONDS,
    )


def _fenced_listeners(config: Settings) -> list[Listener]:
    """The last thing before the first client: afterwards this process can make no other listener."""
    listeners = _listeners(config)
    fence("gateway", config)
    return listeners


def _listeners(config: Settings) -> list[Listener]:
    """Raises ``Misconfigured`` for a descriptor that was inherited and belongs to no listener."""
    by_name: dict[str, list[int]] = {}
    for descriptor, name in enumerate(settings.inherited_listener_names(), settings.FIRST_INHERITED):
        by_name.setdefault(name, []).append(descriptor)
    if by_name and not config.listen:
        return [Listener(inherited_listener(one, any_user=True)) for ones in by_name.values() for one in ones]
    if unknown := by_name.keys() - {one.inherited for one in config.listen}:
        raise Misconfigured(f"listen: nothing takes the inherited {', '.join(sorted(unknown))}")
    return [Listener(sock, **_terms(one)) for one in config.listeners for sock in _sockets(one, by_name)]


def _sockets(one: ListenSettings, by_name: dict[str, list[int]]) -> list[socket.socket]:
    """One socket, or as many as the service manager passes under a name."""
    if one.host is not None:
        return [listen_tcp(one.host, one.port)]
    if one.path is not None:
        return [listen_unix(one.path, mode=one.mode, gid=_gid(one.group))]
    descriptors = by_name.get(one.inherited or "", [])
    if not descriptors:
        raise Misconfigured(f"listen: the service manager passes nothing named {one.inherited!r}")
    return [inherited_listener(descriptor, any_user=not one.users) for descriptor in descriptors]


def _terms(one: ListenSettings) -> dict[str, Any]:
    """What holds at a listener, as the arguments of ``Listener``."""
    return {
        "trust": one.trust,
        "proxy_protocol": one.proxy_protocol,
        "tls": TlsFolder(one.tls, one.client_certificates) if one.tls else None,
        "uids": frozenset({0, *map(_uid, one.users)}) if one.users else None,
    }


async def _file_exists(path: Path) -> None:
    """Waits for what the notary publishes at its first start."""
    try:
        async with asyncio.timeout(KEYS_WAIT_SECONDS):
            while not path.exists():  # noqa: ASYNC110, ASYNC240 - nobody in this process could set an event
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise Refused(Reason.AUDIT_UNAVAILABLE, f"{path} does not appear: is the notary running?") from None


class TrustingStore:
    """The files of the model store under the operator's trust and catalogue, read anew each time."""

    def __init__(self, config: Settings, starter: Starter) -> None:
        self._store = store_with(config, SandboxedValidator(starter))
        self._catalogue = CatalogueKeeper(config.trust_dir, config.models_dir)
        self._catalogue.prepare()
        self._trust_dir = config.trust_dir
        self._seal_mode = config.models.seal_mode
        self._opened: dict[Digest, tuple[SealMode, Digest | None]] = {}
        self._expiries: tuple[int, ...] = ()
        self._has_warned = False

    def names(self) -> list[str]:
        return list(self._store.entries())

    def stamp(self, name: str) -> Hashable:
        """Changes with the entry, with anything that the operator trusts, when the catalogue, one of its entries or its
        root expires, and every hour, since certificates expire too."""
        now_seconds = int(time.time())
        expired = sum(now_seconds >= expiry for expiry in self._expiries)
        return self._store.stamp(name), Trust.stamp(self._trust_dir), expired, now_seconds // 3600

    def reference(self, name: str) -> ModelRef:
        """Signatures and catalogue as of now. Bytes are looked at when the model is opened; what was found then, and
        how it was sealed, is held against the catalogue of now."""
        reference, signers = self._store.reference(name, self._trust())
        now_seconds = int(time.time())
        catalogue = self._current(now_seconds)
        if catalogue is not None:
            names = frozenset(signer.name for signer in signers)
            entry = catalogue.lists(reference.name, reference.digest, names, now_seconds=now_seconds)
            if opened := self._opened.get(reference.digest):
                entry.check_fit(*opened)
        return reference

    def verify(self, name: str) -> VerifiedModel:
        return self._store.verify(name, self._trust())

    def open_verified(self, name: str) -> OpenedModel:
        """Raises as ``ModelStore.open_verified``, and where the catalogue does not permit the model so sealed."""
        opened = self._store.open_verified(name, self._trust(), seal_mode=self._seal_mode)
        try:
            self._check_catalogue(opened.model, opened.seal_mode)
            self._opened[opened.model.digest] = opened.seal_mode, opened.model.facts.chat_template_digest
        except BaseException:
            opened.close()
            raise
        return opened

    def _check_catalogue(self, model: VerifiedModel, seal_mode: SealMode) -> None:
        now_seconds = int(time.time())
        catalogue = self._current(now_seconds)
        if catalogue is not None:
            catalogue.permits(model, seal_mode, now_seconds=now_seconds)

    def _current(self, now_seconds: int) -> Catalogue | None:
        catalogue, root = self._catalogue.in_force(now_seconds=now_seconds)
        if catalogue is None:
            self._expiries = ()
            if self._catalogue.is_ignored() and not self._has_warned:
                self._has_warned = True
                log.warning(IGNORED)
            return None
        roots = () if root is None else (root.expires_at_seconds,)
        entries = (entry.expires_at_seconds for entry in catalogue.models)
        self._expiries = (catalogue.expires_at_seconds, *roots, *entries)
        return catalogue

    def _trust(self) -> Trust:
        return Trust.load(self._trust_dir, now_seconds=int(time.time()))


async def warden(config: Settings, stop: asyncio.Event) -> None:
    """The process that verifies models and has runners started. Raises ``Fault`` when it cannot start.

    Its starter is begun before there is a thread, and before a byte of the store or of any peer is read.
    """
    with begin_starter(config, groups=_runner_groups(config)) as starter:
        await _warden(config, starter, stop)


async def _warden(config: Settings, starter: Starter, stop: asyncio.Event) -> None:
    notary = _notary_client(config, "warden")
    pool = Pool(
        ServedModels(TrustingStore(config, starter), _serving(config)),
        _launcher(config, starter),
        notary,
        PoolSettings(
            options=config.load_options(""),
            named={name: config.load_options(name) for name in config.model},
            threads=config.models.threads,
            max_loaded=config.models.max_loaded,
            memory_bytes=config.models.memory_bytes or budget_bytes(),
            load_timeout_seconds=config.models.load_timeout_seconds,
            runner_memory_bytes=config.models.runner_memory_bytes,
        ),
    )
    listening = _unix_listener("warden", config.warden_socket, 0o660)
    gateway_uids, operator_uids = frozenset({_uid(config.users.gateway)}), _operator_uids(config)
    fence("warden", config)
    await warden_process.serve(
        pool,
        notary=notary,
        starter=starter,
        listening=listening,
        gateway_uids=gateway_uids,
        operator_uids=operator_uids,
        stop=stop,
    )


def _serving(config: Settings) -> dict[str, Serving]:
    """The names that are served as something else than the one file of that name."""
    return {
        name: Serving(
            base=named.base or name,
            beside=(
                *(
                    Beside(name=one.name, kind="adapter", scale_thousandths=one.scale_thousandths)
                    for one in named.adapters
                ),
                *([Beside(name=named.draft, kind="draft")] if named.draft else []),
            ),
        )
        for name, named in config.model.items()
        if named.base or named.adapters or named.draft
    }


def _launcher(config: Settings, starter: Starter) -> Launcher:
    if config.sandbox.launcher == "systemd":
        return SystemdLauncher(config.runner_socket, allow_degraded=frozenset(config.sandbox.allow_degraded))
    return SpawnLauncher(starter)


def _runner_groups(config: Settings) -> Path | None:
    """Where runners get control groups; the starter, begun after this, is moved with this process. None under systemd,
    whose unit is the group, and where the host delegates nothing; the log says why. Raises ``Misconfigured`` where that
    is not enough."""
    if config.sandbox.launcher == "systemd":
        return None
    try:
        groups = RunnerGroups.find()
    except NotDelegated as error:
        if config.sandbox.cgroup == "required":
            raise Misconfigured(f"sandbox.cgroup: {error}") from error
        log.info("runners get no control group: %s", error)
        return None
    log.info("runners get control groups in %s", groups.base)
    return groups.base


def _inherited(name: str) -> socket.socket | None:
    """The listening socket that the service manager passed under this name (``FileDescriptorName=``), if any."""
    names = settings.inherited_listener_names()
    return socket.socket(fileno=settings.FIRST_INHERITED + names.index(name)) if name in names else None


def _unix_listener(name: str, path: Path, mode: int) -> socket.socket:
    if inherited := _inherited(name):
        return inherited
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    return listen(path, mode=mode)


def _uid(user: str | None) -> int:
    """The uid of a user, this process's own without one. Raises ``Misconfigured`` for an unknown user."""
    if user is None:
        return os.getuid()
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Misconfigured(f"users: there is no user {user!r}") from None


def _gid(group: str | None) -> int | None:
    """The gid of a group. Raises ``Misconfigured`` for an unknown one."""
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Misconfigured(f"listen: there is no group {group!r}") from None


def _operator_uids(config: Settings) -> frozenset[int]:
    return frozenset({0, os.getuid(), *map(_uid, config.users.operators)})


async def liaison(config: Settings, stop: asyncio.Event) -> None:
    """The process that talks with foreign issuers. Raises ``Misconfigured`` when there is none to talk with, or a file
    of theirs is not as it must be."""
    if not config.issuer:
        raise Misconfigured("no issuer but our own is configured: there is nobody to talk with")
    one = Liaison(issuers.key_providers(config), issuers.token_provider(config), now_seconds=_now_seconds)
    issuers.load_resolver(config)
    listening = _unix_listener("liaison", config.liaison_socket, 0o660)
    gateway_uids = frozenset({_uid(config.users.gateway)})
    fence("liaison", config)
    await one.serve(listening, gateway_uids=gateway_uids, stop=stop)


async def notary(config: Settings, stop: asyncio.Event, beside: Mapping[int, str] = MappingProxyType({})) -> None:
    """The process that holds the keys and writes the log. Raises ``Fault`` when it cannot start.

    ``beside``: the pids of this user's services that live already, with their roles.
    """
    for directory in (config.notary_dir, config.public_dir, config.runtime_dir):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    await run_notary(
        NotaryConfig(
            state_dir=config.notary_dir,
            public_dir=config.public_dir,
            socket_path=config.notary_socket,
            admin_socket_path=config.admin_socket,
            gateway_uids=frozenset({_uid(config.users.gateway)}),
            warden_uids=frozenset({_uid(config.users.warden)}),
            operator_uids=_operator_uids(config),
            issuer=config.identity.issuer,
            audience=config.identity.audience,
            log_origin=config.notary.log_origin,
            version=__version__,
            settings_digest=config.digest(),
        ),
        stop=stop,
        listening=_inherited("notary"),
        admin_listening=_inherited("admin"),
        beside={Process(pid, os.getuid()): role for pid, role in beside.items()},
        before_peers=lambda: fence("notary", config),
    )
