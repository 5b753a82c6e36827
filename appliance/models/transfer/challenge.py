"""``WWW-Authenticate``: what a registry asks for, and to whom a credential may then go.

RFC 9110 section 11 for the grammar, the distribution project's token specification for ``Bearer``. The scope that a
server suggests is ignored: we ask for what we need.

Trusts: nothing that a server sends.
Promises: ``token_url`` gives a URL of an origin that the operator named (CVE-2025-51471), or raises.
Not here: sending anything (``registry``).
"""

import re
from collections.abc import Set
from typing import Final, Literal
from urllib.parse import urlencode

from appliance.core.values import Value
from appliance.models.transfer.origin import Origin, Url, parse_url
from appliance.models.transfer.refusal import TransferRefused

MAX_CHALLENGE_LENGTH: Final = 4096

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CHALLENGE = re.compile(rf"({_WORD}) +")
_PARAMETER = re.compile(rf'({_WORD})=(?:({_WORD})|"((?:[^"\\\x00-\x1f\x7f]|\\[ -~])*)")')
_BETWEEN = re.compile(r"[ \t]*(?:,[ \t]*|\Z)")


class Challenge(Value, frozen=True, kw_only=True):
    """One scheme that the server offers. ``realm`` is a URL for ``Bearer`` and means nothing for ``Basic``."""

    scheme: Literal["basic", "bearer"]
    realm: str
    service: str | None


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """A field's value -> the challenges that we can answer. Raises ``TransferRefused``."""
    found = []
    for scheme, parameters in _split(header):
        if scheme == "bearer" and "realm" in parameters:
            found.append(Challenge(scheme="bearer", realm=parameters["realm"], service=parameters.get("service")))
        elif scheme == "basic":
            found.append(Challenge(scheme="basic", realm=parameters.get("realm", ""), service=None))
    return tuple(found)


def _split(header: str) -> list[tuple[str, dict[str, str]]]:
    if len(header) > MAX_CHALLENGE_LENGTH:
        raise TransferRefused("challenge-malformed", "the challenge is too long")
    challenges: list[tuple[str, dict[str, str]]] = []
    position = 0
    while position < len(header):
        if matched := _PARAMETER.match(header, position):
            if not challenges:
                raise TransferRefused("challenge-malformed", "a parameter comes before any scheme")
            name = matched[1].lower()
            if name in challenges[-1][1]:
                raise TransferRefused("challenge-malformed", "a parameter occurs twice")
            quoted = matched[3]
            challenges[-1][1][name] = matched[2] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            position = matched.end()
            separator = _BETWEEN.match(header, position)
            if separator is None:
                raise TransferRefused("challenge-malformed", "the challenge cannot be read")
            position = separator.end()
        elif matched := _CHALLENGE.match(header, position):
            challenges.append((matched[1].lower(), {}))
            position = matched.end()
        else:
            raise TransferRefused("challenge-malformed", "the challenge cannot be read")
    return challenges


def token_url(challenge: Challenge, scope: str, allowed: Set[Origin]) -> Url:
    """Where to ask for a token. Raises ``TransferRefused`` for a realm on an origin that nobody named."""
    try:
        realm = parse_url(challenge.realm)
    except ValueError as error:
        raise TransferRefused("realm-malformed", f"the realm is not acceptable: {error}") from None
    if realm.origin not in allowed:
        raise TransferRefused(
            "realm-foreign",
            "the registry sends us to another origin for a token: name it with --auth-origin if it is right",
        )
    query = urlencode([*([("service", challenge.service)] if challenge.service else []), ("scope", scope)])
    return Url(origin=realm.origin, target=f"{realm.target}{'&' if '?' in realm.target else '?'}{query}")
