"""Pushing a signed model: ModelPack artifact and, referring to it, its signature bundles.

The tag is written last, so that nobody finds a model whose signature is not there yet. Where the registry lacks the
referrers API (it then does not answer with ``OCI-Subject``) the referrers tag is written as well.

Trusts: the caller, for digest and size of the open model.
Promises: after ``push``, the reference names the model and its signature can be found.
Not here: whether the model is signed (the parent verified it before it opened the file for us).
"""

from typing import Any, Final

from appliance.core.codec import canonical_json
from appliance.core.values import Digest
from appliance.models.transfer import media
from appliance.models.transfer.client import Progress, Upload
from appliance.models.transfer.manifest import MAX_INDEX_ENTRIES, Descriptor
from appliance.models.transfer.refusal import TransferRefused
from appliance.models.transfer.registry import Registry, expect, referrers_tag

_EMPTY: Final = b"{}"


def push(
    registry: Registry,
    target: str,
    *,
    name: str,
    model: Descriptor,
    fd: int,
    bundles: tuple[bytes, ...],
    progress: Progress,
) -> Digest:
    """Uploads what is missing and returns the model manifest's digest. Raises ``TransferRefused``."""
    config = _config(name, model.digest)
    for data in (config, *bundles, _EMPTY):
        _put_blob(registry, Digest.of(data), data)
    _put_blob(registry, model.digest, Upload(fd=fd, size_bytes=model.size_bytes, progress=progress))
    artifact = _model_manifest(config, model, name)
    digest = Digest.of(artifact)
    _put_manifest(registry, digest, artifact, media.MANIFEST)
    for bundle in bundles:
        _refer(registry, digest, len(artifact), bundle)
    _put_manifest(registry, target, artifact, media.MANIFEST)
    return digest


def _config(name: str, digest: Digest) -> bytes:
    """ModelPack model configuration: what it demands and no more. Nobody has to believe it."""
    return canonical_json(
        {
            "descriptor": {"name": name},
            "config": {"format": "gguf"},
            "modelfs": {"type": "layers", "diffIds": [str(digest)]},
        }
    )


def _model_manifest(config: bytes, model: Descriptor, name: str) -> bytes:
    layer = _descriptor(media.MODELPACK_WEIGHT, model.digest, model.size_bytes)
    file_name = name.replace(":", "-") + ".gguf"
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": media.MODELPACK_ARTIFACT,
            "config": _descriptor(media.MODELPACK_CONFIG, Digest.of(config), len(config)),
            "layers": [{**layer, "annotations": {"org.cncf.model.filepath": file_name}}],
        }
    )


def _refer(registry: Registry, subject: Digest, subject_bytes: int, bundle: bytes) -> None:
    referrer = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": media.BUNDLE,
            "config": _descriptor(media.EMPTY, Digest.of(_EMPTY), len(_EMPTY)),
            "layers": [_descriptor(media.BUNDLE, Digest.of(bundle), len(bundle))],
            "subject": _descriptor(media.MANIFEST, subject, subject_bytes),
        }
    )
    entry = _descriptor(media.MANIFEST, Digest.of(referrer), len(referrer)) | {"artifactType": media.BUNDLE}
    if not _put_manifest(registry, Digest.of(referrer), referrer, media.MANIFEST):
        _add_to_tag(registry, subject, entry)


def _add_to_tag(registry: Registry, subject: Digest, entry: dict[str, Any]) -> None:
    """Reads, adds, writes: the specification offers nothing better, and two pushes at once may lose one entry."""
    index = registry.referrers_by_tag(subject)
    others = [
        _descriptor(other.media_type, other.digest, other.size_bytes)
        | ({"artifactType": other.artifact_type} if other.artifact_type else {})
        for other in (index.manifests if index else ())
        if str(other.digest) != entry["digest"]
    ]
    if len(others) >= MAX_INDEX_ENTRIES:
        raise TransferRefused("index-full", "the model has too many referrers to add one")
    document = {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [entry, *others]}
    _put_manifest(registry, referrers_tag(subject), canonical_json(document), media.INDEX)


def _descriptor(media_type: str, digest: Digest, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size_bytes}


def _put_blob(registry: Registry, digest: Digest, body: bytes | Upload) -> None:
    """In one piece, unless it is there already."""
    with registry.exchange("HEAD", registry.url(f"blobs/{digest}"), is_blob=True) as answer:
        if answer.status == 200:
            return
        expect(answer, {404})
    start = registry.url("blobs/uploads/")
    with registry.exchange("POST", start) as answer:
        expect(answer, {202})
        url = registry.upload_location(answer, start)
    joined = f"{url.target}{'&' if '?' in url.target else '?'}digest={digest}"
    headers = {"Content-Type": "application/octet-stream"}
    target = type(url)(origin=url.origin, target=joined)
    with registry.exchange("PUT", target, headers, body) as answer:
        expect(answer, {201})


def _put_manifest(registry: Registry, target: str | Digest, data: bytes, media_type: str) -> bool:
    """Returns whether the registry keeps account of referrers itself."""
    headers = {"Content-Type": media_type}
    with registry.exchange("PUT", registry.url(f"manifests/{target}"), headers, data) as answer:
        expect(answer, {201})
        announced = answer.header("Docker-Content-Digest")
        if announced is not None and announced != str(Digest.of(data)):
            raise TransferRefused("digest-mismatch", "the registry stored another manifest than it was sent")
        return answer.header("OCI-Subject") is not None
