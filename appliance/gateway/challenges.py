"""What a client is told about the credentials that it lacks: ``WWW-Authenticate`` (RFC 6750, 9449, 9728), and the
metadata of this server as a protected resource (RFC 9728).

Trusts: the settings for what this server is called and which issuers it believes.
Promises: a challenge names the closed error codes of the RFCs and nothing of the request; the metadata say nothing that
    an operator has not configured.
Not here: which refusal it is (``gate``, ``identity``); its body (``problems``).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from appliance.core.refusals import Reason, Refused

METADATA_PATH: Final = "/.well-known/oauth-protected-resource"
REALM: Final = 'realm="paddock"'

_BEARER_ERRORS: Final[Mapping[Reason, str]] = {
    Reason.TOKEN_MISPLACED: "invalid_request",
    Reason.TOKEN_INVALID: "invalid_token",
    Reason.SCOPE_MISSING: "insufficient_scope",
    Reason.CLAIM_MISSING: "insufficient_scope",
}
"""RFC 6750 section 3.1. For TOKEN_MISSING there is none: section 3, last paragraph but one."""


class Challenges:
    """``public_url`` None: no metadata and no DPoP are offered. ``takes_certificates``: a client may have one, and a
    token that is bound to it (RFC 8705)."""

    def __init__(
        self,
        public_url: str | None = None,
        *,
        issuers: Iterable[str] = (),
        proof_algorithms: Iterable[str] = (),
        takes_certificates: bool = False,
    ) -> None:
        self._algorithms = " ".join(proof_algorithms) if public_url else ""
        self._pointer = f', resource_metadata="{public_url}{METADATA_PATH}"' if public_url else ""
        self.metadata = None
        if public_url is not None:
            self.metadata = _metadata(public_url, sorted(issuers), self._algorithms.split(), takes_certificates)

    def header(self, refusal: Refused) -> bytes | None:
        """The value of ``WWW-Authenticate``, or None where the credentials are not what is wrong.

        Where DPoP is offered both schemes are told; a client whose proof was refused is told of no other.
        """
        reason = refusal.reason
        if reason is Reason.PROOF_INVALID:
            return self._dpop("invalid_dpop_proof").encode("ascii")
        error = _BEARER_ERRORS.get(reason)
        if error is None and reason is not Reason.TOKEN_MISSING:
            return None
        challenge = f"Bearer {REALM}" + (f', error="{error}"' if error else "") + self._pointer
        if reason is Reason.SCOPE_MISSING:
            challenge += f', scope="{refusal.param}"'
        if self._algorithms and reason.status == 401:
            challenge += ", " + self._dpop(error)
        return challenge.encode("ascii")

    def _dpop(self, error: str | None) -> str:
        """RFC 9449 section 7.1."""
        parts = [REALM, *([f'error="{error}"'] if error else [])]
        parts += [f'algs="{self._algorithms}"'] if self._algorithms else []
        return f"DPoP {', '.join(parts)}" + self._pointer


def _metadata(public_url: str, issuers: list[str], algorithms: list[str], takes_certificates: bool) -> bytes:
    """RFC 9728 section 2. The last member stands for certificates, of which false is the default."""
    document: dict[str, Any] = {
        "resource": public_url,
        "authorization_servers": issuers,
        "bearer_methods_supported": ["header"],
        "resource_name": "Paddock",
        "dpop_signing_alg_values_supported": algorithms,
        "dpop_bound_access_tokens_required": False,
        **({"tls_client_certificate_bound_access_tokens": True} if takes_certificates else {}),
    }
    return msgspec.json.encode({name: value for name, value in document.items() if value != []})
