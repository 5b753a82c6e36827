"""From the settings to whose tokens are believed: the joints between ``settings``, ``identity`` and ``gateway``.

Trusts: the settings, and the operator's files that they name.
Promises: what is not configured is not believed; a secret is read from a file that nobody else can read, or not at all.
Not here: the processes (``assemble``), which read these files before they are fenced in.
"""

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.core.delegation import Service, SignedUserRules, issuer_of_users
from appliance.core.ports import Delegation, Revocations
from appliance.core.ports import TokenVerifier as VerifierPort
from appliance.core.refusals import Misconfigured
from appliance.core.token_claims import IssuerRules
from appliance.gateway.challenges import Challenges
from appliance.identity.delegation import SignedUsers, UserTokens
from appliance.identity.dpop import ALGORITHMS, ProofChecker
from appliance.identity.foreign import ForeignKeys, LiaisonLink
from appliance.identity.https import Endpoint, tls_context
from appliance.identity.introspection import credential
from appliance.identity.issuer.authority import Authority
from appliance.identity.keys import KeySet
from appliance.identity.liaison import KeyProvider, TokenProvider
from appliance.identity.tokens import JwtIssuer, OpaqueIssuer, OwnKeys, TokenVerifier
from appliance.ipc.notary_client import NotaryClient
from appliance.ipc.registry_client import RegistryClient
from appliance.settings import DelegationSettings, IssuerSettings, Settings

MAX_SECRET_BYTES: Final = 1024


def verifier(
    config: Settings, own_keys: KeySet, revocations: Revocations, link: LiaisonLink, *, started_at_seconds: int
) -> TokenVerifier:
    """Of our own tokens, and of those of every issuer that is configured, in a process that started then."""
    identity = config.identity
    own = IssuerRules(
        issuer=identity.issuer,
        audiences=frozenset({identity.audience}),
        max_lifetime_seconds=identity.max_lifetime_seconds,
    )
    jwts = [JwtIssuer(own, OwnKeys(own_keys), revocations)]
    opaque = None
    sources = []
    for name, issuer in config.issuer.items():
        if issuer.jwks_uri is None:
            opaque = OpaqueIssuer(_rules(issuer), link.ask, issuer.introspection_cache_seconds)
        else:
            source = ForeignKeys(name, frozenset(issuer.algorithms), keep_seconds=issuer.keep_seconds, link=link)
            sources.append(source)
            jwts.append(JwtIssuer(_rules(issuer), source))
    link.follow(sources)
    proofs = ProofChecker(identity.public_url, since_seconds=started_at_seconds) if identity.public_url else None
    return TokenVerifier(jwts, opaque=opaque, proofs=proofs)


def delegations(config: Settings, verifier: VerifierPort) -> list[tuple[Delegation, DelegationSettings]]:
    """Whose word about users is taken. Raises ``Misconfigured``, also for a secret that is short or that others can
    read."""
    return [(_delegation(config, name, one, verifier), one) for name, one in config.delegation.items()]


def _delegation(config: Settings, name: str, one: DelegationSettings, verifier: VerifierPort) -> Delegation:
    service = Service(
        issuer=one.issuer or config.identity.issuer, client_id=one.client_id, subject=one.subject or one.client_id
    )
    if one.secret_file is None:
        return UserTokens(service, verifier, one.user_issuers)
    rules = SignedUserRules(
        issuer=issuer_of_users(service.issuer, name),
        jwt_issuer=one.jwt_issuer,
        max_lifetime_seconds=one.max_lifetime_seconds,
        groups_by_role=one.groups_by_role,
        groups_by_email=one.groups_by_email,
        groups_by_id=one.groups_by_id,
    )
    return SignedUsers(service, rules, _secret(one.secret_file))


def authority(
    config: Settings, notary: NotaryClient, own: TokenVerifier, *, now_seconds: Callable[[], int]
) -> Authority | None:
    """Our own authorization server, where the operator wants one: where our issuer is known as this server is."""
    identity = config.identity
    if identity.public_url is None or not identity.issues_tokens:
        return None
    return Authority(
        issuer=identity.issuer,
        public_url=identity.public_url,
        audience=identity.audience,
        registry=RegistryClient(notary),
        verifier=own,
        now_seconds=now_seconds,
    )


def challenges(config: Settings) -> Challenges:
    """Our own issuer is one that a client can go to where it issues tokens itself; elsewhere an operator hands them
    out."""
    identity = config.identity
    ours = [identity.issuer] if identity.issues_tokens else []
    return Challenges(
        identity.public_url,
        issuers=[*ours, *(issuer.issuer for issuer in config.issuer.values())],
        proof_algorithms=ALGORITHMS,
        takes_certificates=config.takes_certificates,
    )


def key_providers(config: Settings) -> list[KeyProvider]:
    """Raises ``Misconfigured`` for an address or a file that is not as it must be."""
    return [
        KeyProvider(
            name=name,
            endpoint=_endpoint(name, issuer.jwks_uri),
            tls=tls_context(issuer.ca_file),
            algorithms=frozenset(issuer.algorithms),
            refresh_seconds=issuer.refresh_seconds,
            cooldown_seconds=issuer.cooldown_seconds,
        )
        for name, issuer in config.issuer.items()
        if issuer.jwks_uri is not None
    ]


def token_provider(config: Settings) -> TokenProvider | None:
    """Raises ``Misconfigured``, also for a secret that others can read."""
    for name, issuer in config.issuer.items():
        client_id, secret_file = issuer.introspection_client_id, issuer.introspection_secret_file
        if issuer.introspection_endpoint is not None and client_id is not None and secret_file is not None:
            return TokenProvider(
                name=name,
                endpoint=_endpoint(name, issuer.introspection_endpoint),
                tls=tls_context(issuer.ca_file),
                rules=_rules(issuer),
                credential=credential(client_id, _secret(secret_file)),
            )
    return None


def provider_ports(config: Settings) -> set[int]:
    return {endpoint.port for endpoint in _endpoints(config)}


def load_resolver(config: Settings) -> None:
    """Has the C library load now, for these hosts, what resolves names: its modules are machine code, which cannot be
    loaded behind the fence. Whether a name resolves at the moment does not matter."""
    for host in {endpoint.host for endpoint in _endpoints(config)}:
        with suppress(OSError):
            socket.getaddrinfo(host, 443)


def _endpoints(config: Settings) -> list[Endpoint]:
    addresses = [
        (name, address)
        for name, issuer in config.issuer.items()
        for address in (issuer.jwks_uri, issuer.introspection_endpoint)
    ]
    return [_endpoint(name, address) for name, address in addresses if address is not None]


def _endpoint(name: str, address: str) -> Endpoint:
    try:
        return Endpoint.parse(address)
    except ValueError as error:
        raise Misconfigured(f"issuer {name!r}: {address!r}: {error}") from error


def _rules(issuer: IssuerSettings) -> IssuerRules:
    """An issuer of opaque tokens says itself that a token is no ID token, by calling it active (RFC 7662)."""
    return IssuerRules(
        issuer=issuer.issuer,
        audiences=frozenset(issuer.audiences),
        audience_list=issuer.audience_list,
        max_lifetime_seconds=issuer.max_lifetime_seconds,
        token_types=frozenset(issuer.token_types),
        subject_claim=issuer.subject_claim,
        client_claim=issuer.client_claim,
        token_id_claim=issuer.token_id_claim,
        groups_claim=issuer.groups_claim,
        groups=issuer.groups,
        models_claim=issuer.models_claim,
        models=issuer.models,
        clients=frozenset(issuer.clients),
        scopes=frozenset(issuer.scopes),
        required_claims=issuer.required_claims,
        refused_claims=frozenset(issuer.refused_claims),
    )


def _secret(path: Path) -> str:
    """One line of printable ASCII, in a file that only this user (or root) can read or change."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"cannot read the secret {path}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077 or facts.st_uid not in {0, os.getuid()}:
        raise Misconfigured(f"the secret {path} must be a file that only its owner, this user or root, can read")
    secret = data.removesuffix(b"\n")
    if not 1 <= len(secret) <= MAX_SECRET_BYTES or not all(33 <= byte <= 126 for byte in secret):
        raise Misconfigured(f"the secret {path} must be one line of printable ASCII without spaces")
    return secret.decode("ascii")
