"""What clients ask for, as changes of the registry: tokens, the next of a family, the end of one.

A refresh token is ``<family id>.<secret>``, both random. The secret changes with each use, so that one which is used
twice was in two hands: then the family ends, with all that came of it (RFC 9700 section 4.14.2). Which of the two hands
was a thief's nobody can know, and a secret that was never issued counts as one that was: only a digest of the current
one is kept.

Trusts: what is registered; the gateway for who asks, and for the person in a token that is exchanged.
Promises: a deed names every record that must be durable before anything of it is committed or answered. Whatever ends
    is in it as ``ended``, to be told to gateways.
Not here: the judgement itself (``core.grants``); durability and order (``notary.office``).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from appliance.core.clients import (
    MAX_TTL_SECONDS,
    Client,
    EndedClient,
    Family,
    GrantOrder,
    IssuedTokens,
    RefreshOrder,
    RevokedToken,
    RevokeOrder,
)
from appliance.core.grants import judge_grant, judge_holder, refreshed
from appliance.core.records import Record, TokenIssued, TokenRevoked
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS
from appliance.core.values import Digest
from appliance.ipc.messages import Revoked
from appliance.notary.registry import (
    MAX_ENDED,
    MAX_FAMILIES,
    MAX_FAMILIES_OF_CLIENT,
    MAX_LIVING_OF_FAMILY,
    MAX_REVOKED,
    Registry,
)
from appliance.notary.signer import TokenSigner

Why = Literal["operator", "client", "refresh-token-reused"]

_FAMILY_ID_BYTES: Final = 16
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Deed:
    """What came of one order: its answer, which may be a refusal, and what must happen before it is given."""

    answer: Any
    records: tuple[Record, ...] = ()
    ended: Revoked | None = None
    clients: Mapping[str, Client | None] = field(default_factory=dict)


def grant(registry: Registry, signer: TokenSigner, order: GrantOrder, now_seconds: int) -> Deed:
    """Raises ``Refused(GRANT_INVALID | SCOPE_INVALID | AUDIT_UNAVAILABLE)``."""
    client = judge_grant(registry.client(order.client_id), order, issuer=signer.issuer)
    if not order.refreshable:
        return _issue(registry, signer, order, None, now_seconds)
    if registry.n_families_of(client.client_id) >= MAX_FAMILIES_OF_CLIENT or registry.n_families() >= MAX_FAMILIES:
        raise Refused(Reason.GRANT_INVALID, "there are too many families of refresh tokens")
    family = Family(
        family_id=secrets.token_hex(_FAMILY_ID_BYTES),
        client_id=client.client_id,
        grant=order.grant,
        subject=order.subject,
        groups=order.groups,
        models=order.models,
        acting=order.acting,
        certificate_sha256=order.certificate_sha256,
        jkt=order.jkt,
        ttl_seconds=order.ttl_seconds,
        expires_at_seconds=now_seconds + client.family_seconds,
    )
    return _issue(registry, signer, order, family, now_seconds)


def refresh(registry: Registry, signer: TokenSigner, order: RefreshOrder, now_seconds: int) -> Deed:
    """Raises ``Refused`` as ``grant``; a reuse is a deed with a refusal for its answer."""
    family_id, _, unverified_secret = order.unverified_refresh_token.partition(".")
    known, current = registry.family(family_id) or (None, None)
    client, family = judge_holder(registry.client(order.client_id), known, order, now_seconds=now_seconds)
    if Digest.of(unverified_secret.encode()) != current:
        refusal = Refused(Reason.GRANT_INVALID, "the refresh token was used before: its family has ended")
        return end_family(registry, family, "refresh-token-reused", now_seconds, answer=refusal)
    following = refreshed(client, family, order.groups)
    if len(registry.living(family_id, now_seconds)) >= MAX_LIVING_OF_FAMILY:
        raise Refused(Reason.AUDIT_UNAVAILABLE, "too many tokens of this family live: refresh less often")
    return _issue(registry, signer, following, family, now_seconds)


def revoke(registry: Registry, order: RevokeOrder, now_seconds: int) -> Deed:
    """What is unknown, has expired or is another client's is passed over (RFC 7009 section 2.2). Raises
    ``Refused(AUDIT_UNAVAILABLE)`` when there is no room."""
    if registry.client(order.client_id) is None:
        return Deed(None)
    if order.unverified_refresh_token is not None:
        family_id = order.unverified_refresh_token.partition(".")[0]
        return _revoke_family(registry, family_id, order.client_id, now_seconds)
    if order.token_id is None or registry.holder_of(order.token_id) not in {None, order.client_id}:
        return Deed(None)
    token = RevokedToken(
        token_id=order.token_id, expires_at_seconds=min(order.expires_at_seconds, now_seconds + MAX_TTL_SECONDS)
    )
    if token.expires_at_seconds <= now_seconds - LEEWAY_SECONDS:
        return Deed(None)
    return revoke_token(registry, token, TokenRevoked(why="client", client_id=order.client_id, token_id=token.token_id))


def revoke_token(registry: Registry, token: RevokedToken, record: TokenRevoked) -> Deed:
    """One that was ended is remembered as long as anybody who ended it says that it lives. Raises
    ``Refused(AUDIT_UNAVAILABLE)`` when there is no room."""
    known_until_seconds = registry.revoked_until(token.token_id)
    if known_until_seconds >= token.expires_at_seconds:
        return Deed(None)
    if not known_until_seconds and registry.n_revoked() >= MAX_REVOKED:
        raise Refused(Reason.AUDIT_UNAVAILABLE, "too many tokens are revoked at once")
    registry.put_revoked(token)
    return Deed(None, records=(record,), ended=Revoked(tokens=(token,)))


def end_client(registry: Registry, client_id: str) -> Revoked:
    """All its tokens up to now; where the clock was set back, up to the latest moment that there was. Raises
    ``Refused(AUDIT_UNAVAILABLE)`` when there is no room."""
    known_until_seconds = registry.ended_until(client_id)
    if not known_until_seconds and registry.n_ended() >= MAX_ENDED:
        raise Refused(Reason.AUDIT_UNAVAILABLE, "the tokens of too many clients have ended")
    ended = EndedClient(client_id=client_id, until_seconds=max(registry.latest_seconds, known_until_seconds))
    registry.drop_families_of(client_id)
    registry.put_ended(ended)
    return Revoked(clients=(ended,))


def _revoke_family(registry: Registry, family_id: str, client_id: str, now_seconds: int) -> Deed:
    """Whichever of its refresh tokens is shown: who gives back an old one wants no new one either."""
    found = registry.family(family_id)
    if found is None or found[0].client_id != client_id:
        return Deed(None)
    return end_family(registry, found[0], "client", now_seconds)


def end_family(
    registry: Registry, family: Family, why: Why, now_seconds: int, *, answer: Refused | None = None
) -> Deed:
    """With its access tokens; where there is no room to name them, with all tokens of its client. Raises
    ``Refused(AUDIT_UNAVAILABLE)`` when there is no room for that either."""
    record = TokenRevoked(why=why, client_id=family.client_id, family=family.family_id)
    living = registry.living(family.family_id, now_seconds)
    if registry.n_revoked() + len(living) > MAX_REVOKED:
        all_of_client = TokenRevoked(why=why, client_id=family.client_id)
        return Deed(answer, records=(record, all_of_client), ended=end_client(registry, family.client_id))
    registry.drop_family(family.family_id)
    for token in living:
        registry.put_revoked(token)
    return Deed(answer, records=(record,), ended=Revoked(tokens=living))


def _issue(registry: Registry, signer: TokenSigner, order: GrantOrder, family: Family | None, now_seconds: int) -> Deed:
    if registry.ended_until(order.client_id) >= now_seconds:  # a token of this second would have ended with the others
        raise Refused(Reason.AUDIT_UNAVAILABLE, "the client's tokens have just been ended: ask again in a second")
    signed = signer.sign_grant(order, now_seconds=now_seconds)
    refresh_token = None
    if family is not None:
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        refresh_token = f"{family.family_id}.{secret}"
        registry.put_family(family, Digest.of(secret.encode()))
        registry.put_access(signed.token_id, family.family_id, signed.expires_at_seconds)
    return Deed(
        IssuedTokens(
            access_token=signed.token,
            token_id=signed.token_id,
            groups=order.groups,
            expires_in_seconds=order.ttl_seconds,
            refresh_token=refresh_token,
        ),
        records=(
            TokenIssued(
                subject=order.subject,
                client_id=order.client_id,
                groups=order.groups,
                models=order.models,
                token_id=signed.token_id,
                token_sha256=signed.token_sha256,
                expires_at_seconds=signed.expires_at_seconds,
                grant=order.grant,
                acting=order.acting,
                family=None if family is None else family.family_id,
                certificate_sha256=order.certificate_sha256,
                jkt=order.jkt,
            ),
        ),
    )
