"""What a client may have, judged by what an operator registered.

The authorization server judges first and says it better; this is the second judgement, by those who sign. It trusts
nothing of the first: a gateway that is taken over gets what registered clients may have, and no more.
"""

from collections.abc import Collection
from typing import Final

from appliance.core.clients import TOKEN_EXCHANGE, Client, Family, GrantOrder, Party, RefreshOrder
from appliance.core.refusals import Reason, Refused

ANY_MODEL: Final = "*"


def check_client(client: Client) -> None:
    """Raises ``Refused(FIELD_INVALID)`` for a client that could not prove itself, or that proves itself in two ways,
    and for grants of which nothing would come."""
    credentials: dict[str, Collection[object]] = {
        "secrets": client.secrets_sha256,
        "keys": client.keys,
        "certificates": client.certificates,
    }
    own = {"private_key_jwt": "keys", "self_signed_tls_client_auth": "certificates"}.get(
        client.authentication, "secrets"
    )
    if not credentials.pop(own):
        raise _unfit(f"a client that authenticates by {client.authentication} needs {own}")
    if any(credentials.values()):
        raise _unfit(f"a client that authenticates by {client.authentication} has nothing but {own}")
    if len({key.key_id for key in client.keys}) != len(client.keys):
        raise _unfit("two keys have one id")
    if client.grants == ("refresh_token",) or len(set(client.grants)) != len(client.grants):
        raise _unfit("grants: one that a first token comes of, and none twice")
    if (TOKEN_EXCHANGE in client.grants) != bool(client.exchanges):
        raise _unfit("token exchange needs the issuers whose tokens are exchanged, and they need token exchange")
    names = (*client.groups, *client.models, *client.exchanges)
    if not all(name.isprintable() for name in names):
        raise _unfit("a name is not printable")


def takes_away(before: Client, after: Client) -> bool:
    """Whether there was something that the client has no more: what it proved itself with, or what its tokens say."""
    if after.disabled and not before.disabled:
        return True
    return any(
        not set(was) <= set(now)
        for was, now in (
            (before.secrets_sha256, after.secrets_sha256),
            (before.keys, after.keys),
            (before.certificates, after.certificates),
            (before.grants, after.grants),
            (before.groups, after.groups),
            (before.exchanges, after.exchanges),
        )
    ) or not _within(before.models, after.models)


def judge_grant(client: Client | None, order: GrantOrder, *, issuer: str) -> Client:
    """A client with the order that it may give; ``issuer`` is our own. Raises
    ``Refused(GRANT_INVALID | SCOPE_INVALID)``."""
    client = _active(client)
    if order.grant == "refresh_token" or order.grant not in client.grants:
        raise _invalid("this grant is not registered for the client")
    if order.refreshable and "refresh_token" not in client.grants:
        raise _invalid("refresh tokens are not registered for the client")
    if not set(order.groups) <= set(client.groups):
        raise Refused(Reason.SCOPE_INVALID, "groups beyond those of the client")
    if not _within(order.models, client.models):
        raise _invalid("models beyond those of the client")
    if order.ttl_seconds > client.ttl_seconds:
        raise _invalid("a longer life than the client's tokens have")
    _judge_certificate(client, order.certificate_sha256)
    _judge_subject(client, order, issuer)
    return client


def judge_holder(
    client: Client | None, family: Family | None, order: RefreshOrder, *, now_seconds: int
) -> tuple[Client, Family]:
    """Both, where this client may hold a refresh token of the family, whether or not it is the current one. Raises
    ``Refused(GRANT_INVALID)``."""
    client = _active(client)
    if "refresh_token" not in client.grants:
        raise _invalid("refresh tokens are not registered for the client")
    if family is None or family.client_id != order.client_id:
        raise _invalid("no such family of refresh tokens is this client's")
    if now_seconds >= family.expires_at_seconds:
        raise _invalid("the family of refresh tokens has expired")
    if (family.certificate_sha256, family.jkt) != (order.certificate_sha256, order.jkt):
        raise _invalid("the refresh token is bound to another key or certificate")
    return client, family


def refreshed(client: Client, family: Family, groups: tuple[str, ...] | None) -> GrantOrder:
    """What the current refresh token of a family gives. ``groups`` None are all. Raises ``Refused(SCOPE_INVALID)`` for
    groups that the family does not have, ``Refused(GRANT_INVALID)`` for what the client has no more."""
    if not set(groups or ()) <= set(family.groups):
        raise Refused(Reason.SCOPE_INVALID, "groups beyond those of the refresh token")
    if not set(family.groups) <= set(client.groups) or not _within(family.models, client.models):
        raise _invalid("the client no longer has what its refresh token has")
    _judge_certificate(client, family.certificate_sha256)
    return GrantOrder(
        client_id=client.client_id,
        grant="refresh_token",
        subject=family.subject,
        groups=family.groups if groups is None else groups,
        models=family.models,
        acting=family.acting,
        certificate_sha256=family.certificate_sha256,
        jkt=family.jkt,
        ttl_seconds=min(family.ttl_seconds, client.ttl_seconds),
        refreshable=True,
    )


def _active(client: Client | None) -> Client:
    if client is None or client.disabled:
        raise _invalid("no such client is registered, or it is disabled")
    return client


def _within(models: Collection[str], registered: Collection[str]) -> bool:
    return ANY_MODEL in registered or set(models) <= set(registered)


def _judge_certificate(client: Client, certificate_sha256: str | None) -> None:
    """Who proves itself by its certificate has tokens of that certificate (RFC 8705 sections 2.2 and 3)."""
    by_certificate = client.authentication == "self_signed_tls_client_auth"
    if by_certificate and certificate_sha256 not in client.certificates:
        raise _invalid("bound to no certificate of the client")


def _judge_subject(client: Client, order: GrantOrder, issuer: str) -> None:
    """Our own subjects keep their names, another issuer's are ``<issuer>|<subject>``: who may exchange only the tokens
    of others gets nobody of ours."""
    if order.grant == TOKEN_EXCHANGE:
        if order.acting[:1] != (Party(subject=order.client_id),):
            raise _invalid("an exchanged token names the client, as one of ours, as the first who acts")
        others = tuple(f"{name}|" for name in client.exchanges)
        if issuer not in client.exchanges and not order.subject.startswith(others):
            raise _invalid("a subject of no issuer whose tokens the client may exchange")
    elif order.subject != order.client_id or order.acting:
        raise _invalid("a client asks for itself and acts for nobody")


def _invalid(detail: str) -> Refused:
    return Refused(Reason.GRANT_INVALID, detail)


def _unfit(detail: str) -> Refused:
    return Refused(Reason.FIELD_INVALID, detail)
