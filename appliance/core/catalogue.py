"""The signed list of the models that may be loaded, and the one place that judges whether it is the current one.

OpenSSF Model Signing says who made a model and nothing about whether it is still wanted: a bundle is valid for ever.
The catalogue is the operator's answer, in the manner of TUF (specification sections 5.3 to 5.6), for one offline file:

- **rollback**: its ``version`` never falls below the highest that was accepted, nor any model's below its own;
- **freeze**: it expires, as a whole and each entry for itself, so that withholding a newer one does not help for long;
- **mix-and-match**: one version has one content, a model is listed once, and name, digest and signer of the model must
  all be those of that one entry;
- a field that is not known is refused: an older appliance must not overlook a newer restriction.

Revocation is leaving an entry out of the next version.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, field

from appliance.core import strict_json
from appliance.core.catalogue_root import SeenRoot
from appliance.core.codec import canonical_json, dec_hook
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, SealMode, Value, VerifiedModel, seals_at_least

CATALOGUE_TYPE: Final = "application/vnd.paddock.catalogue.v1+json"
MAX_MODELS: Final = 1000
MAX_REMEMBERED: Final = 16 * MAX_MODELS
"""Names of models whose versions are kept, listed or not: 2 MB at most."""
MAX_VERSION: Final = 2**53 - 1

_Version = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
_Seconds = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
_ModelName = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,31})?\Z")]


class CatalogueEntry(Value, frozen=True, kw_only=True):
    """One model that may be loaded, until its own expiry: these bytes, by this signer, sealed at least so well.

    ``chat_template_digest``: of the chat template in them, which is a program (CVE-2024-34359). ``digest`` pins it too;
    this one says which template was looked at, and can be compared from model to model.
    """

    name: _ModelName
    version: _Version
    digest: Digest
    signer: Annotated[str, Meta(min_length=1, max_length=512)]
    minimum_seal: SealMode
    expires_at_seconds: _Seconds
    chat_template_digest: Digest | None = None

    def check_fit(self, seal_mode: SealMode, chat_template_digest: Digest | None) -> None:
        """Raises ``Refused`` unless sealed well enough and, where a chat template is named, with that one."""
        if not seals_at_least(seal_mode, self.minimum_seal):
            raise catalogue_refused("seal-too-weak", f"{self.name} needs {self.minimum_seal}, not {seal_mode}")
        if self.chat_template_digest not in {None, chat_template_digest}:
            raise catalogue_refused("catalogue-template", f"{self.name} has the chat template {chat_template_digest}")


class Catalogue(Value, frozen=True, kw_only=True):
    """A list whose signatures were verified, well formed; ``accept`` judges whether it is the current one."""

    version: _Version
    expires_at_seconds: _Seconds
    models: Annotated[tuple[CatalogueEntry, ...], Meta(max_length=MAX_MODELS)]

    def permits(self, model: VerifiedModel, seal_mode: SealMode, *, now_seconds: int) -> None:
        """As ``lists``, sealed well enough, and with the chat template that was looked at, where one is named."""
        signers = frozenset(signer.name for signer in (model.signer, *model.cosigners))
        entry = self.lists(model.name, model.digest, signers, now_seconds=now_seconds)
        entry.check_fit(seal_mode, model.facts.chat_template_digest)

    def lists(self, name: str, digest: Digest, signers: frozenset[str], *, now_seconds: int) -> CatalogueEntry:
        """The entry of a model.

        Raises ``Refused(MODEL_NOT_VERIFIED)``, whose detail begins with a code, unless the model may be loaded now.

        Ask at each load, and again while it runs: time passes, and so do catalogues.
        """
        if now_seconds >= self.expires_at_seconds:
            raise catalogue_refused("catalogue-expired", f"version {self.version} of the catalogue has expired")
        entry = next((one for one in self.models if one.name == name), None)
        if entry is None:
            raise catalogue_refused("not-in-catalogue", f"version {self.version} does not list {name}")
        if entry.digest != digest:
            raise catalogue_refused("catalogue-digest", f"{name} is listed with {entry.digest}")
        if entry.signer not in signers:
            raise catalogue_refused("catalogue-signer", f"{name} must be signed by {entry.signer}")
        if now_seconds >= entry.expires_at_seconds:
            raise catalogue_refused("catalogue-entry-expired", f"the entry of {name} has expired")
        return entry


class Seen(Value, frozen=True, kw_only=True):
    """What was accepted last, to be kept durably: version, digest of the exact payload, and each model's version.

    ``roots``: the last root that was accepted, by the digest (hex) of the operator's keys that it came from.
    """

    version: int
    payload_digest: Digest
    models: dict[str, int]
    roots: dict[str, SeenRoot] = field(default_factory=dict)

    def with_root(self, anchor: Digest, root: SeenRoot) -> "Seen":
        return Seen(
            version=self.version,
            payload_digest=self.payload_digest,
            models=self.models,
            roots=self.roots | {anchor.hex: root},
        )


NOTHING_SEEN: Final = Seen(version=0, payload_digest=Digest.of(b""), models={})


def catalogue_refused(code: str, detail: str) -> Refused:
    return Refused(Reason.MODEL_NOT_VERIFIED, f"{code}: {detail}")


def decode_catalogue(payload: bytes) -> Catalogue:
    """The payload of a verified envelope -> Catalogue. Raises ``Refused(MODEL_NOT_VERIFIED)``."""
    try:
        document = strict_json.check(payload, max_depth=4, max_items=MAX_MODELS)
        catalogue: Catalogue = msgspec.convert(document, Catalogue, dec_hook=dec_hook)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise catalogue_refused("catalogue-malformed", str(error)) from None
    if len({entry.name for entry in catalogue.models}) < len(catalogue.models):
        raise catalogue_refused("catalogue-duplicate", "a model is listed twice")
    return catalogue


def encode_catalogue(catalogue: Catalogue) -> bytes:
    """Catalogue -> the payload that is signed: canonical JSON."""
    return canonical_json(catalogue)


def accept(payload: bytes, seen: Seen, *, now_seconds: int) -> tuple[Catalogue, Seen]:
    """A verified payload and what was accepted before -> the catalogue that holds, and what to remember.

    The caller makes the second durable before it relies on the first. Raises ``Refused(MODEL_NOT_VERIFIED)``. Models
    that a newer version leaves out stay remembered, so that leaving one out does not let an older one return; until
    there are more than ``MAX_REMEMBERED``, when only those that are listed do.
    """
    catalogue = decode_catalogue(payload)
    digest = Digest.of(payload)
    if catalogue.version < seen.version:
        raise catalogue_refused(
            "catalogue-rollback", f"version {catalogue.version} is older than {seen.version}, which was seen"
        )
    if catalogue.version == seen.version and digest != seen.payload_digest:
        raise catalogue_refused("catalogue-equivocation", f"version {catalogue.version} was seen with other content")
    for entry in catalogue.models:
        if entry.version < seen.models.get(entry.name, 0):
            raise catalogue_refused("model-rollback", f"{entry.name} was listed with a higher version")
    if now_seconds >= catalogue.expires_at_seconds:
        raise catalogue_refused("catalogue-expired", f"version {catalogue.version} of the catalogue has expired")
    listed = {entry.name: entry.version for entry in catalogue.models}
    models = seen.models | listed
    if len(models) > MAX_REMEMBERED:
        models = listed
    return catalogue, Seen(version=catalogue.version, payload_digest=digest, models=models, roots=seen.roots)
