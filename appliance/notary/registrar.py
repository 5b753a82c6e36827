"""Messages about clients and tokens -> orders in the office -> answers; and what has ended -> gateways.

Trusts: its caller that a gateway asks, or an operator orders.
Promises: an answer follows its record and its commit. A gateway is told of all that has ended when it comes, and of
    whatever ends later as soon as that counts, in this order.
Not here: who may say what (``notary.main``).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from appliance.core.clients import Client, EndedClient, RevokedToken
from appliance.core.refusals import Reason, Refused
from appliance.ipc.frames import encoded_bytes
from appliance.ipc.messages import (
    AskGrant,
    AskRefresh,
    AskRegistry,
    AskRevoke,
    ClientFound,
    ClientList,
    EndTokens,
    Failed,
    FamilyList,
    FindClient,
    FromNotaryAdmin,
    FromRegistry,
    Granted,
    ListClients,
    ListFamilies,
    NotGranted,
    OnClients,
    PutClient,
    RemoveClient,
    RevocationDone,
    Revoked,
)
from appliance.notary import granting, operating
from appliance.notary.clock import Clock
from appliance.notary.files import Files
from appliance.notary.granting import Deed
from appliance.notary.journal import Journal
from appliance.notary.office import Office, Work
from appliance.notary.registry import Registry
from appliance.notary.signer import TokenSigner

FILE_NAME: Final = "registry.db"
REVOKED_IN_A_MESSAGE: Final = 256
"""Tokens, and clients besides: so many fit a frame, however long their names."""
PAGE_BYTES: Final = 256 * 1024
RETRY_SECONDS: Final = 1.0
_MAX_DETAIL_CHARACTERS: Final = 2000

PartT = TypeVar("PartT", bound=msgspec.Struct)


class Told(Protocol):
    """A gateway that is connected."""

    def tell(self, revoked: Revoked) -> None: ...


class Registrar:
    """``gateways`` says which are connected."""

    def __init__(
        self,
        files: Files,
        state_dir: Path,
        journal: Journal,
        signer: TokenSigner,
        clock: Clock,
    ) -> None:
        """Opens the registry. Raises ``Fault`` or ``Misconfigured`` when it cannot be used."""
        self._registry = Registry(files, state_dir / FILE_NAME)
        self._clients = self._registry.clients()
        self._signer = signer
        self._office = Office(
            self._registry, journal, clock, carried_out=self._carried_out, start_over=self._read_again
        )
        self.gateways: Callable[[], Iterable[Told]] = lambda: ()

    async def run(self) -> None:
        """Raises as ``Office.run``."""
        await self._office.run()

    def close(self) -> None:
        self._office.close()

    # --- gateways ---------------------------------------------------------------------------------------------------

    def asked(self, question: AskRegistry, answer: Callable[[FromRegistry], None]) -> None:
        """``answer`` may be called before this returns."""
        call = question.call
        if isinstance(question, FindClient):
            client = self._clients.get(question.client_id)
            answer(ClientFound(call=call, client=None if client is None or client.disabled else client))
        elif isinstance(question, AskRevoke):
            self._office.submit(
                lambda now: granting.revoke(self._registry, question.order, now),
                lambda found: answer(_refusal(call, found) or RevocationDone(call=call)),
            )
        else:
            self._office.submit(
                self._work(question),
                lambda found: answer(_refusal(call, found) or Granted(call=call, tokens=found)),
            )

    def tell_all(self, gateway: Told) -> None:
        """All that has ended so far; later ends follow by themselves."""
        self._office.submit(lambda _now: Deed(self._all_revoked()), partial(self._tell_all, gateway))

    def _tell_all(self, gateway: Told, found: Any) -> None:
        if not isinstance(found, Refused):
            for page in found:
                gateway.tell(page)
        elif gateway in self.gateways():  # until then it lets no token of ours pass
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.tell_all, gateway)

    def _all_revoked(self) -> list[Revoked]:
        return list(pages(self._registry.revoked(), self._registry.ended()))

    def _work(self, question: AskGrant | AskRefresh) -> Work:
        if isinstance(question, AskGrant):
            return lambda now: granting.grant(self._registry, self._signer, question.order, now)
        return lambda now: granting.refresh(self._registry, self._signer, question.order, now)

    # --- operators --------------------------------------------------------------------------------------------------

    def ordered(self, order: OnClients, answer: Callable[[FromNotaryAdmin], None]) -> None:
        self._office.submit(
            lambda now: self._deed(order, now),
            lambda found: answer(_failure(order.call, found) or _answer(order, found)),
            of_operator=True,
        )

    def _deed(self, order: OnClients, now_seconds: int) -> Deed:
        registry = self._registry
        if isinstance(order, PutClient):
            return operating.put(registry, order.client, order.before)
        if isinstance(order, RemoveClient):
            return operating.remove(registry, order.client_id)
        if isinstance(order, EndTokens):
            return operating.end_tokens(registry, order, now_seconds)
        if isinstance(order, ListFamilies):
            return Deed(operating.families(registry, order.client_id, order.after, now_seconds))
        clients = registry.clients()
        return Deed(([clients[name] for name in sorted(clients) if name > order.after], False))

    # --- the office -------------------------------------------------------------------------------------------------

    def _carried_out(self, deed: Deed) -> None:
        for client_id, client in deed.clients.items():
            if client is None:
                self._clients.pop(client_id, None)
            else:
                self._clients[client_id] = client
        if deed.ended is not None:
            for gateway in tuple(self.gateways()):
                gateway.tell(deed.ended)

    def _read_again(self) -> None:
        """Nobody knows whether the last turn counted: whoever was told something is told all."""
        self._office.submit(lambda _now: Deed(self._registry.clients()), self._clients_read)
        for gateway in tuple(self.gateways()):
            self.tell_all(gateway)

    def _clients_read(self, found: dict[str, Client] | Refused) -> None:
        if not isinstance(found, Refused):  # else the registry is read again, and so are they
            self._clients = found


def pages(tokens: Sequence[RevokedToken], clients: Sequence[EndedClient]) -> Iterator[Revoked]:
    """The whole list as a gateway gets it: at least one message, the first ``anew``, the last ``complete``."""
    starts = range(0, max(len(tokens), len(clients), 1), REVOKED_IN_A_MESSAGE)
    for start in starts:
        end = start + REVOKED_IN_A_MESSAGE
        yield Revoked(
            tokens=tuple(tokens[start:end]),
            clients=tuple(clients[start:end]),
            anew=start == 0,
            complete=start == starts[-1],
        )


def _answer(order: OnClients, found: Any) -> FromNotaryAdmin:
    if isinstance(order, PutClient | RemoveClient):
        return ClientFound(call=order.call, client=found)
    if isinstance(order, ListClients):
        clients, more = _page(*found)
        return ClientList(call=order.call, clients=clients, more=more)
    if isinstance(order, ListFamilies):
        families, more = _page(*found)
        return FamilyList(call=order.call, families=families, more=more)
    return RevocationDone(call=order.call)


def _page(parts: Sequence[PartT], more: bool) -> tuple[tuple[PartT, ...], bool]:
    """As many as one frame holds, and whether there are more."""
    size_bytes = 0
    for position, part in enumerate(parts):
        size_bytes += encoded_bytes(part)
        if position and size_bytes > PAGE_BYTES:
            return tuple(parts[:position]), True
    return tuple(parts), more


def _refusal(call: int, found: Any) -> NotGranted | None:
    if not isinstance(found, Refused):
        return None
    detail = found.detail[:_MAX_DETAIL_CHARACTERS]
    if found.reason is Reason.GRANT_INVALID:
        return NotGranted(call=call, reason="grant-invalid", detail=detail)
    if found.reason is Reason.SCOPE_INVALID:
        return NotGranted(call=call, reason="scope-invalid", detail=detail)
    return NotGranted(call=call, reason="audit-unavailable", detail=detail)


def _failure(call: int, found: Any) -> Failed | None:
    if not isinstance(found, Refused):
        return None
    return Failed(call=call, reason=found.reason.code, detail=found.detail[:_MAX_DETAIL_CHARACTERS])
