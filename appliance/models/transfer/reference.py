"""References to models in registries: ``host[:port]/repository:tag`` or ``host[:port]/repository@sha256:…``.

There is no default registry and no default tag: what is fetched stands in what was written. The grammar of names and
tags is that of the OCI distribution specification 1.1, "Pulling manifests".

Trusts: nothing.
Promises: every part of a ``Reference`` can stand in a URL path as it is.
Not here: which reference is allowed (a signature by a trusted key decides, not a place).
"""

import re
from typing import Final

from appliance.core.values import Digest, Value
from appliance.models.transfer.origin import Origin, is_loopback, parse_authority

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Reference(Value, frozen=True, kw_only=True):
    """A place in a registry: a manifest by its tag, or by its digest."""

    origin: Origin
    repository: str
    target: str | Digest

    def __str__(self) -> str:
        return (
            f"{self.origin.authority}/{self.repository}{'@' if isinstance(self.target, Digest) else ':'}{self.target}"
        )


def parse_reference(text: str, *, has_own_ca: bool = False) -> Reference:
    """Raises ``ValueError`` for everything else.

    The scheme is HTTPS; a registry on a loopback address is spoken to in plain HTTP unless a certificate authority was
    given for it.
    """
    host_part, slash, rest = text.partition("/")
    if not slash:
        raise ValueError("a reference is host[:port]/repository:tag: there is no default registry")
    host, port = parse_authority(host_part)
    if not ("." in host or ":" in host or host == "localhost" or port is not None):
        raise ValueError("a reference begins with the registry's host: there is no default registry")
    repository, target = _target(rest)
    if len(repository) > 255 or not _REPOSITORY.fullmatch(repository):
        raise ValueError("not the name of a repository")
    if is_loopback(host) and not has_own_ca:
        origin = Origin(scheme="http", host=host, port=port or 80)
    else:
        origin = Origin(scheme="https", host=host, port=port or 443)
    return Reference(origin=origin, repository=repository, target=target)


def _target(rest: str) -> tuple[str, str | Digest]:
    if "@" in rest:
        repository, _, digest = rest.partition("@")
        if ":" in repository:
            raise ValueError("a reference has a tag or a digest, not both")
        return repository, Digest.parse(digest)
    repository, _, tag = rest.partition(":")
    if not _TAG.fullmatch(tag):
        raise ValueError("a reference ends with :tag or @sha256:digest")
    return repository, tag
