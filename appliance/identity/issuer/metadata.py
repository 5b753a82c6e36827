"""What the authorization server says of itself (RFC 8414).

Trusts: the configured issuer and public URL.
Promises: Authlib finds the document valid, and nothing in it is more than what the endpoints do.
Not here: serving it, at the address of RFC 8414 section 3 (the gateway).
"""

from typing import Any, Final

import msgspec
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata

from appliance.core.clients import TOKEN_EXCHANGE
from appliance.core.oauth import PATHS
from appliance.core.refusals import Misconfigured
from appliance.identity.issuer.assertions import ALGORITHMS
from appliance.identity.issuer.authentication import METHODS

GRANTS: Final = ("client_credentials", "refresh_token", TOKEN_EXCHANGE)
_NAMES: Final = {"token": "token", "revoke": "revocation", "introspect": "introspection"}


class _Metadata(AuthorizationServerMetadata):  # type: ignore[misc]  # Authlib has no types
    def validate_response_types_supported(self) -> None:
        """It has to be there (section 2), and there is no authorization endpoint for it to speak of, where Authlib
        would have one. An invented type would be worse than an empty list."""


def document(*, issuer: str, public_url: str) -> bytes:
    """Raises ``Misconfigured`` for an issuer that cannot have metadata: one that is no https URL, for example."""
    found: dict[str, Any] = {
        "issuer": issuer,
        "response_types_supported": [],
        "grant_types_supported": list(GRANTS),
        "protected_resources": [public_url],
        "tls_client_certificate_bound_access_tokens": True,
    }
    for path, endpoint in PATHS.items():
        name = _NAMES[endpoint]
        found[f"{name}_endpoint"] = public_url + path
        found[f"{name}_endpoint_auth_methods_supported"] = list(METHODS)
        found[f"{name}_endpoint_auth_signing_alg_values_supported"] = list(ALGORITHMS)
    if not (issuer.startswith("https://") and public_url.startswith("https://")):
        # Authlib looks too, unless a variable of the environment tells it not to.
        raise Misconfigured("the authorization server's issuer and public URL must be https")
    try:
        _Metadata(found).validate()
    except ValueError as error:
        raise Misconfigured(f"the authorization server's metadata: {error}") from error
    return msgspec.json.encode(found)
