"""OCI manifests and indexes: unverified bytes in, a model and its signature out, or a reason.

Image specification 1.1. Unknown fields are ignored, as it demands; ``urls`` and ``data`` of a descriptor are among
them, so that no layer can come from anywhere but the registry's own blobs.

Trusts: nothing.
Promises: every digest is a ``Digest``, every size is known, and there is exactly one model.
Not here: whether the bytes have those digests (``download``); who signed them (``models.oms``).
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from appliance.core import strict_json
from appliance.core.codec import dec_hook
from appliance.core.values import Digest
from appliance.models.transfer import media
from appliance.models.transfer.refusal import TransferRefused

MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_LAYERS: Final = 64
MAX_INDEX_ENTRIES: Final = 256
MAX_BUNDLES: Final = 4

_MediaType = Annotated[str, Meta(min_length=1, max_length=255)]
_Size = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Descriptor(Struct, frozen=True, kw_only=True):
    """Some bytes: what they are, their digest and their exact number."""

    media_type: _MediaType = field(name="mediaType")
    digest: Digest
    size_bytes: _Size = field(name="size")
    artifact_type: _MediaType | None = field(name="artifactType", default=None)


class Manifest(Struct, frozen=True, kw_only=True):
    """The layers of one artifact; ``subject`` is what it is about, if it is a referrer."""

    schema_version: Literal[2] = field(name="schemaVersion")
    media_type: _MediaType | None = field(name="mediaType", default=None)
    artifact_type: _MediaType | None = field(name="artifactType", default=None)
    layers: Annotated[tuple[Descriptor, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    subject: Descriptor | None = None


class Index(Struct, frozen=True, kw_only=True):
    """A list of manifests."""

    schema_version: Literal[2] = field(name="schemaVersion")
    media_type: _MediaType | None = field(name="mediaType", default=None)
    manifests: Annotated[tuple[Descriptor, ...], Meta(max_length=MAX_INDEX_ENTRIES)]


class Selection(Struct, frozen=True, kw_only=True):
    """What to fetch. ``bundle`` is None when the signature is not a layer; it may still be a referrer."""

    model: Descriptor
    bundle: Descriptor | None


def parse(data: bytes, content_type: str | None = None) -> Manifest | Index:
    """Bytes, and the ``Content-Type`` they came with -> what they are. Raises ``TransferRefused``.

    A document that could be read as both, or that says it is the other, is refused (CVE-2021-41190).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise TransferRefused("manifest-too-large", f"more than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = strict_json.check(data, max_depth=16, max_keys=256, max_items=1024)
    except strict_json.JsonInvalid as error:
        raise TransferRefused("manifest-malformed", str(error)) from None
    if not isinstance(document, dict):
        raise TransferRefused("manifest-malformed", "not an object")
    if "layers" in document and "manifests" in document:
        raise TransferRefused("manifest-ambiguous", "both a manifest and an index")
    is_index = "manifests" in document
    said = [document.get("mediaType"), content_type]
    if any(isinstance(kind, str) and kind in (media.MANIFESTS if is_index else media.INDEXES) for kind in said):
        raise TransferRefused("manifest-ambiguous", "the document is not what its media type says")
    kind: type[Manifest] | type[Index] = Index if is_index else Manifest
    try:
        parsed: Manifest | Index = msgspec.convert(document, kind, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        raise TransferRefused("manifest-malformed", _ours(error)) from None
    allowed = media.INDEXES if is_index else media.MANIFESTS
    if parsed.media_type is not None and parsed.media_type not in allowed:
        raise TransferRefused("media-type-refused", "neither an OCI nor a Docker manifest")
    return parsed


def _ours(error: msgspec.ValidationError) -> str:
    """msgspec names fields and types; a key of an unknown map could be repeated, so only the first line's start."""
    return "".join(character for character in str(error)[:200] if character.isprintable())


def only_manifest(index: Index) -> Descriptor:
    """The one manifest of an index. Raises ``TransferRefused`` if there is another: nobody said which is meant."""
    candidates = [entry for entry in index.manifests if entry.media_type in media.MANIFESTS]
    if len(candidates) != 1 or len(index.manifests) != 1:
        raise TransferRefused("index-ambiguous", "the index lists several manifests: name one by its digest")
    return candidates[0]


def select(manifest: Manifest) -> Selection:
    """The model and, if it is there, its signature. Raises ``TransferRefused`` for any layer of an unknown kind."""
    for layer in manifest.layers:
        if layer.media_type not in media.MODELS | media.NOT_FETCHED | {media.BUNDLE}:
            raise TransferRefused(
                "layer-refused",
                "a layer is neither a plain GGUF nor text beside one: no archive, compression, code or adapter",
            )
    models = [layer for layer in manifest.layers if layer.media_type in media.MODELS]
    bundles = [layer for layer in manifest.layers if layer.media_type == media.BUNDLE]
    if len(models) != 1:
        raise TransferRefused("model-ambiguous", f"there are {len(models)} models where one is expected")
    if len(bundles) > 1:
        raise TransferRefused("bundle-ambiguous", f"there are {len(bundles)} signatures where one is expected")
    if models[0].size_bytes == 0:
        raise TransferRefused("manifest-malformed", "the model is empty")
    return Selection(model=models[0], bundle=bundles[0] if bundles else None)


def bundle_referrers(index: Index) -> tuple[Descriptor, ...]:
    """The first few referrers that say they are signature bundles."""
    found = [
        entry
        for entry in index.manifests
        if entry.media_type in media.MANIFESTS and entry.artifact_type == media.BUNDLE
    ]
    return tuple(found[:MAX_BUNDLES])


def bundle_of(referrer: Manifest, subject: Digest) -> Descriptor:
    """The bundle in a referrer. Raises ``TransferRefused`` unless it is about ``subject`` and holds that one layer."""
    if referrer.subject is None or referrer.subject.digest != subject:
        raise TransferRefused("referrer-foreign", "a referrer is about another manifest")
    if len(referrer.layers) != 1 or referrer.layers[0].media_type != media.BUNDLE:
        raise TransferRefused("referrer-malformed", "a referrer holds something else than one signature bundle")
    return referrer.layers[0]
