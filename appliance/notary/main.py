"""The notary's process: two sockets, the log, the keys.

Start: keys, log (recovered, locked), public parts, the registry, the sockets; then the caller fences the process in,
while it has one thread; ``log-opened`` durable, a checkpoint, then the first peer.
Stop: no more peers; requests of a gateway that is gone are closed, those of one that is still connected are left for
its next ``Hello``; ``log-closed``, the last checkpoint.

Trusts: gateway and warden for what they record, by the uid that the kernel names; the operator's uids for tokens.
Promises: a role speaks only for itself: gateways of requests, refusals and policy, wardens of models and runners,
    and nobody but the notary of the log, of clients and of tokens. Gateways alone ask for tokens of clients, and get
    those that are registered. A process has one role, and one that has any orders nothing as an operator, whatever its
    uid. Anything else ends the connection. An answer to a durable record follows its sync; a token follows the sync of
    its record.
Not here: signal handling (the caller sets ``stop``); reading the log (``audit``).
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from appliance.core.note import valid_name
from appliance.core.records import (
    Closed,
    LogClosed,
    LogOpened,
    ModelLoaded,
    ModelRefused,
    Opened,
    PolicyLoaded,
    Record,
    RefusalSummary,
    RefusedRequest,
    RunnerEnded,
    RunnerNotStarted,
    TokenIssued,
    read_record,
)
from appliance.core.refusals import Fault, Refused
from appliance.core.text import printable
from appliance.core.values import Digest, Value
from appliance.ipc.connection import Connection, accept_forever, listen, peer_pid_and_uid
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import (
    Append,
    Appended,
    AppendFailed,
    Failed,
    FromNotary,
    FromNotaryAdmin,
    Hello,
    IssueToken,
    Revoked,
    TokenSigned,
    ToNotary,
    ToNotaryAdmin,
)
from appliance.notary.checkpoint import Checkpointer
from appliance.notary.clock import Clock, SystemClock
from appliance.notary.desk import Desk
from appliance.notary.files import Files
from appliance.notary.journal import Journal, Outcome, Written
from appliance.notary.keys import load_keys, publish_keys
from appliance.notary.recover import lock_directory
from appliance.notary.signer import TokenSigner
from appliance.notary.speakers import Process, Speakers
from appliance.notary.wal import exists

if TYPE_CHECKING:
    from appliance.notary.registrar import Registrar

_MAY_RECORD: Final[dict[str, tuple[type[Record], ...]]] = {
    "gateway": (Opened, Closed, RefusedRequest, RefusalSummary, PolicyLoaded),
    "warden": (ModelLoaded, ModelRefused, RunnerNotStarted, RunnerEnded),
}
_MAX_DETAIL_CHARACTERS: Final = 2000
_MAX_QUOTE: Final = 200

_log = logging.getLogger(__name__)


class NotaryConfig(Value, frozen=True, kw_only=True):
    """``state_dir`` holds ``keys/``, ``log/`` (what an auditor copies), ``head`` and ``registry.db``; nobody else needs
    to see it.
    ``public_dir`` gets ``log.vkey`` and ``jwks.json``. A set of uids that is empty admits nobody."""

    state_dir: Path
    public_dir: Path
    socket_path: Path
    admin_socket_path: Path
    gateway_uids: frozenset[int]
    warden_uids: frozenset[int]
    operator_uids: frozenset[int]
    issuer: str
    audience: str
    log_origin: str
    version: str
    settings_digest: Digest
    socket_mode: int = 0o660
    admin_socket_mode: int = 0o600
    orphan_grace_seconds: float = 10.0
    checkpoint_interval_seconds: float = 1.0


async def run_notary(
    config: NotaryConfig,
    *,
    stop: asyncio.Event,
    listening: socket.socket | None = None,
    admin_listening: socket.socket | None = None,
    beside: Mapping[Process, str] = MappingProxyType({}),
    process_of: Callable[[socket.socket], Process] = lambda sock: Process(*peer_pid_and_uid(sock)),
    before_peers: Callable[[], object] = lambda: None,
    on_ready: Callable[[], None] = lambda: None,
    files: Files | None = None,
    clock: Clock | None = None,
) -> None:
    """Serves until ``stop`` is set. Sockets that are handed in (socket activation) are used instead of the paths.
    ``beside`` are the services that lived when this notary was started, and greeted the one before: they are known
    before they say ``Hello``, since one that was taken over would not.
    ``before_peers`` is called once everything is open that the start needs, and nothing was heard from anybody yet.

    Raises ``Fault`` or ``OSError`` when the log or the keys cannot be used, at the start or later: the process should
    then end, and its supervisor start another, which recovers.
    """
    files, clock = files or Files(), clock or SystemClock()
    lock_fd = lock_directory(files, config.state_dir)  # before the keys: two first starts must not make two sets
    try:
        journal, desk, signer = _open_log(config, files, clock)
        try:
            with (
                _registrar(config, files, journal, signer, clock) as registrar,
                _sockets(config, listening, admin_listening) as sockets,
            ):
                before_peers()
                await _put_opening_on_record(config, journal)
                server = _Server(config, journal, desk, signer, registrar, clock, process_of)
                with server.speakers_known(beside):
                    await server.serve(stop, sockets, on_ready)
            await journal.append(LogClosed())
        finally:
            await journal.close()
    finally:
        files.close(lock_fd)


async def _put_opening_on_record(config: NotaryConfig, journal: Journal) -> None:
    await journal.append(
        LogOpened(
            version=config.version,
            settings_digest=config.settings_digest,
            recovered_bytes=journal.recovered.torn_bytes,
        )
    )
    await journal.publish()


def _open_log(config: NotaryConfig, files: Files, clock: Clock) -> tuple[Journal, Desk, TokenSigner]:
    if not valid_name(config.log_origin):
        raise Fault("the log's origin must be printable, without spaces or '+'")
    head_path, log_dir = config.state_dir / "head", config.state_dir / "log"
    keys = load_keys(files, config.state_dir / "keys", may_create=not exists(head_path) and not exists(log_dir / "wal"))
    checkpointer = Checkpointer(
        files, head_path=head_path, checkpoint_path=log_dir / "checkpoint", origin=config.log_origin, key=keys.log
    )
    journal = Journal(files, log_dir, checkpointer, clock)
    publish_keys(files, keys, origin=config.log_origin, public_dir=config.public_dir, log_dir=log_dir)
    desk = Desk(journal, journal.recovered.replay)
    return journal, desk, TokenSigner(keys.token, issuer=config.issuer, audience=config.audience)


@contextmanager
def _registrar(
    config: NotaryConfig, files: Files, journal: Journal, signer: TokenSigner, clock: Clock
) -> "Iterator[Registrar]":
    from appliance.notary.registrar import Registrar  # SQLite is for the notary alone, and this module for every role

    registrar = Registrar(files, config.state_dir, journal, signer, clock)
    try:
        yield registrar
    finally:
        registrar.close()


# --- peers ----------------------------------------------------------------------------------------------------------


class _Peer:
    """One connection of a gateway or a warden: its role is fixed by its first message."""

    def __init__(self, sock: socket.socket, server: "_Server") -> None:
        self._server = server
        self._process = server.process_of(sock)
        self.role: str | None = None
        self.connection: Connection[ToNotary] = Connection(
            sock, FrameDecoder(ToNotary), on_message=self._received, on_closed=lambda why: server.gone(self, why)
        )

    def _received(self, message: ToNotary, _fds: list[int]) -> None:
        if isinstance(message, Hello):
            self._hello(message)
        elif self.role is None:
            self.connection.close("the first message must be Hello")
        elif not isinstance(message, Append):
            if self.role == "gateway":
                self._server.registrar.asked(message, self._send)
            else:
                self.connection.close(f"a {self.role} may not send {type(message).__name__}")
        else:
            self._append(message, _MAY_RECORD[self.role])

    def tell(self, revoked: Revoked) -> None:
        self._send(revoked)

    def _hello(self, message: Hello) -> None:
        if self.role is not None or self._process.uid not in self._server.uids_of(message.role):
            self.connection.close(f"uid {self._process.uid} may not say Hello as {message.role} now")
            return
        if not self._server.speakers.claim(self._process, message.role):
            _log.error("the %s said Hello as %s", self._server.described(self._process), message.role)
            self.connection.close(f"this process has another role than {message.role}")
            return
        self.role = message.role
        self._server.greeted(self, frozenset(message.open_requests))

    def _append(self, message: Append, allowed: tuple[type[Record], ...]) -> None:
        try:
            record = read_record(message.record)
        except ValueError as error:
            self.connection.close(printable(str(error)[:_MAX_QUOTE]))
            return
        if not isinstance(record, allowed):
            self.connection.close(f"a {self.role} may not record {type(record).__name__}")
            return

        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Written):
                self._send(
                    Appended(call=message.call, index=outcome.index, leaf_hash=Digest(hex=outcome.leaf_hash.hex()))
                )
            else:
                detail = outcome.detail[:_MAX_DETAIL_CHARACTERS]
                self._send(AppendFailed(call=message.call, detail=detail, permanent=outcome.permanent))

        self._server.desk.submit(record, answer, urgent=message.durable, encoded=message.record)

    def _send(self, answer: FromNotary) -> None:
        with suppress(ConnectionError):  # the record is written; a peer that is gone asks again when it is back
            self.connection.send_soon(answer)


class _Operator:
    """One connection to the admin socket. Its process is judged with each question, since it may have spoken since."""

    def __init__(self, sock: socket.socket, server: "_Server") -> None:
        self._server = server
        self._process = server.process_of(sock)
        self.connection: Connection[ToNotaryAdmin] = Connection(
            sock,
            FrameDecoder(ToNotaryAdmin),
            on_message=self._received,
            on_closed=lambda why: server.operators.discard(self),
        )

    def _received(self, message: ToNotaryAdmin, _fds: list[int]) -> None:
        if self._server.speakers.role_of(self._process) is not None:
            _log.error("the %s gave an operator's order and gets nothing", self._server.described(self._process))
            self.connection.close("a service orders nothing")
        elif isinstance(message, IssueToken):
            self._server.issue(message, self._send)
        else:
            self._server.registrar.ordered(message, self._send)

    def _send(self, answer: FromNotaryAdmin) -> None:
        with suppress(ConnectionError):  # the record says what was done; who asked can look
            self.connection.send(answer)


@dataclass(frozen=True, slots=True)
class _Sockets:
    notary: socket.socket
    admin: socket.socket


@contextmanager
def _sockets(config: NotaryConfig, notary: socket.socket | None, admin: socket.socket | None) -> Iterator[_Sockets]:
    """Those that were handed in, or fresh ones; closed at the end. Who connects now waits for the first accept."""
    with (
        notary or listen(config.socket_path, mode=config.socket_mode) as for_peers,
        admin or listen(config.admin_socket_path, mode=config.admin_socket_mode) as for_operators,
    ):
        yield _Sockets(for_peers, for_operators)


class _Server:
    def __init__(
        self,
        config: NotaryConfig,
        journal: Journal,
        desk: Desk,
        signer: TokenSigner,
        registrar: "Registrar",
        clock: Clock,
        process_of: Callable[[socket.socket], Process],
    ) -> None:
        self._config = config
        self._journal = journal
        self.desk = desk
        self._signer = signer
        self.registrar = registrar
        registrar.gateways = self._gateways
        self._clock = clock
        self.process_of = process_of
        self.speakers = Speakers()
        self._peers: set[_Peer] = set()
        self.operators: set[_Operator] = set()
        self._gateway_seen = False

    async def serve(self, stop: asyncio.Event, sockets: _Sockets, on_ready: Callable[[], None]) -> None:
        """Until ``stop`` is set, or the log contradicts what was signed (``Fault``)."""
        config = self._config
        orphans = asyncio.get_running_loop().call_later(config.orphan_grace_seconds, self._nobody_came)
        tasks = (
            asyncio.create_task(stop.wait()),
            asyncio.create_task(self._journal.publish_forever(config.checkpoint_interval_seconds)),
            asyncio.create_task(self.registrar.run()),
            asyncio.create_task(
                accept_forever(
                    sockets.notary,
                    allowed_uids=config.gateway_uids | config.warden_uids,
                    welcome=lambda sock: self._peers.add(_Peer(sock, self)),
                )
            ),
            asyncio.create_task(
                accept_forever(
                    sockets.admin,
                    allowed_uids=config.operator_uids,
                    welcome=lambda sock: self.operators.add(_Operator(sock, self)),
                )
            ),
        )
        on_ready()
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()  # the stop event's, or the failure of another
        finally:
            orphans.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._part()

    def _part(self) -> None:
        if not any(peer.role == "gateway" for peer in self._peers):
            self.desk.close_lost(frozenset(), "no gateway was connected when the notary stopped")
        for peer in tuple(self._peers):
            peer.connection.close("the notary stops")
        for operator in tuple(self.operators):
            operator.connection.close("the notary stops")

    # --- gateways and wardens ---------------------------------------------------------------------------------------

    @contextmanager
    def speakers_known(self, beside: Mapping[Process, str]) -> Iterator[None]:
        """Who speaks as what, beginning with those who live already; watched until the end."""
        try:
            for process, role in beside.items():
                self.speakers.claim(process, role)
            yield
        finally:
            self.speakers.close()

    def described(self, process: Process) -> str:
        return f"{self.speakers.role_of(process)} (pid {process.pid}, uid {process.uid})"

    def uids_of(self, role: str) -> frozenset[int]:
        return self._config.gateway_uids if role == "gateway" else self._config.warden_uids

    def greeted(self, peer: _Peer, alive: frozenset[str]) -> None:
        """A role has one speaker: whoever comes last replaces the one before."""
        for other in tuple(self._peers):
            if other is not peer and other.role == peer.role:
                other.connection.close(f"another {peer.role} has come")
        if peer.role == "gateway":
            self._gateway_seen = True
            self.desk.close_lost(alive, "a gateway connected that does not know this request")
            self.registrar.tell_all(peer)

    def _gateways(self) -> list[_Peer]:
        return [peer for peer in self._peers if peer.role == "gateway"]

    def gone(self, peer: _Peer, why: str) -> None:
        self._peers.discard(peer)
        _log.info("%s disconnected: %s", peer.role or "a peer", why)

    def _nobody_came(self) -> None:
        if not self._gateway_seen:
            self.desk.close_lost(frozenset(), "no gateway came after the notary started")

    # --- the operator -----------------------------------------------------------------------------------------------

    def issue(self, request: IssueToken, answer: Callable[[TokenSigned | Failed], None]) -> None:
        """Signs a token and hands it over once its record is durable; otherwise nobody gets it."""
        try:
            signed = self._signer.sign(request, now_seconds=self._clock.wall_seconds())
        except Refused as refused:
            answer(Failed(call=request.call, reason=refused.reason.code, detail=refused.detail))
            return

        def recorded(outcome: Outcome) -> None:
            if isinstance(outcome, Written):
                answer(
                    TokenSigned(
                        call=request.call,
                        token=signed.token,
                        token_id=signed.token_id,
                        expires_at_seconds=signed.expires_at_seconds,
                    )
                )
            else:
                detail = outcome.detail[:_MAX_DETAIL_CHARACTERS]
                answer(Failed(call=request.call, reason="audit-unavailable", detail=detail))

        record = TokenIssued(
            subject=request.subject,
            client_id=request.client_id,
            groups=request.groups,
            models=request.models,
            token_id=signed.token_id,
            token_sha256=signed.token_sha256,
            expires_at_seconds=signed.expires_at_seconds,
        )
        self._journal.submit(record, recorded, urgent=True)
