"""The parameters of a request to the authorization server, and the client's credentials in its header: pairs of text ->
what two readers cannot read differently.

Trusts: nothing.
Promises: a parameter is there once, but for those that RFC 8707 and RFC 8693 let be repeated; its value is printable
    ASCII (RFC 6749 appendix A) of bounded length. What nobody here knows is left out (section 3.1), as is what has no
    value.
Not here: which parameters a grant needs (``grants``), and what they are worth.
"""

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from appliance.core.refusals import Reason, Refused

MAX_PARAMETERS: Final = 32
MAX_CHARACTERS: Final = 1024
MAX_TOKEN_CHARACTERS: Final = 8192
MAX_SCOPES: Final = 64
MAX_SCOPE_CHARACTERS: Final = 255
"""A scope is a group (``core.clients.Group``)."""
_LONGER: Final = MappingProxyType(
    {
        "scope": 16_384,
        "client_assertion": MAX_TOKEN_CHARACTERS,
        "token": MAX_TOKEN_CHARACTERS,
        "subject_token": MAX_TOKEN_CHARACTERS,
    }
)
_KNOWN: Final = frozenset(
    {
        *("grant_type", "scope", "resource", "audience", "refresh_token", "token", "token_type_hint"),
        *("client_id", "client_secret", "client_assertion", "client_assertion_type"),
        *("subject_token", "subject_token_type", "requested_token_type", "actor_token", "actor_token_type"),
    }
)
_TARGETS: Final = frozenset({"resource", "audience"})
"""Which may be repeated (RFC 8707 section 2, RFC 8693 section 2.1)."""

_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
"""RFC 6749 section 3.3."""
_BASIC = re.compile(r"(?i:basic) +((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)")
"""RFC 7617 section 2, RFC 9110 section 11.4."""
_FORM_ENCODED = re.compile(rb"(?:[\x21-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})+")


class Form(NamedTuple):
    """``targets`` are all values of ``resource`` and ``audience``, which are in no ``values``."""

    values: Mapping[str, str]
    targets: tuple[str, ...]


def read(unverified_pairs: Iterable[tuple[str, str]]) -> Form:
    """Raises ``Refused(OAUTH_REQUEST_INVALID)``, or ``Refused(SCOPE_INVALID | TARGET_INVALID)`` for a value of those
    parameters that cannot be one."""
    names: set[str] = set()
    values: dict[str, str] = {}
    targets: list[str] = []
    for count, (name, value) in enumerate(unverified_pairs, 1):
        if count > MAX_PARAMETERS:
            raise _invalid(f"more than {MAX_PARAMETERS} parameters")
        if name in names and name not in _TARGETS:
            raise _invalid("a parameter is repeated")
        names.add(name)
        if not value or name not in _KNOWN:
            continue
        if len(value) > _LONGER.get(name, MAX_CHARACTERS) or not _PRINTABLE.fullmatch(value):
            raise Refused(_of_its_own(name), f"{name} is too long, or not printable ASCII")
        if name in _TARGETS:
            targets.append(value)
        else:
            values[name] = value
    return Form(MappingProxyType(values), tuple(targets))


def _of_its_own(name: str) -> Reason:
    if name in _TARGETS:
        return Reason.TARGET_INVALID
    return Reason.SCOPE_INVALID if name == "scope" else Reason.OAUTH_REQUEST_INVALID


def scopes(unverified_scope: str) -> tuple[str, ...]:
    """The names in the value of ``scope``, each once. Raises ``Refused(SCOPE_INVALID)``."""
    if not _SCOPE.fullmatch(unverified_scope):
        raise Refused(Reason.SCOPE_INVALID, "the scope is not names with one space between them")
    names = tuple(dict.fromkeys(unverified_scope.split(" ")))
    if len(names) > MAX_SCOPES or max(map(len, names)) > MAX_SCOPE_CHARACTERS:
        raise Refused(Reason.SCOPE_INVALID, f"more than {MAX_SCOPES} names, or one that is too long for a group")
    return names


def basic(unverified_authorization: str) -> tuple[str, str]:
    """The header -> client id and secret, both decoded once more as in a form (RFC 6749 section 2.3.1).

    Raises ``Refused(CLIENT_INVALID)``.
    """
    match = _BASIC.fullmatch(unverified_authorization) if len(unverified_authorization) <= 2 * MAX_CHARACTERS else None
    if match is None:
        raise _unproven("the Authorization header is not Basic")
    client_id, _, secret = b64decode(match[1]).partition(b":")
    return _decoded(client_id), _decoded(secret)


def _decoded(encoded: bytes) -> str:
    if not _FORM_ENCODED.fullmatch(encoded):
        raise _unproven("the credentials are not encoded as in a form")
    try:
        text = unquote_to_bytes(encoded.replace(b"+", b" ")).decode("ascii")
    except UnicodeDecodeError:
        raise _unproven("the credentials are not ASCII") from None
    return text


def _invalid(detail: str) -> Refused:
    return Refused(Reason.OAUTH_REQUEST_INVALID, detail)


def _unproven(detail: str) -> Refused:
    return Refused(Reason.CLIENT_INVALID, detail)
