"""Asking an issuer about an opaque token (RFC 7662): what is sent, and what the answer is worth.

Trusts: the answer to be the issuer's (``https``).
Promises: what ``judge`` returns was called active with exactly ``true`` and read by the issuer's rules; whatever else
    comes is None for inactive, or ``Unreachable``.
Not here: times and scopes (``tokens``), which are judged by the caller's clock.
"""

from base64 import b64encode
from typing import Any
from urllib.parse import quote, urlencode

from appliance.core.refusals import Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.token_claims import IssuerRules, ReadClaims, read
from appliance.identity.https import Unreachable


def form(token: str) -> bytes:
    """RFC 7662 section 2.1."""
    return urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")


def credential(client_id: str, secret: str) -> str:
    """``client_secret_basic``: both are encoded as in a form before they are joined (RFC 6749 section 2.3.1)."""
    pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return "Basic " + b64encode(pair.encode("ascii")).decode("ascii")


def judge(data: bytes, rules: IssuerRules) -> ReadClaims | None:
    """RFC 7662 section 2.2. Raises ``Unreachable`` for an answer that says neither yes nor no.

    ``iss`` and ``aud``, which the RFC leaves optional, are required: a token of another service of the same issuer is
    active too. An issuer may leave ``iss`` out of its own answer; one that is there must be its own.
    """
    try:
        document = check(data, max_depth=8)
    except JsonInvalid as error:
        raise Unreachable(f"the answer about a token is not good JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("active"), bool):
        raise Unreachable("the answer about a token does not say whether it is active")
    if not document["active"]:
        return None
    return _active(document, rules)


def _active(document: dict[str, Any], rules: IssuerRules) -> ReadClaims | None:
    """An active token that is not for us, or says too little, is as good as none."""
    kind = document.get("token_type", "Bearer")
    if not isinstance(kind, str) or kind.lower() not in ("bearer", "dpop"):
        return None
    try:
        claims = read({"iss": rules.issuer} | document, rules)
    except Refused:
        return None
    is_bound = claims.confirmation is not None and claims.confirmation.jkt is not None
    if kind.lower() == "dpop" and not is_bound:  # RFC 9449 section 6.2; without its key anybody could send it
        return None
    return claims
