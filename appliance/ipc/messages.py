"""Every message that two Paddock processes exchange, one section per channel.

A frame is one msgpack-encoded message, or an array of some, in one ``SOCK_SEQPACKET`` datagram, so a peer that dies in
the middle of a frame cannot desynchronise the channel. ``call`` numbers pair answers with questions.

Trusts: nothing; a message is only as good as the peer that sent it.
Promises: what ``decode`` returns has the declared types and no unknown fields.
Not here: whether the peer may send it (``ipc.connection`` checks credentials, each server its own rules).
"""

from typing import Annotated, Final, Literal

from msgspec import Meta

from appliance.core import clients, memory, values
from appliance.core.clients import (
    Client,
    ClientId,
    EndedClient,
    Family,
    GrantOrder,
    IssuedId,
    IssuedTokens,
    RefreshOrder,
    RevokedToken,
    RevokeOrder,
)
from appliance.core.memory import LoadOptions, MemoryPlan
from appliance.core.records import ModelRef
from appliance.core.token_claims import ReadClaims
from appliance.core.values import (
    MAX_COMPANIONS,
    MAX_VECTOR_WIDTH,
    CompanionKind,
    Constraint,
    Digest,
    EngineFigures,
    RunnerFacts,
    Sampling,
    ScaleThousandths,
    TokenId,
    Value,
    VerifiedModel,
)

RequestId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[A-Za-z0-9-]+\Z")]
Count = values.Count
Detail = Annotated[str, Meta(max_length=2000)]

# What a runner may say about itself: words of a closed form and short lines, so that no record and no log line of ours
# can be grown or broken by it.
Word = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"\A[a-z0-9]+(-[a-z0-9]+)*\Z")]
Words = Annotated[tuple[Word, ...], Meta(max_length=32)]
Line = values.Line
RunnerId = Annotated[str, Meta(min_length=1, max_length=64)]
MAX_RUNNERS: Final = 64
RunnerIds = Annotated[tuple[RunnerId, ...], Meta(max_length=MAX_RUNNERS)]
Nonce = Annotated[str, Meta(max_length=64)]
MemoryBytes = Annotated[int, Meta(ge=2**28, le=2**46)]
DEFAULT_MEMORY_BYTES: Final = 2**31
ContextTokens = Annotated[int, Meta(ge=64, le=2**22)]
Slots = Annotated[int, Meta(ge=1, le=64)]
KvType = memory.KvType
Speculating = memory.Speculating
MAX_EMBED_INPUTS: Final = 2048
MAX_DETOKENISE: Final = 65_536

# --- gateway, warden -> notary --------------------------------------------------------------------------------------


class Hello(Value, frozen=True, kw_only=True, tag=True):
    """First message of a peer. ``open_requests`` are the answers it still has in flight; the notary closes, as
    ``gateway-lost``, every other answer that a former gateway left open. A warden sends none."""

    role: Literal["gateway", "warden"]
    open_requests: tuple[RequestId, ...] = ()


class Append(Value, frozen=True, kw_only=True, tag=True):
    """Write this record, given as the bytes that will stand in the log (``core.records.encode_record``). With
    ``durable`` it starts a commit; without, it rides on the next one (within 50 ms). The answer comes after the sync
    that covers it."""

    call: int
    record: bytes
    durable: bool


class Appended(Value, frozen=True, kw_only=True, tag=True):
    call: int
    index: int
    leaf_hash: Digest


class AppendFailed(Value, frozen=True, kw_only=True, tag=True):
    """Not written. ``permanent`` means that offering the same record again will never help."""

    call: int
    detail: Detail
    permanent: bool = False


class FindClient(Value, frozen=True, kw_only=True, tag=True):
    """A gateway's, as all that follow here."""

    call: int
    client_id: ClientId


class ClientFound(Value, frozen=True, kw_only=True, tag=True):
    """None for a client that is not registered, and for one that is disabled."""

    call: int
    client: Client | None


class AskGrant(Value, frozen=True, kw_only=True, tag=True):
    """Answered by ``Granted`` or ``NotGranted``, as the next."""

    call: int
    order: GrantOrder


class AskRefresh(Value, frozen=True, kw_only=True, tag=True):
    call: int
    order: RefreshOrder


class AskRevoke(Value, frozen=True, kw_only=True, tag=True):
    """Answered by ``RevocationDone``, whether or not there was something to end, or ``NotGranted``."""

    call: int
    order: RevokeOrder


class Granted(Value, frozen=True, kw_only=True, tag=True):
    """The record of it is durable."""

    call: int
    tokens: IssuedTokens


class NotGranted(Value, frozen=True, kw_only=True, tag=True):
    """``reason`` is a code of ``core.refusals``."""

    call: int
    reason: Literal["grant-invalid", "scope-invalid", "audit-unavailable"]
    detail: Detail


class RevocationDone(Value, frozen=True, kw_only=True, tag=True):
    call: int


class Revoked(Value, frozen=True, kw_only=True, tag=True):
    """Told to a gateway without being asked: what has ended before its time. The answer to its ``Hello`` are all, in
    several messages if need be, the first with ``anew`` and the last with ``complete``; later ones add to them."""

    tokens: Annotated[tuple[RevokedToken, ...], Meta(max_length=1024)] = ()
    clients: Annotated[tuple[EndedClient, ...], Meta(max_length=1024)] = ()
    anew: bool = False
    complete: bool = True


AskRegistry = FindClient | AskGrant | AskRefresh | AskRevoke
ToNotary = Hello | Append | AskRegistry
FromRegistry = ClientFound | Granted | NotGranted | RevocationDone
FromNotary = Appended | AppendFailed | FromRegistry | Revoked

# --- gateway -> liaison ---------------------------------------------------------------------------------------------

IssuerName = Annotated[str, Meta(min_length=1, max_length=64)]


PublicKey = clients.PublicKey


class RefreshKeys(Value, frozen=True, kw_only=True, tag=True):
    """A token named a key that is not in this issuer's set: there may be a newer set. There is no answer to it, but
    for ``IssuerKeys`` if there is."""

    name: IssuerName


class Introspect(Value, frozen=True, kw_only=True, tag=True):
    """Ask the issuer of opaque tokens for this one (RFC 7662)."""

    call: int
    token: Annotated[str, Meta(min_length=1, max_length=8192)]


class IssuerKeys(Value, frozen=True, kw_only=True, tag=True):
    """The set of one issuer as it was at a moment: sent to every gateway that connects, and after each fetch."""

    name: IssuerName
    keys: Annotated[tuple[PublicKey, ...], Meta(max_length=64)]
    fetched_at_seconds: Annotated[int, Meta(ge=0, le=2**53)]


class Introspected(Value, frozen=True, kw_only=True, tag=True):
    """What the issuer said; None for a token that is not active."""

    call: int
    claims: ReadClaims | None


class IntrospectionFailed(Value, frozen=True, kw_only=True, tag=True):
    """The issuer could not be asked, or its answer means nothing."""

    call: int
    detail: Detail


ToLiaison = RefreshKeys | Introspect
FromLiaison = IssuerKeys | Introspected | IntrospectionFailed

# --- operator -> notary (the admin socket) --------------------------------------------------------------------------


class IssueToken(Value, frozen=True, kw_only=True, tag=True):
    call: int
    subject: Annotated[str, Meta(min_length=1, max_length=255)]
    client_id: Annotated[str, Meta(min_length=1, max_length=255)]
    groups: Annotated[tuple[str, ...], Meta(max_length=64)]
    models: Annotated[tuple[str, ...], Meta(max_length=64)]
    ttl_seconds: Annotated[int, Meta(ge=1, le=86400)]


class TokenSigned(Value, frozen=True, kw_only=True, tag=True):
    call: int
    token: str
    token_id: str
    expires_at_seconds: int


class Failed(Value, frozen=True, kw_only=True, tag=True):
    """The call was understood and could not be done."""

    call: int
    reason: str
    detail: Detail


class PutClient(Value, frozen=True, kw_only=True, tag=True):
    """Register this client in the place of ``before``, which must be what is registered now; None for a new one.
    Answered by ``ClientFound``."""

    call: int
    client: Client
    before: Client | None = None


class RemoveClient(Value, frozen=True, kw_only=True, tag=True):
    """Answered by ``ClientFound`` with what was registered."""

    call: int
    client_id: ClientId


class ListClients(Value, frozen=True, kw_only=True, tag=True):
    """Those whose ids come after ``after``."""

    call: int
    after: str = ""


class ClientList(Value, frozen=True, kw_only=True, tag=True):
    """With ``more``, there are clients after the last of this answer."""

    call: int
    clients: tuple[Client, ...]
    more: bool = False


class ListFamilies(Value, frozen=True, kw_only=True, tag=True):
    """Of one client, or of all with an empty ``client_id``; those whose ids come after ``after``."""

    call: int
    client_id: Annotated[str, Meta(max_length=128)] = ""
    after: Annotated[str, Meta(max_length=128)] = ""


class FamilyFacts(Value, frozen=True, kw_only=True):
    """A family of refresh tokens, and the ids of its access tokens that have not expired."""

    family: Family
    token_ids: tuple[str, ...] = ()


class FamilyList(Value, frozen=True, kw_only=True, tag=True):
    """With ``more``, there are families after the last of this answer."""

    call: int
    families: tuple[FamilyFacts, ...]
    more: bool = False


class EndTokens(Value, frozen=True, kw_only=True, tag=True):
    """All tokens of a client that were issued up to now; or a family of refresh tokens or an access token, by its id.
    Answered by ``RevocationDone``."""

    call: int
    client_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    token_id: IssuedId | None = None


OnClients = PutClient | RemoveClient | ListClients | ListFamilies | EndTokens
ToNotaryAdmin = IssueToken | OnClients
FromNotaryAdmin = TokenSigned | ClientFound | ClientList | FamilyList | RevocationDone | Failed

# --- gateway, operator -> warden ------------------------------------------------------------------------------------


class ListModels(Value, frozen=True, kw_only=True, tag=True):
    """Those whose names come after ``after``."""

    call: int
    after: str = ""


class ModelList(Value, frozen=True, kw_only=True, tag=True):
    """What is known now. ``pending`` are names whose signature holds and whose bytes are still being hashed. With
    ``more``, there are models after the last name of this answer."""

    call: int
    models: tuple[VerifiedModel, ...]
    pending: tuple[str, ...] = ()
    more: bool = False


class AskLease(Value, frozen=True, kw_only=True, tag=True):
    """For exactly this model: a runner of the same bytes under another name, signer or bundle is another runner, so
    that what an ``Opened`` record names is what was loaded. ``idle`` are the runners that the asker could give up for
    it, longest idle first."""

    call: int
    model: ModelRef
    idle: RunnerIds = ()


class AskStatus(Value, frozen=True, kw_only=True, tag=True):
    """Of the models whose names come after ``after``."""

    call: int
    after: str = ""


class TakenMemory(Value, frozen=True, kw_only=True):
    """What the kernel says that a runner has at this moment: of its own, and of the model's file or sealed copy."""

    private_bytes: Annotated[int, Meta(ge=0)]
    mapped_bytes: Annotated[int, Meta(ge=0)]


class LoadedModel(Value, frozen=True, kw_only=True):
    """A model that a live runner has mapped, and that runner; ``memory_limit_bytes`` bounds what it has besides.

    ``taken`` is None where nobody can look. ``idle_seconds`` is None while it answers somebody, ``ends_in_seconds``
    then too, and for one that is kept until its place is needed.
    """

    model: VerifiedModel
    runner: RunnerFacts
    memory_limit_bytes: int
    options: LoadOptions | None = None
    plan: MemoryPlan | None = None
    taken: TakenMemory | None = None
    idle_seconds: int | None = None
    ends_in_seconds: int | None = None


class PlannedModel(Value, frozen=True, kw_only=True):
    """What a model that verifies would take. ``unfit`` is why it can never be loaded, empty for one that can."""

    name: Annotated[str, Meta(max_length=128)]
    plan: MemoryPlan
    unfit: Annotated[str, Meta(max_length=500)] = ""


class MemoryBudget(Value, frozen=True, kw_only=True):
    """What all runners together may take, and what those have that live, start or are ending."""

    budget_bytes: int
    planned_bytes: int


class FailedModel(Value, frozen=True, kw_only=True):
    """A model whose last verification or load failed, and nothing since has gone better."""

    name: Annotated[str, Meta(max_length=128)]
    reason: Annotated[str, Meta(max_length=64)]
    detail: Annotated[str, Meta(max_length=500)]


class WardenStatus(Value, frozen=True, kw_only=True, tag=True):
    """``models`` are all that verify, ``loaded`` those with a runner now, ``failed`` those that did not verify, or did
    and did not load; ``planned`` has the others that verify. In pages, as ``ModelList``."""

    call: int
    models: tuple[VerifiedModel, ...]
    loaded: tuple[LoadedModel, ...]
    failed: tuple[FailedModel, ...] = ()
    planned: tuple[PlannedModel, ...] = ()
    memory: MemoryBudget | None = None
    more: bool = False


class Leased(Value, frozen=True, kw_only=True, tag=True):
    """Carries one descriptor: the gateway's end of the runner's channel. Who holds it releases it when it has been idle
    for so long; -1 is never."""

    call: int
    runner: RunnerFacts
    keep_alive_seconds: Annotated[int, Meta(ge=-1)] = -1


class MakeRoom(Value, frozen=True, kw_only=True, tag=True):
    """There would be room without these runners, which the asker said it could give up: it releases them, and asks
    again."""

    call: int
    release: RunnerIds


class Complain(Value, frozen=True, kw_only=True, tag=True):
    """The gateway found this runner silent or breaking the protocol; the warden ends it."""

    runner_id: RunnerId
    detail: Detail


class Release(Value, frozen=True, kw_only=True, tag=True):
    """The gateway has closed its end of this runner, which did nothing for it; the warden ends it. ``idle``: for
    nothing but that."""

    runner_id: RunnerId
    idle: bool = False


class RunnerUse(Value, frozen=True, kw_only=True):
    """``idle_seconds`` is None while the runner owes an answer."""

    runner_id: RunnerId
    idle_seconds: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None


class InUse(Value, frozen=True, kw_only=True, tag=True):
    """What the gateway does with the runners that it holds, told every few seconds and when it has connected."""

    runners: Annotated[tuple[RunnerUse, ...], Meta(max_length=MAX_RUNNERS)]


NO_PLACE: Final = "no-place"
"""``Failed.reason`` when there is no place or no memory for the model, and nobody idle whose end would help."""

ToWarden = ListModels | AskLease | AskStatus | Complain | Release | InUse
FromWarden = ModelList | Leased | MakeRoom | WardenStatus | Failed

# --- warden <-> runner, before the channel is leased ---------------------------------------------------------------


class Fenced(Value, frozen=True, kw_only=True, tag=True):
    """Runner, before it takes a model: nothing of a stranger's has reached it, so its word still counts. ``layers`` are
    on and ``degraded`` are missing, all but the two stages of the filter; ``filter_digest`` names the programs that it
    is about to install."""

    layers: Words
    degraded: Words
    filter_digest: Digest


class LoadedWith(Value, frozen=True, kw_only=True):
    """What one more descriptor of a ``Load`` is. 1000 ``scale_thousandths`` of an adapter are as it was trained; a
    draft model has none."""

    kind: CompanionKind
    scale_thousandths: ScaleThousandths | None = None


class Load(Value, frozen=True, kw_only=True, tag=True):
    """Carries a descriptor for the model and one for each of its ``companions``, in that order; each file starts where
    its descriptor stands. The runner installs stage 1 before it reads a byte of them. ``memory_bytes`` is all that it
    may ever have for itself, the model's mapping not counted; it limits itself before that byte too."""

    runner_id: RunnerId
    context_tokens: ContextTokens
    slots: Slots
    threads: Annotated[int, Meta(ge=1, le=256)]
    batch_tokens: Annotated[int, Meta(ge=32, le=8192)] = 512
    memory_bytes: MemoryBytes = DEFAULT_MEMORY_BYTES
    kv_type: KvType = "f16"
    speculation: Speculating = "off"
    companions: Annotated[tuple[LoadedWith, ...], Meta(max_length=MAX_COMPANIONS)] = ()


class Ready(Value, frozen=True, kw_only=True, tag=True):
    """The model is loaded and warm, stage 2 is on. ``context_tokens`` is per request, or per input of an ``Embed``. A
    word of somebody who has parsed a stranger's file: the warden looks for itself where it can."""

    context_tokens: Annotated[int, Meta(ge=1, le=2**22)]
    slots: Slots


class LoadFailed(Value, frozen=True, kw_only=True, tag=True):
    reason: Word
    detail: Line


# --- gateway <-> runner, multiplexed by request id ------------------------------------------------------------------


class Reset(Value, frozen=True, kw_only=True, tag=True):
    """First message of every lease: forget all requests, then answer ``ResetDone`` with the same nonce."""

    nonce: Nonce


class ResetDone(Value, frozen=True, kw_only=True, tag=True):
    nonce: Nonce


Conversation = values.Conversation
TextPrompt = values.TextPrompt
TokenPrompt = values.TokenPrompt


class Submit(Value, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """One request, rendered again from what was admitted. The runner refuses a prompt of more than
    ``max_prompt_tokens`` tokens, and ends when all choices together have ``max_completion_tokens``: these bounds are
    what was paid for.

    ``cache_partition`` separates prefix caches; ``principal`` is whose turn it is, ``weight`` how much of one. A
    request that has waited ``queue_ms`` for a slot is refused; 0 is no limit. What a ``patient`` one gets may
    come in few pieces, a moment late: nobody reads it before its end.
    """

    request_id: RequestId
    prompt: Conversation | TextPrompt | TokenPrompt
    sampling: Sampling
    constraint: Constraint | None = None
    choices: Annotated[int, Meta(ge=1, le=16)] = 1
    echo: bool = False
    max_prompt_tokens: Count
    max_completion_tokens: Count
    cache_partition: str
    principal: str = ""
    weight: Annotated[int, Meta(ge=1, le=100)] = 1
    queue_ms: Count = 0
    patient: bool = False


class Embed(Value, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Vectors of some inputs, or with ``rerank`` a score of each against ``query``.

    The runner refuses more than ``max_prompt_tokens`` tokens over all inputs, and an input that is longer than its
    context unless ``truncate`` allows it to be cut. ``dimensions`` keeps so many numbers of each vector; 0 is all.
    ``principal`` is whose turn it is.
    """

    request_id: RequestId
    kind: Literal["embed", "rerank"]
    inputs: Annotated[tuple[TextPrompt | TokenPrompt, ...], Meta(min_length=1, max_length=MAX_EMBED_INPUTS)]
    query: str = ""
    truncate: bool = False
    dimensions: Annotated[int, Meta(ge=0, le=MAX_VECTOR_WIDTH)] = 0
    max_prompt_tokens: Count
    principal: str = ""


class Tokenise(Value, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The token ids of a text, in which names of control tokens are ordinary text. ``add_special`` frames it as a
    prompt is framed. The runner refuses more than ``max_prompt_tokens``. ``principal`` is whose turn it is."""

    request_id: RequestId
    text: str
    add_special: bool = False
    max_prompt_tokens: Count
    principal: str = ""


class Detokenise(Value, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The text of token ids. The runner refuses ids outside the vocabulary. ``principal`` is whose turn it is."""

    request_id: RequestId
    ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_DETOKENISE)]
    principal: str = ""


class Cancel(Value, frozen=True, kw_only=True, tag=True):
    request_id: RequestId


# The events of an answer, each with the request's id.


class RunnerStarted(values.Started, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    request_id: RequestId


class RunnerDelta(values.Delta, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    request_id: RequestId


class RunnerEnd(values.End, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    request_id: RequestId


class Embedded(values.Rows, frozen=True, kw_only=True, tag=True):
    """Of an ``Embed``."""

    request_id: RequestId


class Tokens(values.Ids, frozen=True, kw_only=True, tag=True):
    """Of a ``Tokenise``."""

    request_id: RequestId


class Detokenised(values.Written, frozen=True, kw_only=True, tag=True):
    """Of a ``Detokenise``."""

    request_id: RequestId


AnswerMessage = RunnerStarted | RunnerDelta | Embedded | Tokens | Detokenised | RunnerEnd

RefusalCode = Literal["prompt-too-long", "overloaded", "field-invalid", "not-offered"]


class RunnerRefused(Value, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The request was not started. ``reason`` is a code of ``core.refusals``, or ``not-offered`` when the model is for
    something else. For ``overloaded`` ``retry_after_seconds`` is the runner's guess, 0 when it has none, and ``ahead``
    is how many stand before the request: those that would still get a slot before it when it has waited for too long,
    and when it finds no place all that take it up, its principal's where that is its principal's share."""

    request_id: RequestId
    reason: RefusalCode
    retry_after_seconds: Annotated[int, Meta(ge=0, le=3600)] = 0
    ahead: Count | None = None
    detail: Line


class Probe(Value, frozen=True, kw_only=True, tag=True):
    """Warden only: try the forbidden thing and report (``paddock sandbox probe``)."""

    name: Annotated[str, Meta(max_length=64)]


class ProbeResult(Value, frozen=True, kw_only=True, tag=True):
    name: Annotated[str, Meta(max_length=64)]
    outcome: Line


class AskFigures(Value, frozen=True, kw_only=True, tag=True):
    """What has the engine done so far? Answered at once, whatever it is doing."""

    call: Count


class Figures(Value, frozen=True, kw_only=True, tag=True):
    """The one answer to an ``AskFigures``."""

    call: Count
    figures: EngineFigures


ToRunner = Load | Reset | Submit | Embed | Tokenise | Detokenise | Cancel | Probe | AskFigures
FromRunner = Fenced | Ready | LoadFailed | ResetDone | AnswerMessage | RunnerRefused | ProbeResult | Figures
