"""Who may sign the catalogue next: the keys, and how many of them, that others hand over to.

The manner is that of TUF's root (specification section 5.3), for one role: each root has the version after the last and
is signed by enough keys of the last *and* enough of its own. Where the first comes from is the operator's to say.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from appliance.core import strict_json
from appliance.core.codec import canonical_json
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, Value

ROOT_TYPE: Final = "application/vnd.paddock.catalogue-root.v1+json"
MAX_ROOT_KEYS: Final = 16
_MAX_NUMBER: Final = 2**53 - 1


class RootKey(Value, frozen=True, kw_only=True):
    """A public key by the name of its owner. ``models.roots`` judges whether it is one."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._@-]{0,127}\Z")]
    pem: Annotated[str, Meta(min_length=1, max_length=2048)]


class Root(Value, frozen=True, kw_only=True):
    """These keys, ``required`` of which must sign, until it expires or another follows it."""

    version: Annotated[int, Meta(ge=1, le=_MAX_NUMBER)]
    expires_at_seconds: Annotated[int, Meta(ge=1, le=_MAX_NUMBER)]
    required: Annotated[int, Meta(ge=1, le=MAX_ROOT_KEYS)]
    keys: Annotated[tuple[RootKey, ...], Meta(min_length=1, max_length=MAX_ROOT_KEYS)]


class SeenRoot(Value, frozen=True, kw_only=True):
    """How far a succession had come. It says which root to expect and nothing of what that root allows."""

    version: Annotated[int, Meta(ge=1, le=_MAX_NUMBER)]
    digest: Digest

    @classmethod
    def of(cls, root: Root) -> "SeenRoot":
        return cls(version=root.version, digest=Digest.of(encode_root(root)))


def decode_root(payload: bytes) -> Root:
    """Raises ``Refused(MODEL_NOT_VERIFIED)``: ``root-malformed``."""
    try:
        root = msgspec.convert(strict_json.check(payload, max_depth=4, max_items=MAX_ROOT_KEYS), Root)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise root_refused("root-malformed", str(error)) from None
    if len({key.name for key in root.keys}) < len(root.keys):
        raise root_refused("root-malformed", "two keys have one name")
    if root.required > len(root.keys):
        raise root_refused("root-malformed", "more signatures are required than there are keys")
    return root


def encode_root(root: Root) -> bytes:
    """Root -> the payload that is signed: canonical JSON."""
    return canonical_json(root)


def root_refused(code: str, detail: str) -> Refused:
    return Refused(Reason.MODEL_NOT_VERIFIED, f"{code}: {detail}")
