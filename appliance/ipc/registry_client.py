"""The authorization server's questions to the notary, over the gateway's one connection.

Trusts: the notary.
Promises: nothing is asked twice: an order without an answer may have been carried out, and to give a refresh token
    again would look like a theft.
Not here: the connection (``notary_client``), the judgement (the notary's).
"""

from typing import NoReturn

from appliance.core.clients import Client, GrantOrder, IssuedTokens, RefreshOrder, RevokeOrder
from appliance.core.refusals import Reason, Refused
from appliance.ipc.messages import (
    AskGrant,
    AskRefresh,
    AskRevoke,
    ClientFound,
    FindClient,
    FromNotary,
    Granted,
    NotGranted,
    RevocationDone,
)
from appliance.ipc.notary_client import NotaryClient

_REASONS = {reason.code: reason for reason in (Reason.GRANT_INVALID, Reason.SCOPE_INVALID, Reason.AUDIT_UNAVAILABLE)}


class RegistryClient:
    """Implements ``core.ports.ClientRegistry``."""

    def __init__(self, notary: NotaryClient) -> None:
        """``notary`` is a gateway's, and running."""
        self._notary = notary

    async def client(self, client_id: str) -> Client | None:
        answer = await self._notary.ask(FindClient(call=self._notary.next_call(), client_id=client_id))
        return answer.client if isinstance(answer, ClientFound) else _refuse(answer)

    async def grant(self, order: GrantOrder) -> IssuedTokens:
        answer = await self._notary.ask(AskGrant(call=self._notary.next_call(), order=order))
        return answer.tokens if isinstance(answer, Granted) else _refuse(answer)

    async def refresh(self, order: RefreshOrder) -> IssuedTokens:
        answer = await self._notary.ask(AskRefresh(call=self._notary.next_call(), order=order))
        return answer.tokens if isinstance(answer, Granted) else _refuse(answer)

    async def revoke(self, order: RevokeOrder) -> None:
        answer = await self._notary.ask(AskRevoke(call=self._notary.next_call(), order=order))
        if not isinstance(answer, RevocationDone):
            _refuse(answer)


def _refuse(answer: FromNotary) -> NoReturn:
    if isinstance(answer, NotGranted):
        raise Refused(_REASONS[answer.reason], answer.detail)
    raise Refused(Reason.AUDIT_UNAVAILABLE, "an answer to another question")
