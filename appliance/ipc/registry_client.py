"""The authorization server's questions to the notary, over the gateway's one connection.

What strangers send is in these questions, and the notary ends the connection of a gateway that sends what it cannot
read: so each is read here first, as the notary will.

Trusts: the notary.
Promises: no question ends the connection. Nothing is asked twice: an order without an answer may have been carried out,
    and to show a refresh token again would look like a theft.
Not here: the connection (``notary_client``), the judgement (the notary's).
"""

from typing import Final, NoReturn

from appliance.core.clients import Client, GrantOrder, IssuedTokens, RefreshOrder, RevokeOrder
from appliance.core.refusals import Reason, Refused
from appliance.ipc.frames import FrameDecoder, FrameError, encode
from appliance.ipc.messages import (
    AskGrant,
    AskRefresh,
    AskRegistry,
    AskRevoke,
    ClientFound,
    FindClient,
    FromNotary,
    Granted,
    NotGranted,
    RevocationDone,
)
from appliance.ipc.notary_client import NotaryClient

_REASONS: Final = {
    reason.code: reason for reason in (Reason.GRANT_INVALID, Reason.SCOPE_INVALID, Reason.AUDIT_UNAVAILABLE)
}
_AS_THE_NOTARY: Final = FrameDecoder[AskRegistry](AskRegistry)


class RegistryClient:
    """Implements ``core.ports.ClientRegistry``."""

    def __init__(self, notary: NotaryClient) -> None:
        """``notary`` is a gateway's, and running."""
        self._notary = notary

    async def client(self, client_id: str) -> Client | None:
        question = FindClient(call=self._notary.next_call(), client_id=client_id)
        if not _can_be_read(question):
            return None
        answer = await self._notary.ask(question)
        return answer.client if isinstance(answer, ClientFound) else _refuse(answer)

    async def grant(self, order: GrantOrder) -> IssuedTokens:
        return await self._tokens(AskGrant(call=self._notary.next_call(), order=order))

    async def refresh(self, order: RefreshOrder) -> IssuedTokens:
        return await self._tokens(AskRefresh(call=self._notary.next_call(), order=order))

    async def revoke(self, order: RevokeOrder) -> None:
        question = AskRevoke(call=self._notary.next_call(), order=order)
        if not _can_be_read(question):
            return  # no token of ours is called so
        answer = await self._notary.ask(question)
        if not isinstance(answer, RevocationDone):
            _refuse(answer)

    async def _tokens(self, question: AskGrant | AskRefresh) -> IssuedTokens:
        if not _can_be_read(question):
            raise Refused(Reason.GRANT_INVALID, "an order that the notary could not read")
        answer = await self._notary.ask(question)
        return answer.tokens if isinstance(answer, Granted) else _refuse(answer)


def _can_be_read(question: AskRegistry) -> bool:
    try:
        _AS_THE_NOTARY.decode(encode(question))
    except (FrameError, ValueError):  # the second of text that is no Unicode
        return False
    return True


def _refuse(answer: FromNotary) -> NoReturn:
    if isinstance(answer, NotGranted):
        raise Refused(_REASONS[answer.reason], answer.detail)
    raise Refused(Reason.AUDIT_UNAVAILABLE, "an answer to another question")
