"""An authorization server on fakes, whose tokens are real ones, and clients of every kind."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import jwt
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.core.clients import TOKEN_EXCHANGE, Client, PublicKey
from appliance.core.oauth import Endpoint, OAuthAnswer, TokenRequest
from appliance.core.token_claims import IssuerRules
from appliance.core.values import Digest
from appliance.identity.compact import base64url
from appliance.identity.issuer.authentication import ASSERTION_TYPE
from appliance.identity.issuer.authority import Authority
from appliance.identity.keys import parse_keys
from appliance.identity.tokens import JwtIssuer, OwnKeys, TokenVerifier
from tests.fakes.registry import FakeClientRegistry
from tests.fakes.steps import Steps
from tests.support.identity_provider import new_key
from tests.vectors.jwt import generate

NOW = generate.NOW
ISSUER = generate.ISSUER
FOREIGN = "https://idp.example"
SECRET = "a-secret-of-256-bits-as-the-operator-was-shown"
NEXT_SECRET = "the-one-that-replaces-it"
CERTIFICATE = sha256(b"a certificate").digest()
OTHER_CERTIFICATE = sha256(b"another certificate").digest()
SIGNING_KEY = new_key("ES256")

SUBJECT_TYPE = "urn:ietf:params:oauth:token-type:access_token"
REFRESH_TYPE = "urn:ietf:params:oauth:token-type:refresh_token"


def registered_key(key: Any, algorithm: Any, key_id: str = "k1") -> PublicKey:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key_id=key_id, algorithm=algorithm, spki=spki)


BASIC = Client(
    client_id="basic",
    authentication="client_secret_basic",
    secrets_sha256=(Digest.of(SECRET.encode()),),
    groups=("staff", "analysts"),
    models=("demo", "large"),
)
POST = Client(
    client_id="post",
    authentication="client_secret_post",
    secrets_sha256=(Digest.of(SECRET.encode()), Digest.of(NEXT_SECRET.encode())),
    groups=("staff",),
    models=("*",),
    introspects=True,
)
SIGNER = Client(
    client_id="signer",
    authentication="private_key_jwt",
    keys=(registered_key(SIGNING_KEY, "ES256"),),
    groups=("staff",),
    models=("demo",),
)
HOLDER = Client(
    client_id="holder",
    authentication="self_signed_tls_client_auth",
    certificates=(base64url(CERTIFICATE),),
    grants=("client_credentials", "refresh_token", TOKEN_EXCHANGE),
    groups=("staff",),
    models=("demo",),
    exchanges=(ISSUER,),
)
CHAT = Client(
    client_id="chat",
    authentication="client_secret_basic",
    secrets_sha256=(Digest.of(SECRET.encode()),),
    grants=("client_credentials", "refresh_token", TOKEN_EXCHANGE),
    groups=("staff", "analysts", "night"),
    models=("demo", "large"),
    exchanges=(ISSUER, FOREIGN),
    ttl_seconds=300,
)
OFF = msgspec.structs.replace(BASIC, client_id="off", disabled=True)
CLIENTS = (BASIC, POST, SIGNER, HOLDER, CHAT, OFF)

_FOREIGN_RULES = IssuerRules(
    issuer=FOREIGN,
    audiences=frozenset({generate.AUDIENCE}),
    max_lifetime_seconds=generate.MAX_LIFETIME,
    models=("demo", "tiny"),
    models_claim=(),
)


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[bytes, bytes]
    whole: OAuthAnswer

    @property
    def error(self) -> str:
        """The code that the caller is told, after what every refusal has."""
        assert self.whole.refused is not None
        assert self.status == self.whole.refused.status
        assert set(self.body) == {"error", "error_description"}
        return str(self.body["error"])


class Desk:
    """``now_seconds`` is everybody's clock; ``began_seconds`` when the server's process began."""

    def __init__(self, *clients: Client, began_seconds: int = NOW) -> None:
        self.now_seconds = began_seconds
        self.steps = Steps()
        self.registry = FakeClientRegistry(self.steps, *(clients or CLIENTS))
        keys = parse_keys(
            json.dumps({"keys": [generate.public_jwk(name, key) for name, key in generate.KEYS.items()]}).encode()
        )
        own = IssuerRules(
            issuer=ISSUER,
            audiences=frozenset({generate.AUDIENCE}),
            max_lifetime_seconds=generate.MAX_LIFETIME,
        )
        self.verifier = TokenVerifier(
            [
                JwtIssuer(own, OwnKeys(keys), self.registry.revocations),
                JwtIssuer(_FOREIGN_RULES, OwnKeys(keys)),
            ]
        )
        self.authority = Authority(
            issuer=ISSUER,
            public_url=ISSUER,
            audience=generate.AUDIENCE,
            registry=self.registry,
            verifier=self.verifier,
            now_seconds=lambda: self.now_seconds,
        )
        self.now_seconds = NOW

    def ask(
        self,
        form: Mapping[str, str] | Iterable[tuple[str, str]],
        *,
        endpoint: Endpoint = "token",
        authorization: str | None = None,
        certificate: bytes | None = None,
    ) -> Answer:
        pairs = tuple(form.items()) if isinstance(form, Mapping) else tuple(form)
        request = TokenRequest(
            endpoint=endpoint, form=pairs, authorization=authorization, client_certificate_sha256=certificate
        )
        answer = asyncio.run(self.authority.answer(request))
        headers = dict(answer.headers)
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"pragma"] == b"no-cache"
        return Answer(answer.status, json.loads(answer.body), headers, answer)

    def token(self, client: Client = BASIC, **form: str) -> Any:
        """A good answer of the token endpoint to a client that has a secret."""
        answer = self.ask({"grant_type": "client_credentials"} | form, authorization=basic(client.client_id))
        assert answer.status == 200, answer.whole
        return answer.body

    def exchange(self, token: str, client: Client = CHAT, **form: str) -> Answer:
        asked = {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": token,
            "subject_token_type": SUBJECT_TYPE,
        } | form
        return self.ask(asked, authorization=basic(client.client_id))


def basic(client_id: str, secret: str = SECRET) -> str:
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return "Basic " + b64encode(pair.encode()).decode()


def claims_of(token: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False})


def users_token(issuer: str = ISSUER, **changes: Any) -> str:
    """Of a person, ``alice`` in the groups ``staff`` and ``analysts``, signed by the issuer's own key."""
    claims = generate.CLAIMS | {"iss": issuer, "groups": ["staff", "analysts"], "models": ["demo", "tiny"]}
    return generate.token(claims=generate.changed(claims, changes))


def assertion(
    *,
    key: Any = SIGNING_KEY,
    algorithm: str = "ES256",
    header: dict[str, Any] | None = None,
    client_id: str = "signer",
    **changes: Any,
) -> str:
    """A good one unless told otherwise; a claim of None is left out."""
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": ISSUER,
        "jti": "j-1",
        "iat": NOW,
        "exp": NOW + 60,
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "k1"} if header is None else header)


def by_assertion(text: str, **form: str) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": text,
    } | form
