"""What a token says of its bearer, read and judged by the rules of its issuer: the pure part of verifying it.

The same for the claims of a JWT (RFC 9068) and for the answer of an introspection (RFC 7662 section 2.2). Nothing here
is proof of anything: signatures, and who answered, are ``identity``'s affair.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.core.refusals import Reason, Refused
from appliance.core.values import ActingParty, Value

LEEWAY_SECONDS: Final = 30
MAX_NAME_CHARACTERS: Final = 1024
"""Of a subject, client or token: every record names them, and one that did not fit would be no record. OpenID Connect
Core section 2 has 255 for a subject."""
MAX_ACTING: Final = 4
"""One behind the other, in one token."""

ClaimPath = tuple[str, ...]
"""Names from the outside in: ("realm_access", "roles"). An empty one leads nowhere."""


class IssuerRules(Value, frozen=True, kw_only=True):
    """What tokens of one issuer must be, and where they say what.

    ``token_types`` are the values of ``typ`` that are accepted, "" for none in the header. A ``groups`` of None takes
    the token's groups as they stand; else it maps the issuer's names to ours, and what it does not name is dropped.
    ``models`` are those that its tokens may name where there is no ``models_claim``. ``clients`` and ``scopes``: one of
    the first and all of the second, where there are any.
    """

    issuer: str
    audiences: frozenset[str]
    max_lifetime_seconds: int
    audience_list: bool = False
    token_types: frozenset[str] = frozenset({"at+jwt", "application/at+jwt"})
    subject_claim: ClaimPath = ("sub",)
    client_claim: ClaimPath = ("client_id",)
    token_id_claim: ClaimPath = ("jti",)
    groups_claim: ClaimPath = ("groups",)
    models_claim: ClaimPath = ("models",)
    groups: Mapping[str, str] | None = None
    models: tuple[str, ...] = ()
    clients: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    required_claims: Mapping[str, str] = {}
    refused_claims: frozenset[str] = frozenset()


Sha256Text = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]
"""A SHA-256 in base64url without padding."""


class Confirmation(Value, frozen=True, kw_only=True, rename={"certificate_sha256": "x5t#S256"}):
    """``cnf`` (RFC 7800): the key (RFC 9449 section 6.1) or certificate (RFC 8705 section 3.1) a token is bound to.

    A method that is not among these cannot be confirmed, so it is refused and not passed over.
    """

    jkt: Sha256Text | None = None
    certificate_sha256: Sha256Text | None = None


class _Act(Value, frozen=True, kw_only=True):
    """``act`` (RFC 8693 section 4.1). Whatever else it says, nobody here could judge, so it is refused."""

    sub: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    iss: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType = UNSET
    act: "_Act | UnsetType" = UNSET


class _Registered(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The claims that mean the same everywhere. Others are ignored knowingly: an issuer may add its own."""

    iss: str
    aud: str | Annotated[tuple[str, ...], Meta(max_length=64)]
    exp: int
    iat: int | None = None
    nbf: int | None = None
    scope: str = ""
    cnf: Confirmation | None = None
    act: _Act | UnsetType = UNSET


class ReadClaims(Value, frozen=True, kw_only=True):
    """What a token says, in our words. Verified only if whoever read it had verified it."""

    issuer: str
    subject: str
    client_id: str
    audience: str
    token_id: str
    expires_at_seconds: int
    issued_at_seconds: int | None
    not_before_seconds: int | None
    groups: tuple[str, ...]
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    confirmation: Confirmation | None = None
    acting: Annotated[tuple[ActingParty, ...], Meta(max_length=MAX_ACTING)] = ()


def read(document: Mapping[str, Any], rules: IssuerRules) -> ReadClaims:
    """Claims -> what they say under these rules, times not yet judged. Raises ``Refused(TOKEN_INVALID)``."""
    try:
        said = msgspec.convert(document, _Registered)
    except msgspec.ValidationError as error:
        raise _refused(f"claims: {error}") from error
    if said.iss != rules.issuer:
        raise _refused("another issuer")
    _check_own_claims(document, rules)
    client_id = _text(document, rules.client_claim)
    if rules.clients and client_id not in rules.clients:
        raise _refused("issued to a client that is not configured")
    if said.cnf is not None and said.cnf.jkt is None and said.cnf.certificate_sha256 is None:
        raise _refused("cnf names nothing")
    return ReadClaims(
        issuer=said.iss,
        subject=_text(document, rules.subject_claim),
        client_id=client_id,
        audience=_audience(said.aud, rules),
        token_id=_text(document, rules.token_id_claim) if rules.token_id_claim else "",
        expires_at_seconds=said.exp,
        issued_at_seconds=said.iat,
        not_before_seconds=said.nbf,
        groups=_groups(_texts(document, rules.groups_claim), rules.groups),
        models=_texts(document, rules.models_claim) if rules.models_claim else rules.models,
        scopes=tuple(said.scope.split(" ")) if said.scope else (),
        confirmation=said.cnf,
        acting=_acting(said),
    )


def check_within(claims: ReadClaims, rules: IssuerRules) -> None:
    """For claims that another process read: they say nothing that ``read`` could not have said under these rules.

    Raises ``Refused(TOKEN_INVALID)``.
    """
    groups = None if rules.groups is None else set(rules.groups.values())
    if (
        claims.issuer != rules.issuer
        or claims.audience not in rules.audiences
        or (rules.clients and claims.client_id not in rules.clients)
        or (groups is not None and not groups.issuperset(claims.groups))
        or (not rules.models_claim and claims.models != rules.models)
        or max(map(len, (claims.subject, claims.client_id, claims.token_id))) > MAX_NAME_CHARACTERS
        or any(one != _party(one.issuer, one.subject) for one in claims.acting)
        or (claims.acting and claims.acting[0].issuer != rules.issuer)
    ):
        raise _refused("claims beyond the rules of their issuer")


def check_times(claims: ReadClaims, *, max_lifetime_seconds: int, now_seconds: int) -> None:
    """Raises ``Refused(TOKEN_INVALID)``."""
    check_period(
        claims.issued_at_seconds,
        claims.expires_at_seconds,
        not_before=claims.not_before_seconds,
        max_lifetime_seconds=max_lifetime_seconds,
        now_seconds=now_seconds,
    )


def check_period(
    issued: int | None, expires: int, *, not_before: int | None, max_lifetime_seconds: int, now_seconds: int
) -> None:
    """All in seconds since 1970. Raises ``Refused(TOKEN_INVALID)``."""
    if issued is not None and not 0 < expires - issued <= max_lifetime_seconds:
        raise _refused("the lifetime is not within the horizon")
    if expires > now_seconds + max_lifetime_seconds + LEEWAY_SECONDS:
        raise _refused("it expires beyond the horizon")
    if max(issued or 0, not_before or 0) > now_seconds + LEEWAY_SECONDS:
        raise _refused("it is not valid yet")
    check_not_expired(expires, now_seconds)


def check_not_expired(expires_at_seconds: int, now_seconds: int) -> None:
    """RFC 7519 section 4.1.4: *on* or after that time it must not be accepted."""
    if now_seconds >= expires_at_seconds + LEEWAY_SECONDS:
        raise _refused("expired")


def check_scopes(claims: ReadClaims, rules: IssuerRules) -> None:
    """Raises ``Refused(SCOPE_MISSING)``: the token is good, and not for this (RFC 6750 section 3.1)."""
    if not rules.scopes <= frozenset(claims.scopes):
        raise Refused(Reason.SCOPE_MISSING, "not all of the scopes", param=" ".join(sorted(rules.scopes)))


def _check_own_claims(document: Mapping[str, Any], rules: IssuerRules) -> None:
    for name, wanted in rules.required_claims.items():
        if document.get(name) != wanted:
            raise _refused(f"claims: {name} is not what is configured")
    if rules.refused_claims & document.keys():
        raise _refused("claims of another kind of token")


def _acting(said: _Registered) -> tuple[ActingParty, ...]:
    """The nearest first. Where ``act`` names no issuer, it is the token's own, in whose names its subject is one.

    Policy judges the nearest, so an issuer cannot let another's client act; those behind it are there to be recorded
    only (RFC 8693 section 4.1).
    """
    parties: list[ActingParty] = []
    act = said.act
    while act is not UNSET:
        if len(parties) == MAX_ACTING:
            raise _refused(f"claims: more than {MAX_ACTING} act for each other")
        parties.append(_party(said.iss if act.iss is UNSET else act.iss, act.sub))
        act = act.act
    if parties and parties[0].issuer != said.iss:
        raise _refused("claims: act names a client of another issuer")
    return tuple(parties)


def _party(issuer: str, subject: str) -> ActingParty:
    return ActingParty(issuer=issuer, subject=subject)


def _audience(said: str | tuple[str, ...], rules: IssuerRules) -> str:
    if isinstance(said, str):
        found = said if said in rules.audiences else None
    else:
        found = next((name for name in said if rules.audience_list and name in rules.audiences), None)
    if found is None:
        raise _refused("another audience")
    return found


_ABSENT: Final = object()


def _at(document: Mapping[str, Any], path: ClaimPath) -> Any:
    found: Any = document if path else _ABSENT
    for name in path:
        found = found.get(name, _ABSENT) if isinstance(found, Mapping) else _ABSENT
    return found


def _text(document: Mapping[str, Any], path: ClaimPath) -> str:
    found = _at(document, path)
    if not isinstance(found, str):
        raise _refused(f"claims: no text at {'.'.join(path)}")
    if len(found) > MAX_NAME_CHARACTERS:
        raise _refused(f"claims: more than {MAX_NAME_CHARACTERS} characters at {'.'.join(path)}")
    return found


def _texts(document: Mapping[str, Any], path: ClaimPath) -> tuple[str, ...]:
    found = _at(document, path)
    if found is _ABSENT:
        return ()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _refused(f"claims: no list of texts at {'.'.join(path)}")
    return tuple(found)


def _groups(said: tuple[str, ...], ours: Mapping[str, str] | None) -> tuple[str, ...]:
    """A foreign issuer says names of its own; only the operator says which of our groups one stands for."""
    if ours is None:
        return said
    return tuple(dict.fromkeys(ours[name] for name in said if name in ours))


def _refused(detail: str) -> Refused:
    return Refused(Reason.TOKEN_INVALID, detail)
