"""What an OpenSSF Model Signing statement says, and the one place where a ``VerifiedModel`` is made.

A signature bundle (OMS v1.0) carries an in-toto Statement v1 inside a DSSE envelope. The statement lists *resources*:
files of the model, or consecutive *shards* of them, each with its SHA-256; its subject's digest is the SHA-256 of all
resource digests, concatenated in order. Paddock loads single files, so a model is verified when the digest of its bytes
is one of those listed; whatever else the signer listed is never opened.

Stricter than the specification where it leaves room, and than its reference implementation where that is lax: no v0.1
predicate, no symbolic links, and every field is either checked or named here as ignored. SHA-256 is what Paddock signs
with; statements with BLAKE2b and BLAKE3, which the specification leaves optional, are read.
"""

import re
from binascii import unhexlify
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, field

from appliance.core import strict_json
from appliance.core.codec import canonical_json
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Companion, CompanionKind, Digest, GgufFacts, Signer, Value, VerifiedModel

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
MAX_RESOURCES: Final = 10_000
MAX_NAME_LENGTH: Final = 1024
NEVER_SIGNED: Final = frozenset({".git", ".gitignore", ".gitattributes", ".github"})
"""Top-level names that OMS always leaves out, so that listing one contradicts the format."""

_SHARD_NAME = re.compile(r"(?P<path>.+):(?P<start>0|[1-9][0-9]{0,15}):(?P<end>[1-9][0-9]{0,15})", re.DOTALL)


class SignatureRefused(Exception):
    """The signature, or what it says, does not vouch for the model. ``reason`` is a kebab-case code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


HashType = Literal["sha256", "blake2b", "blake3"]
_HEX_LENGTH: Final[dict[str, int]] = {"sha256": 64, "blake2b": 128, "blake3": 64}


class Form(NamedTuple):
    """How the bytes of a file are hashed: with what, and whole (None) or in shards of so many bytes."""

    hash_type: HashType
    shard_bytes: int | None


WHOLE: Final = Form("sha256", None)
"""The form whose one hash is the digest by which Paddock knows a model."""


class Resource(Value, frozen=True, kw_only=True):
    """One line of a statement: a whole file (``end`` 0), or the bytes of ``path`` from ``start`` up to ``end``.

    ``hash`` is lower-case hex, of the statement's hash type.
    """

    path: str
    start: int
    end: int
    hash: str


class Statement(Value, frozen=True, kw_only=True):
    """A well-formed statement."""

    resources: tuple[Resource, ...]
    form: Form

    def listings(self) -> tuple[tuple[int | None, tuple[str, ...]], ...]:
        """For each file: its size, where the form tells it, and its hashes in order. One of them must be the model's.

        Decoding has checked that the shards of each path are consecutive and whole but for the last.
        """
        if self.form.shard_bytes is None:
            return tuple((None, (resource.hash,)) for resource in self.resources)
        by_path: dict[str, list[Resource]] = {}
        for resource in sorted(self.resources, key=lambda resource: resource.start):
            by_path.setdefault(resource.path, []).append(resource)
        return tuple((shards[-1].end, tuple(shard.hash for shard in shards)) for shards in by_path.values())


class SignedStatement(Value, frozen=True, kw_only=True):
    """A statement whose signature by a trusted key has been verified: made only by ``models.oms``."""

    statement: Statement
    signer: Signer
    bundle_digest: Digest


class Observed(Value, frozen=True, kw_only=True):
    """What was found by hashing the bytes of one open file, in every form that was asked for: lower-case hex."""

    digest: Digest
    size_bytes: int
    hashes: dict[Form, tuple[str, ...]]


class TrustPolicy(Value, frozen=True, kw_only=True):
    """How many distinct signers a model needs, and whose count: everyone who is trusted, or those named here."""

    required: int = 1
    signers: frozenset[str] | None = None


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: the bytes that are signed. Lengths count bytes (DSSE protocol, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def verified_model(
    *signed: SignedStatement,
    name: str,
    observed: Observed,
    facts: GgufFacts,
    policy: TrustPolicy = TrustPolicy(),  # noqa: B008 - immutable
) -> VerifiedModel:
    """Verified signatures and what was observed of a file -> ``VerifiedModel``.

    ``facts`` must have been read from the same descriptor that was hashed. Raises ``SignatureRefused``:
    ``digest-mismatch`` unless the file is one that every statement lists, ``signers-missing`` unless enough distinct
    signers said so.
    """
    for one in signed:
        if not _lists(one.statement, observed):
            raise SignatureRefused("digest-mismatch", f"{observed.digest} is not among the files that were signed")
    if facts.file_bytes != observed.size_bytes:
        raise SignatureRefused("digest-mismatch", "the header was read from a file of another size")
    signers = enough_signers(signed, policy)
    return VerifiedModel(
        name=name,
        digest=observed.digest,
        size_bytes=observed.size_bytes,
        signer=signers[0],
        bundle_digest=signed[0].bundle_digest,
        facts=facts,
        cosigners=signers[1:],
    )


def as_companion(file: VerifiedModel, kind: CompanionKind, scale_thousandths: int | None) -> Companion:
    """A verified file in its part beside a model. Raises ``Refused(MODEL_NOT_VERIFIED)`` unless it can play it."""
    if file.is_adapter != (kind == "adapter"):
        what = "an adapter, not a model" if file.is_adapter else "a model, not an adapter"
        raise Refused(Reason.MODEL_NOT_VERIFIED, f"companion-kind: {file.name} is {what}")
    return Companion(
        kind=kind,
        scale_thousandths=scale_thousandths,
        name=file.name,
        digest=file.digest,
        signer=file.signer,
        bundle_digest=file.bundle_digest,
        facts=file.facts,
    )


def accompanied(base: VerifiedModel, name: str, companions: tuple[Companion, ...]) -> VerifiedModel:
    """A verified model as it is served under ``name``: with these, and only with these.

    Raises ``Refused(MODEL_NOT_VERIFIED)``, whose detail begins with a code, for what cannot belong together. Whether
    each matrix and each token fits, the runner looks, which has all files.
    """
    if base.is_adapter:
        raise Refused(Reason.MODEL_NOT_VERIFIED, f"companion-kind: {base.name} is an adapter, not a model")
    for one in companions:
        if why := _misfit(base, one):
            raise Refused(Reason.MODEL_NOT_VERIFIED, f"companion-misfit: {why}")
    return VerifiedModel(
        name=name,
        digest=base.digest,
        size_bytes=base.size_bytes,
        signer=base.signer,
        bundle_digest=base.bundle_digest,
        facts=base.facts,
        cosigners=base.cosigners,
        base=None if name == base.name else base.name,
        companions=companions,
    )


def _misfit(base: VerifiedModel, one: Companion) -> str:
    """Why not, or empty."""
    ours, theirs = base.facts, one.facts
    if ours.pools or theirs.pools:
        return f"{base.name if ours.pools else one.name} is not for text"
    if one.kind == "adapter" and theirs.architecture != ours.architecture:
        return f"{one.name} is for {theirs.architecture}, {base.name} is {ours.architecture}"
    if one.kind == "draft" and theirs.vocabulary_tokens != ours.vocabulary_tokens:
        return f"{one.name} has {theirs.vocabulary_tokens} tokens, {base.name} has {ours.vocabulary_tokens}"
    return ""


def _lists(statement: Statement, observed: Observed) -> bool:
    """A form that was not hashed lists nothing."""
    found = observed.hashes.get(statement.form)
    return found is not None and any(
        hashes == found and size in {None, observed.size_bytes} for size, hashes in statement.listings()
    )


def enough_signers(signed: tuple[SignedStatement, ...], policy: TrustPolicy) -> tuple[Signer, ...]:
    """All signers, in the order of their bundles. One name with two keys, and one key with two names, count once.

    Raises ``SignatureRefused("signers-missing")``.
    """
    if not signed or policy.required < 1:
        raise SignatureRefused("signers-missing", "a model needs at least one signature")
    signers = tuple(one.signer for one in signed)
    counted = [one for one in signers if policy.signers is None or one.name in policy.signers]
    distinct = min(len({one.name for one in counted}), len({one.fingerprint for one in counted}))
    if distinct < policy.required:
        raise SignatureRefused("signers-missing", f"{distinct} of the {policy.required} required signers have signed")
    return signers


# --- the statement's wire form ---------------------------------------------------------------------------------------

_HexDigest = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64}|[0-9a-f]{128})\Z")]
_Text = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH)]


class _Subject(Value, frozen=True, kw_only=True):
    """``name`` informs people only. Ignored: other digest algorithms and the other in-toto descriptor fields."""

    name: _Text
    digest: dict[str, str]
    uri: Any = None
    content: Any = None
    download_location: Any = field(default=None, name="downloadLocation")
    media_type: Any = field(default=None, name="mediaType")
    annotations: Any = None


class _Descriptor(Value, frozen=True, kw_only=True):
    """Ignored: the in-toto descriptor fields after ``algorithm``; only the digest names bytes."""

    name: _Text
    digest: _HexDigest
    algorithm: str
    uri: Any = None
    content: Any = None
    download_location: Any = field(default=None, name="downloadLocation")
    media_type: Any = field(default=None, name="mediaType")
    annotations: Any = None


class _Serialization(Value, frozen=True, kw_only=True):
    method: Literal["files", "shards"]
    hash_type: str
    allow_symlinks: bool
    shard_size: int | float | None = None
    ignore_paths: Annotated[tuple[_Text, ...], Meta(max_length=1000)] = ()


class _Predicate(Value, frozen=True, kw_only=True):
    resources: Annotated[tuple[_Descriptor, ...], Meta(min_length=1, max_length=MAX_RESOURCES)]
    serialization: _Serialization


class _WireStatement(Value, frozen=True, kw_only=True):
    type_: str = field(name="_type")
    subject: Annotated[tuple[_Subject, ...], Meta(min_length=1, max_length=1)]
    predicate_type: str = field(name="predicateType")
    predicate: _Predicate


class _Types(msgspec.Struct, frozen=True):
    """Read first, so that another kind of statement is called that, and not malformed."""

    type_: str = field(name="_type")
    predicate_type: str = field(name="predicateType")


def decode_statement(payload: bytes) -> Statement:
    """The payload of a DSSE envelope -> Statement (OMS v1.0, sections on statement and predicate).

    Raises ``SignatureRefused``. Says nothing about who signed it: ``models.oms`` calls this after the signature.
    """
    try:
        document = strict_json.check(payload, max_depth=16, max_items=MAX_RESOURCES)
        types = msgspec.convert(document, _Types)
        if types.type_ != STATEMENT_TYPE or types.predicate_type != PREDICATE_TYPE:
            raise SignatureRefused("predicate-unsupported", "only the OMS v1.0 predicate is accepted")
        wire = msgspec.convert(document, _WireStatement)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise SignatureRefused("statement-malformed", str(error)) from None
    serialization, descriptors = wire.predicate.serialization, wire.predicate.resources
    form = Form(_hash_type(serialization), _shard_bytes(serialization))
    _check_algorithms(form, descriptors)
    _check_root_digest(wire.subject[0], descriptors)
    resources = tuple(_resource(descriptor, sharded=form.shard_bytes is not None) for descriptor in descriptors)
    _check_order(tuple(one.name for one in descriptors), resources, sharded=form.shard_bytes is not None)
    _check_ignored(serialization.ignore_paths, resources)
    if form.shard_bytes is not None:
        _check_shards(resources, form.shard_bytes)
    return Statement(resources=resources, form=form)


def _hash_type(serialization: _Serialization) -> HashType:
    match serialization.hash_type:
        case "sha256" | "blake2b" | "blake3" as known:
            return known
        case _:
            raise SignatureRefused("hash-unsupported", "hash_type is not sha256, blake2b or blake3")


def _shard_bytes(serialization: _Serialization) -> int | None:
    """Writers that pass through protobuf write 1000000.0: an integral number is accepted, another is not."""
    if serialization.allow_symlinks:
        raise SignatureRefused("symlinks-allowed", "a signature made through symbolic links is not accepted")
    size = serialization.shard_size
    if serialization.method == "files":
        if size is not None:
            raise SignatureRefused("statement-malformed", "shard_size belongs to the shards method only")
        return None
    if size is None or size != int(size) or not 0 < size < 2**50:
        raise SignatureRefused("statement-malformed", "shard_size is not a positive whole number")
    return int(size)


def _check_algorithms(form: Form, descriptors: tuple[_Descriptor, ...]) -> None:
    """The specification says ``sha256`` in shards too; the reference tool writes ``sha256-sharded-<size>``."""
    kind = form.hash_type
    accepted = {kind} if form.shard_bytes is None else {kind, f"{kind}-sharded-{form.shard_bytes}"}
    if any(descriptor.algorithm not in accepted for descriptor in descriptors):
        raise SignatureRefused("hash-unsupported", "a resource's algorithm is not the statement's hash_type")
    if any(len(descriptor.digest) != _HEX_LENGTH[kind] for descriptor in descriptors):
        raise SignatureRefused("statement-malformed", "a resource's digest has the length of another algorithm's")


def _check_root_digest(subject: _Subject, descriptors: tuple[_Descriptor, ...]) -> None:
    root = sha256(b"".join(unhexlify(descriptor.digest) for descriptor in descriptors)).hexdigest()
    if subject.digest.get("sha256") != root:
        raise SignatureRefused("subject-mismatch", "the subject's digest is not that of the resources")


def _resource(descriptor: _Descriptor, *, sharded: bool) -> Resource:
    path, start, end = descriptor.name, 0, 0
    if sharded:
        # The last two numbers: a path may itself hold colons.
        match = _SHARD_NAME.fullmatch(descriptor.name)
        if match is None:
            raise SignatureRefused("name-invalid", "a shard's name is not path:start:end")
        path, start, end = match["path"], int(match["start"]), int(match["end"])
    _check_path(path)
    return Resource(path=path, start=start, end=end, hash=descriptor.digest)


def _check_path(path: str) -> None:
    """Relative, POSIX, canonical, printable: the same bytes for everybody who reads it."""
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts) or not path.isprintable() or "\\" in path:
        raise SignatureRefused("name-invalid", "a resource's name is not a canonical relative path")
    if parts[0] in NEVER_SIGNED:
        raise SignatureRefused("name-invalid", "a resource is one that OMS never covers")


def _check_order(names: tuple[str, ...], resources: tuple[Resource, ...], *, sharded: bool) -> None:
    """By code point of the name, each once. For shards also by number, as the reference tool writes them."""
    if all(first < second for first, second in pairwise(names)):
        return
    places = [(resource.path, resource.start) for resource in resources]
    if not sharded or not all(first < second for first, second in pairwise(places)):
        raise SignatureRefused("resources-unsorted", "resources are not sorted, or one occurs twice")


def _check_ignored(ignore_paths: tuple[str, ...], resources: tuple[Resource, ...]) -> None:
    """A file that is both signed and ignored would be vouched for by one reader and skipped by another."""
    ignored = {tuple(part for part in path.split("/") if part not in {"", "."}) for path in ignore_paths}
    for resource in resources:
        parts = tuple(resource.path.split("/"))
        if any(parts[:length] in ignored for length in range(len(parts) + 1)):
            raise SignatureRefused("resource-ignored", "ignore_paths covers a resource")


class _Place(NamedTuple):
    path: str
    start: int
    end: int


def _check_shards(resources: tuple[Resource, ...], shard_bytes: int) -> None:
    """Each path starts at 0 and goes on without gap or overlap; every shard is full but the last. None is empty."""
    places = sorted(_Place(resource.path, resource.start, resource.end) for resource in resources)
    before = _Place("", 0, 0)
    for place in places:
        same = place.path == before.path
        follows = place.start == before.end and before.end - before.start == shard_bytes if same else place.start == 0
        if not follows or not 0 < place.end - place.start <= shard_bytes:
            raise SignatureRefused("shards-invalid", "the shards of a file have a gap, an overlap or a wrong end")
        before = place


def encode_statement(path: str, observed: Observed, form: Form = WHOLE) -> bytes:
    """The statement for a model of one file, in the specification's form: what ``models.oms.sign_model`` signs."""
    _check_path(path)
    hashes = observed.hashes[form]
    size = form.shard_bytes or observed.size_bytes
    names = (
        [path]
        if form.shard_bytes is None
        else [
            f"{path}:{start}:{min(start + size, observed.size_bytes)}" for start in range(0, observed.size_bytes, size)
        ]
    )
    if not hashes or len(hashes) > MAX_RESOURCES:
        raise SignatureRefused("statement-malformed", "the model has no shards, or more than a statement can list")
    # By code point, as the specification says: of the names, so that shard 10 may come before shard 2.
    resources = sorted(zip(names, hashes, strict=True))
    root = sha256(b"".join(unhexlify(hexed) for _, hexed in resources)).hexdigest()
    serialization: dict[str, Any] = {"hash_type": form.hash_type, "allow_symlinks": False}
    if form.shard_bytes is None:
        serialization["method"] = "files"
    else:
        serialization |= {"method": "shards", "shard_size": form.shard_bytes}
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": path, "digest": {"sha256": root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "resources": [
                    {"name": name, "algorithm": form.hash_type, "digest": hexed} for name, hexed in resources
                ],
                "serialization": serialization,
            },
        }
    )
