"""Delegated identity: what a service says, beside its own token, of the user for whom it asks. The pure part.

==========================  ========================================================================================
header                      what is in it
==========================  ========================================================================================
``X-Paddock-User-Token``    the user's own access token, of an issuer that is believed here anyway
``X-OpenWebUI-User-Jwt``    Open WebUI's word about its user: a JWT under HS256, with a secret that it and we know
==========================  ========================================================================================

Nothing here is proof of anything: signatures are ``identity``'s affair, and who may send such a header is asked before.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, UnsetType

from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import MAX_NAME_CHARACTERS, check_period
from appliance.core.values import Value, VerifiedClaims

USER_TOKEN: Final = b"x-paddock-user-token"
OPENWEBUI_JWT: Final = b"x-openwebui-user-jwt"
HEADERS: Final = frozenset({USER_TOKEN, OPENWEBUI_JWT})

GroupsOf = Mapping[str, tuple[str, ...]]


class Service(Value, frozen=True, kw_only=True):
    """Who may speak of users: the bearer of a token of this issuer, client and subject. The subject counts, since a
    person who signed in through that client may have a token of the same client."""

    issuer: str
    client_id: str
    subject: str

    def bears(self, token: VerifiedClaims) -> bool:
        return (token.issuer, token.client_id, token.subject) == (self.issuer, self.client_id, self.subject)


class SignedUserRules(Value, frozen=True, kw_only=True):
    """What such a JWT must be. ``issuer`` is our name for the service's users (``issuer_of_users``), ``jwt_issuer``
    what it writes into ``iss``. Groups are given by role, e-mail address and id, each compared as it stands."""

    issuer: str
    jwt_issuer: str
    max_lifetime_seconds: int
    groups_by_role: GroupsOf
    groups_by_email: GroupsOf
    groups_by_id: GroupsOf


def issuer_of_users(service_issuer: str, name: str) -> str:
    """Of the delegation of this name, which has no ``#`` in it: so no two delegations share one, and the settings see
    to it that no issuer of tokens has such a name."""
    return f"{service_issuer}#{name}"


_Text = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]


class _Claims(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Open WebUI 0.12 writes all of them but ``nbf`` and ``aud``. One that is meant for an audience is not for us,
    since we have no name there. Others are ignored knowingly: a later version may add some."""

    iss: str
    sub: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    iat: int
    exp: int
    nbf: int | UnsetType = msgspec.UNSET
    aud: UnsetType = msgspec.UNSET
    email: _Text = ""
    name: _Text = ""
    role: _Text = ""


class SignedUser(Value, frozen=True, kw_only=True):
    """What the JWT says. Verified only if whoever read it had verified it."""

    subject: str
    groups: tuple[str, ...]


def read_signed_user(document: Mapping[str, Any], rules: SignedUserRules, *, now_seconds: int) -> SignedUser:
    """Raises ``Refused(TOKEN_INVALID)``."""
    try:
        said = msgspec.convert(document, _Claims)
    except msgspec.ValidationError as error:
        raise Refused(Reason.TOKEN_INVALID, f"claims: {error}") from error
    if said.iss != rules.jwt_issuer:
        raise Refused(Reason.TOKEN_INVALID, "another issuer")
    check_period(
        said.iat,
        said.exp,
        not_before=None if said.nbf is msgspec.UNSET else said.nbf,
        max_lifetime_seconds=rules.max_lifetime_seconds,
        now_seconds=now_seconds,
    )
    groups = (
        *rules.groups_by_role.get(said.role, ()),
        *rules.groups_by_email.get(said.email, ()),
        *rules.groups_by_id.get(said.sub, ()),
    )
    return SignedUser(subject=said.sub, groups=tuple(dict.fromkeys(groups)))
