"""The frozen values that pass between the stages of a request.

Each trusted value has one maker (checked by ``tests/test_architecture.py``):

===================  =========================
value                made only by
===================  =========================
``VerifiedClaims``   ``identity.tokens``
``Principal``        ``core.claims``
``VerifiedModel``    ``core.manifest``
``Admission``        ``core.admit``
``Decision``         ``core.decide``
``Reservation``      ``core.quota``
``Usage``            ``core.meter``
===================  =========================

Struct constructors do not check types, so bytes from outside enter through msgspec decoding and nowhere else.
Units are part of the names: ``_seconds``, ``_bytes``, ``_tokens``, ``_ms``.
"""

import re
from functools import total_ordering
from hashlib import sha256
from typing import Annotated, Literal

from msgspec import Meta, Struct

_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every value: immutable, keyword-only, strict about unknown fields when decoded.

    Subclasses repeat ``frozen=True, kw_only=True``: msgspec does not inherit the second, nor mypy the first.
    """


@total_ordering
class Digest:
    """A SHA-256 digest. The only type from which a path in the model store is ever built.

    The text form, also on every wire (``core.codec``), is ``sha256:`` and 64 lower-case hex digits, exactly;
    anything else is a ``ValueError`` (CVE-2024-37032 is what happens when a digest is any string).

    Neither a Struct nor a dataclass: msgspec would write those by their fields.
    """

    __slots__ = ("_hex",)

    def __init__(self, *, hex: str) -> None:  # noqa: A002 - the attribute has this name in hashlib too
        if not isinstance(hex, str) or not _HEX_SHA256.fullmatch(hex):
            raise ValueError("a digest is 64 lower-case hex digits")
        self._hex = hex

    @property
    def hex(self) -> str:
        return self._hex

    def __eq__(self, other: object) -> bool:
        return self._hex == other._hex if isinstance(other, Digest) else NotImplemented

    def __lt__(self, other: "Digest") -> bool:
        return self._hex < other._hex

    def __hash__(self) -> int:
        return hash(self._hex)

    def __repr__(self) -> str:
        return f"Digest({self})"

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """``sha256:<64 hex>`` -> Digest. Raises ``ValueError`` on any other text."""
        if not isinstance(text, str) or not text.startswith("sha256:"):
            raise ValueError("a digest starts with 'sha256:'")
        return cls(hex=text.removeprefix("sha256:"))

    @classmethod
    def of(cls, data: bytes) -> "Digest":
        """The digest of some bytes in memory."""
        return cls(hex=sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


# --- what the caller asked for -------------------------------------------------------------------------------------

Role = Literal["system", "user", "assistant"]


class Message(Value, frozen=True, kw_only=True):
    """One turn of a conversation, in plain text."""

    role: Role
    content: str


class Sampling(Value, frozen=True, kw_only=True):
    """How the next token is drawn. Ranges are enforced where the request is decoded and again in the runner."""

    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.8
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.95
    top_k: Annotated[int, Meta(ge=0, le=1000)] = 40
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=8)] = ()


class ChatRequest(Value, frozen=True, kw_only=True):
    """A chat completion as any surface asks for it, after decoding. ``max_tokens`` None means the server's default."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stream: bool = False
    include_usage: bool = False


class Peer(Value, frozen=True, kw_only=True):
    """Where a request came from, as the gateway's own socket saw it. A Unix socket has address ``unix`` and port 0."""

    address: str
    port: int


# --- who asks -------------------------------------------------------------------------------------------------------


class VerifiedClaims(Value, frozen=True, kw_only=True):
    """The claims of a token whose signature, issuer, audience, type and times have been verified (RFC 9068)."""

    issuer: str
    subject: str
    client_id: str
    audience: str
    token_id: str
    issued_at_seconds: int
    expires_at_seconds: int
    groups: tuple[str, ...]
    models: tuple[str, ...]
    token_sha256: Digest


class Principal(Value, frozen=True, kw_only=True):
    """The identity that policy, limits and audit see. ``models`` are the names its token is confined to; ``*`` is all.

    ``key`` is the name under which limits and caches are kept: a digest of issuer and subject, never a caller's text.
    """

    key: str
    issuer: str
    subject: str
    client_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    token_id: str
    token_sha256: Digest


# --- models ---------------------------------------------------------------------------------------------------------

SealMode = Literal["sealed-memfd", "verity", "ro-store"]


class GgufFacts(Value, frozen=True, kw_only=True):
    """What the validator read from a GGUF header, each within its cap."""

    architecture: str
    name: str
    context_tokens: int
    vocabulary_tokens: int
    block_count: int
    embedding_length: int
    parameter_count: int
    tensor_count: int
    has_chat_template: bool
    header_bytes: int
    file_bytes: int
    chat_template_digest: Digest | None = None


class Signer(Value, frozen=True, kw_only=True):
    """Who signed: the name under which the operator trusts the key, and its fingerprint (SHA-256 of the SPKI DER)."""

    name: str
    fingerprint: Digest


class VerifiedModel(Value, frozen=True, kw_only=True):
    """A model whose bytes were hashed against trusted OpenSSF Model Signing signatures: at least one, and as many as
    the operator requires. ``bundle_digest`` is that of ``signer``'s bundle; ``cosigners`` are the others."""

    name: str
    digest: Digest
    size_bytes: int
    signer: Signer
    bundle_digest: Digest
    facts: GgufFacts
    cosigners: tuple[Signer, ...] = ()


# --- what is decided ------------------------------------------------------------------------------------------------


class Admission(Value, frozen=True, kw_only=True):
    """A request that fits its model. Worst cases are upper bounds which the runner is told and enforces."""

    model: VerifiedModel
    request: ChatRequest
    context_tokens: int
    max_prompt_tokens: int
    max_completion_tokens: int

    @property
    def worst_case_tokens(self) -> int:
        """What must be paid for: the runner ends an answer at the context's end, so the sum is bounded by it too."""
        return min(self.max_prompt_tokens + self.max_completion_tokens, self.context_tokens)


class Obligations(Value, frozen=True, kw_only=True):
    """What an allowing policy still demands. None means that the policy says nothing about it."""

    max_tokens: int | None = None


class Decision(Value, frozen=True, kw_only=True):
    """Policy's answer. ``reasons`` are kebab-case words of a closed list, for allowing and for denying alike."""

    allow: bool
    reasons: tuple[str, ...]
    obligations: Obligations
    policy_digest: Digest
    input_digest: Digest


class Reservation(Value, frozen=True, kw_only=True):
    """Tokens set aside for one request before it starts."""

    request_id: str
    principal_key: str
    tokens: int


class Receipt(Value, frozen=True, kw_only=True):
    """Proof that a record is durable: its index in the log and its RFC 6962 leaf hash."""

    index: int
    leaf_hash: Digest


class Usage(Value, frozen=True, kw_only=True):
    """Tokens actually spent."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


# --- what comes back ------------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Started(Value, frozen=True, kw_only=True, tag="started"):
    """The runner has rendered and tokenised the prompt."""

    prompt_tokens: int


class Delta(Value, frozen=True, kw_only=True, tag="delta"):
    """A piece of the answer: whole UTF-8 characters, possibly from several tokens. ``tokens`` of it were generated."""

    text: str
    tokens: int


class End(Value, frozen=True, kw_only=True, tag="end"):
    """The last event of an answer. ``detail`` is for the operator and empty unless ``reason`` is ``error``."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    detail: str = ""


AnswerEvent = Started | Delta | End


class RunnerFacts(Value, frozen=True, kw_only=True):
    """The identity of one live runner, as the warden vouches for it and every audit record names it."""

    runner_id: str
    model_digest: Digest
    seal_mode: SealMode
    layers: tuple[str, ...]
    degraded: tuple[str, ...]
    filter_digest: Digest
    context_tokens: int
    slots: int
