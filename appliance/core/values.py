"""The frozen values that pass between the stages of a request.

Each trusted value has one maker (checked by ``tests/test_architecture.py``):

===================  =========================
value                made only by
===================  =========================
``VerifiedClaims``   ``identity.tokens``
``ForwardedUser``    ``identity.delegation``
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
from typing import Annotated, Final, Literal

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

Role = Literal["system", "user", "assistant", "tool"]
FunctionName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
JsonText = Annotated[str, Meta(max_length=65_536)]
"""A JSON document as text."""


MAX_TOKEN_ID: Final = 2**21
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
"""Of any vocabulary; which ids a model has, its runner knows."""


MAX_TOOL_CALLS: Final = 128
"""In one turn of a conversation, and so in one answer."""


class ToolCall(Value, frozen=True, kw_only=True):
    """A function that the model asked for. ``arguments`` is what the model wrote, perhaps not JSON."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: FunctionName
    arguments: JsonText


class Message(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation, in plain text. ``tool_call_id`` names the call that a ``tool`` turn answers."""

    role: Role
    content: str
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_TOOL_CALLS)] = ()
    tool_call_id: Annotated[str, Meta(max_length=64)] = ""


class Tool(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may ask for. ``parameters`` is a JSON Schema of its arguments."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=16_384)] = ""
    parameters: JsonText = '{"type":"object"}'


ToolChoice = Literal["auto", "none", "required"]


class GbnfGrammar(Value, frozen=True, kw_only=True, tag="gbnf"):
    """The answer matches this grammar, in llama.cpp's own notation."""

    text: Annotated[str, Meta(min_length=1, max_length=65_536)]


class JsonObject(Value, frozen=True, kw_only=True, tag="json-object"):
    """The answer is a JSON object of any shape."""


class JsonSchema(Value, frozen=True, kw_only=True, tag="json-schema"):
    """The answer is JSON that is valid under this schema."""

    schema: JsonText


Constraint = GbnfGrammar | JsonObject | JsonSchema


class Sampling(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is drawn. Ranges are enforced where the request is decoded and again in the runner.

    ``repeat_last_n`` is the window of all three penalties. ``mirostat`` replaces top-k, top-p, min-p and typical-p.
    ``logit_bias`` pairs token ids with what is added to their logits; -100 and less forbids. ``logprobs`` None tells
    none, a number that of each token and of so many alternatives.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.8
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.95
    top_k: Annotated[int, Meta(ge=0, le=1000)] = 40
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    typical_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=2.0)] = 1.0
    repeat_last_n: Annotated[int, Meta(ge=0, le=1024)] = 64
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: Annotated[float, Meta(gt=0.0, le=20.0)] = 5.0
    mirostat_eta: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    logit_bias: Annotated[
        tuple[tuple[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], ...],
        Meta(max_length=512),
    ] = ()
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    ignore_eos: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=8)] = ()


class Conversation(Value, frozen=True, kw_only=True, omit_defaults=True, tag="conversation"):
    """To be rendered by the model's chat template. ``forced_tool`` is the only one that may be called."""

    messages: tuple[Message, ...]
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] = ()
    tool_choice: ToolChoice = "auto"
    forced_tool: Annotated[str, Meta(max_length=64)] = ""

    @property
    def callable_tools(self) -> frozenset[str]:
        """The names that the answer may call."""
        if self.tool_choice == "none":
            return frozenset()
        return frozenset({self.forced_tool}) if self.forced_tool else frozenset(tool.name for tool in self.tools)


class TextPrompt(Value, frozen=True, kw_only=True, tag="text"):
    """To be continued as it stands: no template, and names of control tokens are ordinary text."""

    text: str


class TokenPrompt(Value, frozen=True, kw_only=True, tag="tokens"):
    """To be continued as it stands. The runner refuses ids outside the vocabulary."""

    ids: Annotated[tuple[TokenId, ...], Meta(min_length=1)]


Prompt = Conversation | TextPrompt | TokenPrompt


class Generation(Value, frozen=True, kw_only=True):
    """Text asked for, by whichever surface, after decoding. ``max_tokens`` is for each of the ``choices``; None means
    the server's default. With ``echo`` each answer begins with the prompt."""

    model: str
    prompt: Prompt
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    choices: Annotated[int, Meta(ge=1, le=16)] = 1
    echo: bool = False
    stream: bool = False
    include_usage: bool = False


MAX_VECTOR_WIDTH: Final = 65_536


class Vectors(Value, frozen=True, kw_only=True):
    """Vectors of some inputs; with ``kind`` ``rerank`` a score of each against ``query``. An input that is too long is
    refused unless ``truncate``. ``dimensions`` keeps so many numbers of each vector; 0 is all."""

    model: str
    kind: Literal["embed", "rerank"]
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    query: str = ""
    truncate: bool = False
    dimensions: int = 0


class Tokenisation(Value, frozen=True, kw_only=True):
    """The token ids of a text; with ``add_special`` as they stand in a prompt."""

    model: str
    text: str
    add_special: bool = False


class Detokenisation(Value, frozen=True, kw_only=True):
    """The text of token ids."""

    model: str
    ids: tuple[int, ...]


Asked = Generation | Vectors | Tokenisation | Detokenisation
"""Every kind of request that goes through the stages."""


class Peer(Value, frozen=True, kw_only=True):
    """Where a request came from, as the gateway's own socket saw it, or a proxy that it trusts. A Unix socket has
    address ``unix`` and port 0; a proxy's word may come without a port, which is 0 then."""

    address: str
    port: int

    @property
    def is_unix(self) -> bool:
        return self.address == UNIX_PEER.address


UNIX_PEER: Final = Peer(address="unix", port=0)


# --- who asks -------------------------------------------------------------------------------------------------------


class Presented(Value, frozen=True, kw_only=True):
    """The credentials of one request, as they came. ``path`` is the canonical one, ``client_certificate_sha256`` of the
    certificate with which the peer's TLS handshake was authenticated, as this gateway or a trusted proxy saw it."""

    unverified_token: str
    scheme: Literal["bearer", "dpop"] = "bearer"
    unverified_proof: str | None = None
    method: str = "GET"
    path: str = "/"
    client_certificate_sha256: bytes | None = None


class ActingParty(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One who acts for another (RFC 8693 section 1.1: delegation, never impersonation).

    Of the bearer of a token of its own all is known. Of one whom the ``act`` claim of another's token names (section
    4.1), issuer and subject are, and the rest is empty.
    """

    issuer: str
    subject: str
    client_id: str = ""
    groups: tuple[str, ...] = ()
    token_id: str = ""
    token_sha256: Digest | None = None


class VerifiedClaims(Value, frozen=True, kw_only=True):
    """The claims of a token whose signature, issuer, audience, type and times have been verified (RFC 9068).

    ``acting`` are those who act for the subject, the nearest first.
    """

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
    acting: tuple[ActingParty, ...] = ()


class ForwardedUser(Value, frozen=True, kw_only=True):
    """A user of whom a service told, under a secret that only the two know. ``issuer`` is our own name for whatever
    that service calls its users, and no issuer of tokens; ``groups`` are those that the operator gives such a user."""

    issuer: str
    subject: str
    groups: tuple[str, ...]
    token_sha256: Digest


class Principal(Value, frozen=True, kw_only=True):
    """The identity that policy, limits and audit see. ``models`` are the names its token is confined to; ``*`` is all.

    ``key`` is the name under which limits and caches are kept: a digest of issuer and subject, never a caller's text.
    ``acting`` are those who act for the subject, the nearest first: policy judges it too, and the record names all.
    """

    key: str
    issuer: str
    subject: str
    client_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    token_id: str
    token_sha256: Digest
    acting: tuple[ActingParty, ...] = ()


# --- models ---------------------------------------------------------------------------------------------------------

SealMode = Literal["sealed-memfd", "verity", "ro-store"]
_SEAL_STRENGTH: Final[dict[SealMode, int]] = {"ro-store": 0, "verity": 1, "sealed-memfd": 2}


def weakest_seal(*seals: SealMode) -> SealMode:
    return min(seals, key=_SEAL_STRENGTH.__getitem__)


def seals_at_least(seal: SealMode, minimum: SealMode) -> bool:
    """Whether what was verified is kept as well as ``minimum`` keeps it.

    Sealed memory never changes; a file with fs-verity may, below the file system, and then ends its reader.
    """
    return _SEAL_STRENGTH[seal] >= _SEAL_STRENGTH[minimum]


class CacheShape(Value, frozen=True, kw_only=True):
    """What a context of this model keeps, from its header: ``values_per_token`` keys and values, of all layers
    together; ``state_bytes`` per sequence, whatever its length, for recurrent layers. ``row_values`` are the queries of
    the widest layer, of ``heads`` heads. ``quantisable``: heads are whole blocks of 32 values, as llama.cpp wants them
    for q8_0 and q4_0.
    """

    values_per_token: int
    heads: int
    row_values: int
    state_bytes: int
    quantisable: bool


class AdapterFacts(Value, frozen=True, kw_only=True):
    """Of a LoRA adapter: how many matrices it changes, and the largest of the ranks."""

    pairs: int
    rank: int


class GgufFacts(Value, frozen=True, kw_only=True):
    """What the validator read from a GGUF header, each within its cap. ``tensor_bytes`` pairs ggml's type numbers with
    the bytes of all tensors of that type; ``pools`` is for a model that gives a vector or a score for a whole input,
    and ``vector_length`` is that of such a vector, 0 where it is the embedding's. Without ``cache`` or
    ``tensor_bytes``, who reckons with them takes the worst. With ``adapter`` the file is no model: its numbers of
    layers, lengths and tokens are 0.
    """

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
    feed_forward_length: int = 0
    cache: CacheShape | None = None
    tensor_bytes: tuple[tuple[int, int], ...] = ()
    pools: bool = False
    vector_length: int = 0
    adapter: AdapterFacts | None = None


class Signer(Value, frozen=True, kw_only=True):
    """Who signed: the name under which the operator trusts the key, and its fingerprint (SHA-256 of the SPKI DER)."""

    name: str
    fingerprint: Digest


CompanionKind = Literal["adapter", "draft"]
MAX_ADAPTERS: Final = 8
MAX_COMPANIONS: Final = MAX_ADAPTERS + 1
ScaleThousandths = Annotated[int, Meta(ge=0, le=4000)]
"""How strongly an adapter counts, as an integer because records have no other numbers; 1000 is as it was trained."""


class Companion(Value, frozen=True, kw_only=True):
    """A file that was verified as models are, and is loaded with one: a LoRA adapter, or the smaller model that guesses
    for it, which has no scale."""

    kind: CompanionKind
    scale_thousandths: ScaleThousandths | None = None
    name: str
    digest: Digest
    signer: Signer
    bundle_digest: Digest
    facts: GgufFacts


class VerifiedModel(Value, frozen=True, kw_only=True):
    """A model whose bytes were hashed against trusted OpenSSF Model Signing signatures: at least one, and as many as
    the operator requires. ``bundle_digest`` is that of ``signer``'s bundle; ``cosigners`` are the others.

    A LoRA adapter is one too, as a file of the store; ``companions`` are what a model is served with: adapters, then at
    most one draft model. ``base`` is the file's name in the store where it is served under another, else None.
    """

    name: str
    digest: Digest
    size_bytes: int
    signer: Signer
    bundle_digest: Digest
    facts: GgufFacts
    cosigners: tuple[Signer, ...] = ()
    base: str | None = None
    companions: Annotated[tuple[Companion, ...], Meta(max_length=MAX_COMPANIONS)] = ()

    @property
    def adapters(self) -> tuple[Companion, ...]:
        return tuple(one for one in self.companions if one.kind == "adapter")

    @property
    def draft(self) -> Companion | None:
        return next((one for one in self.companions if one.kind == "draft"), None)

    @property
    def is_adapter(self) -> bool:
        """Then nobody can ask it anything."""
        return self.facts.adapter is not None


# --- what is decided ------------------------------------------------------------------------------------------------


class Admission(Value, frozen=True, kw_only=True):
    """A request that fits its model. Worst cases are upper bounds which the runner is told and enforces.

    ``max_completion_tokens`` is for all choices together, an equal share for each. ``echo_bytes`` is how much of an
    answer may be its own prompt, which is paid for already.
    """

    model: VerifiedModel
    request: Asked
    context_tokens: int
    max_prompt_tokens: int
    max_completion_tokens: int
    echo_bytes: int = 0

    @property
    def worst_case_tokens(self) -> int:
        """What must be paid for: the runner ends each choice at the context's end, so the longer a prompt, the less
        its answers can be. The prompt is paid for once; the inputs of ``Vectors`` each have a context of their own."""
        if not isinstance(self.request, Generation):
            return self.max_prompt_tokens
        each = self.max_completion_tokens // self.request.choices
        return min(self.max_prompt_tokens, self.context_tokens - each) + self.max_completion_tokens


class Obligations(Value, frozen=True, kw_only=True):
    """What an allowing policy still demands. None means that the policy says nothing about it."""

    max_tokens: int | None = None
    minimum_seal: SealMode | None = None


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
    """Tokens actually spent. ``cached_tokens`` of the prompt were not computed again; they are charged all the same."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


# --- what comes back ------------------------------------------------------------------------------------------------

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Line = Annotated[
    str, Meta(max_length=2000, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*\Z")
]
"""A short line of a runner's, by which no record and no log line of ours can be grown or broken: without controls, line
ends and marks that reorder text."""
FinishReason = Literal["stop", "length", "tool-calls", "cancelled", "error"]


class ToolCallDelta(Value, frozen=True, kw_only=True):
    """More of the ``index``-th call of an answer. ``id`` and ``name`` come whole, with its first piece."""

    index: Annotated[int, Meta(ge=0, lt=MAX_TOOL_CALLS)]
    id: Annotated[str, Meta(max_length=64)] = ""
    name: Annotated[str, Meta(max_length=64)] = ""
    arguments: str = ""


class TokenLogprob(Value, frozen=True, kw_only=True):
    """A token's bytes, perhaps part of a character, and the natural logarithm of its probability before sampling."""

    piece: bytes
    logprob: float


class SampledToken(Value, frozen=True, kw_only=True):
    """The token that was drawn, and the likeliest at its place, likeliest first."""

    chosen: TokenLogprob
    alternatives: tuple[TokenLogprob, ...] = ()


class Started(Value, frozen=True, kw_only=True):
    """The runner has rendered and tokenised the prompt, and what generates has a slot.

    ``queue_position`` is where the request stood for a slot when it came, 0 with one free for it and 1 as the next;
    ``queued_ms`` is how long it then waited. Both are 0 for what generates nothing.
    """

    prompt_tokens: Count
    queue_position: Count = 0
    queued_ms: Count = 0


class Delta(Value, frozen=True, kw_only=True):
    """A piece of the answer: whole UTF-8 characters, possibly from several tokens. ``tokens`` of it were generated, 0
    where its text was held back and they were told before. One of the first four is never empty.

    ``choice`` counts the answers to one request from 0.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: Annotated[tuple[ToolCallDelta, ...], Meta(max_length=MAX_TOOL_CALLS)] = ()
    logprobs: tuple[SampledToken, ...] = ()
    choice: Annotated[int, Meta(ge=0, le=15)] = 0
    tokens: Count


class End(Value, frozen=True, kw_only=True):
    """The last event of an answer. ``detail`` is for the operator and empty unless ``reason`` is ``error``.

    ``cached_tokens`` of the prompt were not computed again. With several choices, ``choice_reasons`` has one reason for
    each, and ``reason`` is that of the request: the first one's, or how it broke.
    """

    reason: FinishReason
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0
    choice_reasons: Annotated[tuple[FinishReason, ...], Meta(max_length=16)] = ()
    detail: Line = ""


class Rows(Value, frozen=True, kw_only=True):
    """The next vectors or scores, in the order of the inputs: rows of ``width`` little-endian 32-bit floats. Vectors
    have length 1; a score is one number, as the model gave it."""

    width: Annotated[int, Meta(ge=1, le=MAX_VECTOR_WIDTH)]
    data: Annotated[bytes, Meta(min_length=4)]


class Ids(Value, frozen=True, kw_only=True):
    """The next token ids: little-endian 32-bit integers."""

    data: bytes


class Written(Value, frozen=True, kw_only=True):
    """The next characters that token ids stand for. Nothing was generated."""

    text: str


AnswerEvent = Started | Delta | Rows | Ids | Written | End


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


Total = Annotated[int, Meta(ge=0, le=2**53)]
TotalSeconds = Annotated[float, Meta(ge=0.0, le=2.0**53)]
"""A sum that a runner tells, bounded so that it stays exact, and finite, wherever it is shown."""


class EngineFigures(Value, frozen=True, kw_only=True):
    """Sums since a model was loaded, and four states of now: ``waiting``, ``busy_slots``, ``used_cells`` and what they
    are of. Nothing in it is about one caller, and a runner can say in it what it likes.

    ``prompt_tokens`` are those computed, ``cached_tokens`` those that needed not be, of ``cache_hits`` requests.
    ``answered`` requests had a first token, after ``first_token_seconds`` in all, counted from their arrival.
    ``batch_tokens`` were decoded in ``steps``, which took ``step_seconds`` of wall time. Speculation proposed
    ``proposed_tokens``, of which ``accepted_tokens`` became part of an answer.
    """

    waiting: Total
    busy_slots: Total
    slots: Total
    used_cells: Total
    cells: Total
    admitted: Total
    refused: Total
    cancelled: Total
    failed: Total
    prompt_tokens: Total
    cached_tokens: Total
    cache_hits: Total
    answer_tokens: Total
    answered: Total
    proposed_tokens: Total = 0
    accepted_tokens: Total = 0
    first_token_seconds: TotalSeconds
    queue_seconds: TotalSeconds
    steps: Total
    batch_tokens: Total
    step_seconds: TotalSeconds


class RunnerReport(Value, frozen=True, kw_only=True):
    """What one live runner says of itself; ``figures`` are None when it did not say so in time."""

    model_name: str
    model_digest: Digest
    figures: EngineFigures | None
