"""What the audit log holds: one record per decision, an outcome record for each answer, and the events around them.

Digests, counts, reasons and versions only: never a prompt, an answer or a token. All numbers are integers, so that
an entry's JSON with sorted keys is its RFC 8785 canonical form.

An answered request has exactly two records with one ``request_id``: ``Opened``, durable before the first byte of the
answer, and ``Closed``, written whatever happens.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, MsgspecError, Raw, UnsetType

from appliance.core.clients import Authentication, Grant, Party
from appliance.core.codec import canonical_json, json_decoder
from appliance.core.values import (
    MAX_COMPANIONS,
    ActingParty,
    CompanionKind,
    Decision,
    Digest,
    Peer,
    RunnerFacts,
    ScaleThousandths,
    Signer,
    Value,
    VerifiedModel,
)


class Actor(Value, frozen=True, kw_only=True, omit_defaults=True):
    """For whom was asked. The token itself is never recorded, only its id and digest. ``acting`` are those who asked
    for that principal, the nearest first; it is left out of the JSON where nobody did."""

    key: str
    issuer: str
    subject: str
    client_id: str
    groups: tuple[str, ...]
    token_id: str
    token_sha256: Digest
    acting: tuple[ActingParty, ...] = ()


class CompanionRef(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Which file was loaded with a model, as what, and why it was trusted. 1000 ``scale_thousandths`` of an adapter are
    as it was trained; a draft model has none."""

    kind: CompanionKind
    scale_thousandths: ScaleThousandths | None = None
    name: str
    digest: Digest
    signer: Signer
    bundle_digest: Digest


class ModelRef(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Which model, by digest, and why it was trusted; and all that was loaded with it and has a part in its answers, in
    that order. ``companions`` are left out of the JSON where there are none."""

    name: str
    digest: Digest
    signer: Signer
    bundle_digest: Digest
    companions: Annotated[tuple[CompanionRef, ...], Meta(max_length=MAX_COMPANIONS)] = ()


def reference(model: VerifiedModel) -> ModelRef:
    return ModelRef(
        name=model.name,
        digest=model.digest,
        signer=model.signer,
        bundle_digest=model.bundle_digest,
        companions=tuple(
            CompanionRef(
                kind=one.kind,
                scale_thousandths=one.scale_thousandths,
                name=one.name,
                digest=one.digest,
                signer=one.signer,
                bundle_digest=one.bundle_digest,
            )
            for one in model.companions
        ),
    )


class Opened(Value, frozen=True, kw_only=True, tag="opened", tag_field="event"):
    """An answer is about to begin: everything was checked and paid for. ``policy_input`` is what the policy saw."""

    request_id: str
    actor: Actor
    peer: Peer
    method: str
    route: str
    model: ModelRef
    runner: RunnerFacts
    decision: Decision
    policy_input: dict[str, Any]
    reserved_tokens: int


Outcome = Literal[
    "completed",
    "truncated",
    "cancelled",
    "refused",
    "runner-lost",
    "runner-error",
    "gateway-error",
    "gateway-lost",
]


class Closed(Value, frozen=True, kw_only=True, tag="closed", tag_field="event"):
    """How the answer ended and what it cost. ``refused`` is the runner's no to a request that it did not begin, and
    ``gateway-lost`` is written by the notary for a gateway that died."""

    request_id: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    returned_tokens: int
    first_token_ms: int | None
    total_ms: int
    detail: str = ""


class RefusedRequest(Value, frozen=True, kw_only=True, tag="refused", tag_field="event"):
    """A known principal was told no. ``decision`` is present when policy had spoken."""

    request_id: str
    actor: Actor
    peer: Peer
    method: str
    route: str
    model_name: str | None
    reason: str
    decision: Decision | None
    policy_input: dict[str, Any] | None
    detail: str = ""


class RefusalSummary(Value, frozen=True, kw_only=True, tag="refusal-summary", tag_field="event"):
    """Refusals counted per reason, so that nobody steers the log's size: without an ``actor`` those before anybody was
    identified, else those of one principal that asked too often. ``actor`` is left out of the JSON when absent."""

    interval_seconds: int
    counts: dict[str, int]
    actor: Actor | UnsetType = UNSET


class PolicyLoaded(Value, frozen=True, kw_only=True, tag="policy-loaded", tag_field="event"):
    policy_digest: Digest
    data_digest: Digest


class ModelLoaded(Value, frozen=True, kw_only=True, tag="model-loaded", tag_field="event"):
    """A runner has mapped a verified model."""

    model: ModelRef
    runner: RunnerFacts
    load_ms: int


class ModelRefused(Value, frozen=True, kw_only=True, tag="model-refused", tag_field="event"):
    """A model failed verification or could not be loaded."""

    name: str
    digest: Digest | None
    reason: str
    detail: str


class RunnerNotStarted(Value, frozen=True, kw_only=True, tag="runner-not-started", tag_field="event"):
    """A verified model was not loaded, and nothing is wrong with it: ``host-fault`` when no process could be started,
    ``memory-short`` when it needs more than all runners together may have."""

    model: ModelRef
    reason: Literal["host-fault", "memory-short"]
    detail: str


class RunnerEnded(Value, frozen=True, kw_only=True, tag="runner-ended", tag_field="event"):
    """``exit_status`` is minus the signal for one that was killed, and None where nobody told the warden. ``detail`` is
    why the warden ended it, if it did."""

    runner_id: str
    model_digest: Digest
    exit_status: int | None
    detail: str


class LogOpened(Value, frozen=True, kw_only=True, tag="log-opened", tag_field="event"):
    """First record of each notary process. ``recovered_bytes`` counts a torn tail that a crash left behind."""

    version: str
    settings_digest: Digest
    recovered_bytes: int


class LogClosed(Value, frozen=True, kw_only=True, tag="log-closed", tag_field="event"):
    """Last record of a notary that was stopped in an orderly way."""


class TokenIssued(Value, frozen=True, kw_only=True, omit_defaults=True, tag="token-issued", tag_field="event"):
    """By an operator, unless a ``grant`` is named: then to a client that asked. ``acting`` are those who act for the
    subject, the nearest first; ``family`` is that of its refresh token. What is absent is left out of the JSON."""

    subject: str
    client_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    token_id: str
    token_sha256: Digest
    expires_at_seconds: int
    grant: Grant | None = None
    acting: tuple[Party, ...] = ()
    family: str | None = None
    certificate_sha256: str | None = None
    jkt: str | None = None


class ClientChanged(Value, frozen=True, kw_only=True, tag="client-changed", tag_field="event"):
    """By an operator. What is registered from now on, without secrets; of one that was removed, what was before."""

    change: Literal["added", "changed", "disabled", "enabled", "removed"]
    client_id: str
    authentication: Authentication
    credentials: tuple[str, ...]
    grants: tuple[Grant, ...]
    groups: tuple[str, ...]
    models: tuple[str, ...]
    exchanges: tuple[str, ...]
    introspects: bool
    ttl_seconds: int
    family_seconds: int


class TokenRevoked(Value, frozen=True, kw_only=True, omit_defaults=True, tag="token-revoked", tag_field="event"):
    """One access token, one family of refresh tokens with all access tokens that came of it, or all tokens of a client.
    ``refresh-token-reused`` tells of a theft: whoever holds the newest token of that family, thief or client, has
    nothing any more."""

    why: Literal["operator", "client", "client-changed", "refresh-token-reused"]
    client_id: str | None = None
    token_id: str | None = None
    family: str | None = None


Record = (
    Opened
    | Closed
    | RefusedRequest
    | RefusalSummary
    | PolicyLoaded
    | ModelLoaded
    | ModelRefused
    | RunnerNotStarted
    | RunnerEnded
    | LogOpened
    | LogClosed
    | TokenIssued
    | ClientChanged
    | TokenRevoked
)


class Entry(Value, frozen=True, kw_only=True):
    """One leaf of the log. ``time`` is RFC 3339 UTC with milliseconds; ``monotonic_ms`` counts within ``boot_id``."""

    v: Literal[1]
    seq: int
    time: str
    boot_id: str
    monotonic_ms: int
    record: Record


def encode_entry(entry: Entry) -> bytes:
    """Entry -> the leaf's exact bytes: JSON with sorted keys, no spaces, integers only (RFC 8785)."""
    return canonical_json(entry)


def encode_record(record: Record) -> bytes:
    """Record -> its bytes within the leaf."""
    return canonical_json(record)


class _EntryAround(Value, frozen=True, kw_only=True):
    """An ``Entry`` whose record is encoded already."""

    v: Literal[1]
    seq: int
    time: str
    boot_id: str
    monotonic_ms: int
    record: Raw


def encode_entry_around(record: bytes, *, seq: int, time: str, boot_id: str, monotonic_ms: int) -> bytes:
    """``encode_entry`` of an entry whose record is given as ``encode_record`` returns it."""
    return canonical_json(
        _EntryAround(v=1, seq=seq, time=time, boot_id=boot_id, monotonic_ms=monotonic_ms, record=Raw(record))
    )


_RECORD_DECODER = json_decoder(Record)
_ENTRY_DECODER = json_decoder(Entry)


def decode_entry(data: bytes) -> Entry:
    """Leaf bytes -> Entry. Raises ``msgspec.DecodeError`` for anything that is not a well-formed entry."""
    decoded: Entry = _ENTRY_DECODER.decode(data)
    return decoded


def read_record(unverified_data: bytes) -> Record:
    """What another process encoded -> Record. Raises ``ValueError`` for anything but the exact bytes that
    ``encode_record`` has for a well-formed record: whoever read them may write them as they are."""
    try:
        record: Record = _RECORD_DECODER.decode(unverified_data)
        canonical = encode_record(record)
    except (MsgspecError, RecursionError) as error:
        raise ValueError(f"not a record: {error}") from None
    if canonical != unverified_data:
        raise ValueError("a record that is not in its canonical form")
    return record
