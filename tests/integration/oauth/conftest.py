"""One appliance that believes four foreign issuers, one of which cannot be reached, and a fifth that it does not."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support.appliance import Answer, TestAppliance, appliance
from tests.support.chain_model import chain_model
from tests.support.identity_provider import AUDIENCE, IdentityProvider

PUBLIC_URL = "https://llm.example"
MODELS = "/v1/models"
OPAQUE_CLIENT, OPAQUE_SECRET = "gate:way", "pass%word"
LIMITS = "[limits]\naddress_requests_per_minute = 100000\nprincipal_requests_per_minute = 100000\n"


@dataclass
class Site:
    server: TestAppliance
    curve: IdentityProvider
    rsa: IdentityProvider
    opaque: IdentityProvider
    dark: IdentityProvider
    stranger: IdentityProvider

    def get(self, token: str | None, path: str = MODELS, **headers: str) -> Answer:
        return self.server.request("GET", path, token=token, headers=headers or None)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("oauth")
    secret = folder / "secret"
    secret.write_text(OPAQUE_SECRET + "\n")
    secret.chmod(0o600)
    with ExitStack() as stack:
        curve, rsa, opaque, stranger = (
            stack.enter_context(IdentityProvider(folder / name, algorithm).serving())
            for name, algorithm in (("curve", "ES256"), ("rsa", "RS256"), ("opaque", "ES256"), ("stranger", "ES256"))
        )
        dark = IdentityProvider(folder / "dark")  # it listens, and nobody answers
        stack.callback(dark.close)
        config = "\n".join(
            (
                LIMITS,
                f'[identity]\npublic_url = "{PUBLIC_URL}"',
                curve.settings("curve", scopes=["llm"], refresh_seconds=3600),
                rsa.settings(
                    "rsa",
                    audiences=[AUDIENCE, "llm-too"],
                    audience_list=True,
                    token_types=["JWT"],
                    clients=["chat"],
                    client_claim=["azp"],
                    groups_claim=["realm_access", "roles"],
                    required_claims={"typ": "Bearer"},
                    token_id_claim=[],
                ),
                opaque.settings(
                    "opaque",
                    jwks_uri=None,
                    algorithms=None,
                    introspection_endpoint=f"{opaque.issuer}/introspect",
                    introspection_client_id=OPAQUE_CLIENT,
                    introspection_secret_file=str(secret),
                ),
                dark.settings("dark"),
            )
        )
        (folder / "appliance").mkdir()
        server = stack.enter_context(appliance(folder / "appliance", {"chain": chain_model()}, config))
        one = Site(server, curve, rsa, opaque, dark, stranger)
        for token in (curve.token(scope="llm"), rsa_token(rsa)):
            server.wait_until(lambda token=token: one.get(token).status == 200, "keys of an issuer")  # type: ignore[misc]
        yield one


def rsa_token(provider: IdentityProvider, **changes: object) -> str:
    """As Keycloak writes them."""
    fields = {
        "typ": "JWT",
        "client_id": None,
        "azp": "chat",
        "groups": None,
        "realm_access": {"roles": ["people", "offline_access"]},
        "jti": None,
        "aud": ["account", AUDIENCE],
    } | changes
    kind = fields.pop("typ")
    return _with_claim_typ(provider, kind, fields)


def _with_claim_typ(provider: IdentityProvider, kind: object, fields: dict[str, object]) -> str:
    """The claim has the name of the header's member."""
    import jwt

    claims = provider.claims(**({"claim_typ": "Bearer"} | fields))
    said = claims.pop("claim_typ", None)
    claims |= {} if said is None else {"typ": said}
    return jwt.encode(claims, provider.keys["one"], algorithm="RS256", headers={"kid": "one", "typ": kind})
