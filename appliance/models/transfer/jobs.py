"""What the transfer process is asked, on its stdin, and what it says, one JSON object per line, on its stdout.

Trusts: the parent, for a job. Nothing that comes back: the process has talked to strangers.
Promises: both sides decode with types and caps.
Not here: running one (``__main__``), starting one (``cli.puller``).
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from appliance.core.codec import enc_hook, json_decoder
from appliance.core.values import Digest, Value
from appliance.models.transfer.manifest import MAX_BUNDLES
from appliance.models.transfer.origin import Origin
from appliance.models.transfer.reference import Reference
from appliance.models.transfer.registry import Credentials

MAX_JOB_BYTES: Final = 16 * 1024 * 1024
MAX_EVENT_BYTES: Final = 24 * 1024 * 1024


class Access(Value, frozen=True, kw_only=True):
    """How to reach and satisfy a registry, and which sandbox layers this host may lack."""

    ca_pem: str | None = None
    credentials: Credentials | None = None
    auth_origins: tuple[Origin, ...] = ()
    allow_degraded: tuple[str, ...] = ()


class Place(Value, frozen=True, kw_only=True):
    """A reference in parts, because a target that is a tag and one that is a digest look alike on the wire."""

    origin: Origin
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def of(cls, reference: Reference) -> "Place":
        target = reference.target
        by_digest = isinstance(target, Digest)
        return cls(
            origin=reference.origin,
            repository=reference.repository,
            tag=None if isinstance(target, Digest) else target,
            digest=target if by_digest and isinstance(target, Digest) else None,
        )

    def reference(self) -> Reference:
        target = self.digest if self.digest is not None else self.tag
        if target is None:
            raise ValueError("neither a tag nor a digest")
        return Reference(origin=self.origin, repository=self.repository, target=target)


class Resolve(Value, frozen=True, kw_only=True, tag="resolve", tag_field="job"):
    place: Place
    access: Access


class Fetch(Value, frozen=True, kw_only=True, tag="fetch", tag_field="job"):
    """``fd`` is a private file of the parent's, which may hold the beginning."""

    place: Place
    access: Access
    digest: Digest
    size_bytes: int
    fd: int


class Push(Value, frozen=True, kw_only=True, tag="push", tag_field="job"):
    """``fd`` is the verified model, open for reading."""

    place: Place
    access: Access
    name: str
    digest: Digest
    size_bytes: int
    fd: int
    bundles: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_BUNDLES)]


class Moved(Value, frozen=True, kw_only=True, tag="moved", tag_field="event"):
    """So many bytes are done, of the job's size."""

    done_bytes: int


class Found(Value, frozen=True, kw_only=True, tag="found", tag_field="event"):
    """What a reference stands for (``download.Resolved``)."""

    manifest_digest: Digest
    model_digest: Digest
    model_bytes: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    unverified_bundles: Annotated[tuple[bytes, ...], Meta(max_length=MAX_BUNDLES)]


class Done(Value, frozen=True, kw_only=True, tag="done", tag_field="event"):
    """A fetch or a push is complete; of a push, the digest of the model's manifest."""

    manifest_digest: Digest | None = None


class No(Value, frozen=True, kw_only=True, tag="no", tag_field="event"):
    """``TransferRefused``, or a missing layer."""

    reason: Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,40}\Z")]
    detail: Annotated[str, Meta(max_length=1000)]


Job = Resolve | Fetch | Push
Event = Moved | Found | Done | No

_JOB_DECODER: Final[msgspec.json.Decoder[Any]] = json_decoder(Job)
_EVENT_DECODER: Final[msgspec.json.Decoder[Any]] = json_decoder(Event)


def encode(value: Job | Event) -> bytes:
    return msgspec.json.encode(value, enc_hook=enc_hook)


def decode_job(data: bytes) -> Job:
    """Raises ``msgspec.DecodeError``."""
    job: Job = _JOB_DECODER.decode(data)
    return job


def decode_event(line: bytes) -> Event:
    """Raises ``msgspec.DecodeError``."""
    event: Event = _EVENT_DECODER.decode(line)
    return event
