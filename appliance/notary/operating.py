"""What an operator changes, as changes of the registry: clients, and the end of tokens.

Whatever takes something away from a client (what it proves itself with, groups, models, a kind of grant, or all with
it) ends the tokens that it has: they would say more than it may. What only adds leaves them.

Trusts: the operator; ``notary.granting`` for what a deed promises.
Promises: a client that is registered can prove itself in one way, with keys that are good for their algorithm.
Not here: who is an operator (``notary.main``).
"""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance.core.clients import MAX_TTL_SECONDS, Client, PublicKey, RevokedToken
from appliance.core.grants import check_client, takes_away
from appliance.core.records import ClientChanged, Record, TokenRevoked
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.ipc.messages import EndTokens, FamilyFacts, Revoked
from appliance.notary.granting import Deed, end_client, end_family, revoke_token
from appliance.notary.registry import MAX_CLIENTS, Registry

MIN_RSA_BITS: Final = 2048
"""NIST SP 800-131A; RFC 7518 section 3.3."""
PAGE_FAMILIES: Final = 64


def put(registry: Registry, client: Client, before: Client | None) -> Deed:
    """Registers ``client`` in the place of ``before``, which must be what is registered. Raises
    ``Refused(FIELD_INVALID | AUDIT_UNAVAILABLE)``."""
    check_client(client)
    for key in client.keys:
        _check_key(key)
    if registry.client(client.client_id) != before:
        raise Refused(
            Reason.FIELD_INVALID,
            "the client is registered already" if before is None else "the client is not as it was: look again",
        )
    if before is None and registry.n_clients() >= MAX_CLIENTS:
        raise Refused(Reason.FIELD_INVALID, f"there are {MAX_CLIENTS} clients, and cannot be more")
    registry.put_client(client)
    changed = _changed(client, _name_of_change(client, before))
    if before is None or not takes_away(before, client):
        return Deed(client, records=(changed,), clients={client.client_id: client})
    return _with_end(registry, client, changed, {client.client_id: client})


def remove(registry: Registry, client_id: str) -> Deed:
    """Raises ``Refused(FIELD_INVALID | AUDIT_UNAVAILABLE)``."""
    client = registry.client(client_id)
    if client is None:
        raise Refused(Reason.FIELD_INVALID, "no such client is registered")
    registry.drop_client(client_id)
    return _with_end(registry, client, _changed(client, "removed"), {client_id: None})


def end_tokens(registry: Registry, order: EndTokens, now_seconds: int) -> Deed:
    """Of a client, registered or not, or one token: a family of refresh tokens or an access token, by its id. Whether
    there is an access token of that id nobody knows but who has it. Raises ``Refused(AUDIT_UNAVAILABLE)``."""
    if order.client_id is not None:
        record = TokenRevoked(why="operator", client_id=order.client_id)
        return Deed(None, records=(record,), ended=end_client(registry, order.client_id))
    if order.token_id is None:
        raise Refused(Reason.FIELD_INVALID, "neither a token nor a client is named")
    if found := registry.family(order.token_id):
        return end_family(registry, found[0], "operator", now_seconds)
    token = RevokedToken(token_id=order.token_id, expires_at_seconds=now_seconds + MAX_TTL_SECONDS)
    record = TokenRevoked(why="operator", client_id=registry.holder_of(order.token_id), token_id=order.token_id)
    return revoke_token(registry, token, record)


def families(registry: Registry, client_id: str, after: str, now_seconds: int) -> tuple[tuple[FamilyFacts, ...], bool]:
    """One page, and whether there are more."""
    found = registry.families(client_id, after, PAGE_FAMILIES + 1)
    facts = tuple(
        FamilyFacts(
            family=family,
            token_ids=tuple(sorted(token.token_id for token in registry.living(family.family_id, now_seconds))),
        )
        for family in found[:PAGE_FAMILIES]
    )
    return facts, len(found) > PAGE_FAMILIES


def _with_end(registry: Registry, client: Client, changed: Record, clients: dict[str, Client | None]) -> Deed:
    ended: Revoked = end_client(registry, client.client_id)
    revoked = TokenRevoked(why="client-changed", client_id=client.client_id)
    return Deed(client, records=(changed, revoked), ended=ended, clients=clients)


def _name_of_change(client: Client, before: Client | None) -> str:
    if before is None:
        return "added"
    if client.disabled != before.disabled:
        return "disabled" if client.disabled else "enabled"
    return "changed"


def _changed(client: Client, change: str) -> ClientChanged:
    return ClientChanged(
        change=change,  # type: ignore[arg-type]  # one of those of _name_of_change, or "removed"
        client_id=client.client_id,
        authentication=client.authentication,
        credentials=credentials(client),
        grants=client.grants,
        groups=client.groups,
        models=client.models,
        exchanges=client.exchanges,
        introspects=client.introspects,
        ttl_seconds=client.ttl_seconds,
        family_seconds=client.family_seconds,
    )


def credentials(client: Client) -> tuple[str, ...]:
    """What a client proves itself with, named so that two can be told apart and none be used."""
    return (
        *(f"secret {digest.hex[:16]}" for digest in client.secrets_sha256),
        *(f"key {key.key_id} {key.algorithm} {Digest.of(key.spki).hex[:16]}" for key in client.keys),
        *(f"certificate {thumbprint}" for thumbprint in client.certificates),
    )


def _check_key(key: PublicKey) -> None:
    try:
        public = load_der_public_key(key.spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(Reason.FIELD_INVALID, f"key {key.key_id} cannot be read: {type(error).__name__}") from error
    match key.algorithm, public:
        case "ES256", EllipticCurvePublicKey() if isinstance(public.curve, SECP256R1):
            return
        case "EdDSA", Ed25519PublicKey():
            return
        case "RS256" | "PS256", RSAPublicKey() if public.key_size >= MIN_RSA_BITS:
            return
    raise Refused(Reason.FIELD_INVALID, f"key {key.key_id} is not good for {key.algorithm}")
