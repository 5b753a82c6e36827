"""The OCI distribution API 1.1, as far as models need it: manifests, referrers, blobs, and who is told a credential.

A credential goes to the registry's own origin and to token servers on origins that the operator named, and to nobody
else: not after a redirect, not to a realm. Each exchange is first tried without one.

Trusts: the operator, for the reference, the credential and the origins.
Promises: a manifest's bytes have the digest it was asked or announced by; ``blob`` responses carry no credential away.
Not here: the bytes of blobs (``download``), writing (``upload``).
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct

from appliance.core import strict_json
from appliance.core.values import Digest, Value
from appliance.models.transfer import manifest, media
from appliance.models.transfer.challenge import Challenge, parse_challenges, token_url
from appliance.models.transfer.client import Client, Response, Upload
from appliance.models.transfer.manifest import Descriptor, Index, Manifest
from appliance.models.transfer.origin import Origin, Url, located, redirected
from appliance.models.transfer.reference import Reference
from appliance.models.transfer.refusal import TransferRefused

MAX_REDIRECTS: Final = 5
MAX_TOKEN_ANSWER_BYTES: Final = 64 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ACCEPT: Final = ", ".join(sorted(media.MANIFESTS | media.INDEXES))
_STATUS_REASONS: Final = {401: "unauthorized", 403: "unauthorized", 404: "not-found", 429: "rate-limited"}


class Credentials(Value, frozen=True, kw_only=True):
    """A user and a secret, for the registry or its token server."""

    user: str
    password: str

    def basic(self) -> str:
        """RFC 7617."""
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()


_Token = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~+/-]+=*\Z", max_length=16384)]


class _TokenAnswer(Struct, frozen=True, kw_only=True):
    """The token specification lets a server give either name, or both."""

    token: _Token | None = None
    access_token: _Token | None = None


class Found(Value, frozen=True, kw_only=True):
    """A manifest, and the digest of its bytes."""

    digest: Digest
    size_bytes: int
    document: Manifest | Index


class Registry:
    """One repository of one registry."""

    def __init__(
        self,
        client: Client,
        reference: Reference,
        *,
        credentials: Credentials | None = None,
        auth_origins: frozenset[Origin] = frozenset(),
        actions: Literal["pull", "pull,push"] = "pull",
    ) -> None:
        self._client = client
        self.origin: Final = reference.origin
        self._repository = reference.repository
        self._credentials = credentials
        self._trusted_origins = auth_origins | {reference.origin}
        self._scope = f"repository:{reference.repository}:{actions}"
        self._authorization: str | None = None

    def url(self, rest: str) -> Url:
        return Url(origin=self.origin, target=f"/v2/{self._repository}/{rest}")

    # --- reading ---------------------------------------------------------------------------------------------------

    def manifest(self, target: str | Digest) -> Found:
        """Raises ``TransferRefused``, also when the bytes are not those of the digest."""
        with self.exchange("GET", self.url(f"manifests/{target}"), {"Accept": _ACCEPT}) as answer:
            expect(answer, {200})
            return _read_manifest(answer, target)

    def referrers(self, subject: Digest) -> Index | None:
        """What refers to a manifest: by the API, or else by the tag that stands in for it. None if nobody knows."""
        query = urlencode({"artifactType": media.BUNDLE})
        with self.exchange("GET", self.url(f"referrers/{subject}?{query}"), {"Accept": media.INDEX}) as answer:
            if answer.status == 200:
                data = answer.small_body(manifest.MAX_MANIFEST_BYTES)
                return _as_index(manifest.parse(data, _content_type(answer)))
        return self.referrers_by_tag(subject)

    def referrers_by_tag(self, subject: Digest) -> Index | None:
        """The referrers tag schema: an index under the digest, written as a tag."""
        with self.exchange("GET", self.url(f"manifests/{referrers_tag(subject)}"), {"Accept": media.INDEX}) as answer:
            if answer.status == 404:
                return None
            expect(answer, {200})
            return _as_index(_read_manifest(answer, referrers_tag(subject)).document)

    def blob(self, digest: Digest, *, start: int = 0) -> Response:
        """The answer to a request for a blob, from byte ``start`` on: status 200 or 206. The caller closes it."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self.exchange("GET", self.url(f"blobs/{digest}"), headers, is_blob=True)
        try:
            expect(answer, {200, 206} if start else {200})
        except BaseException:
            answer.close()
            raise
        return answer

    def small_blob(self, descriptor: Descriptor, at_most_bytes: int) -> bytes:
        """A blob that fits in memory, checked. Raises ``TransferRefused``."""
        if descriptor.size_bytes > at_most_bytes:
            raise TransferRefused("body-too-large", f"a signature of more than {at_most_bytes} bytes")
        with self.blob(descriptor.digest) as answer:
            data = b"".join(answer.blob(descriptor.size_bytes))
        if Digest.of(data) != descriptor.digest:
            raise TransferRefused("digest-mismatch", "the bytes of a blob are not those of its digest")
        return data

    # --- exchanges -------------------------------------------------------------------------------------------------

    def exchange(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str] | None = None,
        body: bytes | Upload | None = None,
        *,
        is_blob: bool = False,
    ) -> Response:
        """One request, with the redirects and the authentication that it needs. Raises ``TransferRefused``."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._authorized(method, url, headers or {}, body)
            if answer.status not in _REDIRECTS:
                return answer
            with answer:
                location = answer.header("Location")
            if method not in {"GET", "HEAD"} or location is None:
                raise TransferRefused("redirect-malformed", "a redirect that cannot be followed")
            url = redirected(location, url, self.origin, is_blob=is_blob)
        raise TransferRefused("too-many-redirects", f"more than {MAX_REDIRECTS} redirects")

    def upload_location(self, answer: Response, current: Url) -> Url:
        """Where an upload goes on: on the registry's own origin, because our credential goes with it."""
        location = answer.header("Location")
        if location is None:
            raise TransferRefused("protocol-violation", "the registry does not say where to upload")
        url = located(location, current)
        if url.origin != self.origin:
            raise TransferRefused("redirect-foreign", "the registry sends an upload to another origin")
        return url

    def _authorized(self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Upload | None) -> Response:
        answer = self._client.exchange(method, url, self._with_authorization(url, headers), body)
        if answer.status != 401 or url.origin != self.origin or isinstance(body, Upload):
            return answer
        if self._authorization is not None:  # it was sent, and was not enough: asking again would be a loop
            return answer
        with answer:
            self._authorization = self._answer_to(answer.headers("WWW-Authenticate"))
        return self._client.exchange(method, url, self._with_authorization(url, headers), body)

    def _with_authorization(self, url: Url, headers: Mapping[str, str]) -> dict[str, str]:
        if self._authorization is None or url.origin != self.origin:
            return dict(headers)
        return {**headers, "Authorization": self._authorization}

    def _answer_to(self, fields: tuple[str, ...]) -> str:
        challenges = [challenge for field in fields for challenge in parse_challenges(field)]
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return f"Bearer {self._token(challenge)}"
        if challenges and self._credentials is not None:
            return self._credentials.basic()
        raise TransferRefused("unauthorized", "the registry asks for a credential (--credentials)")

    def _token(self, challenge: Challenge) -> str:
        url = token_url(challenge, self._scope, self._trusted_origins)
        headers = {"Authorization": self._credentials.basic()} if self._credentials else {}
        with self._client.exchange("GET", url, headers) as answer:
            if answer.status in _REDIRECTS:
                raise TransferRefused("redirect-foreign", "a token server does not redirect")
            expect(answer, {200})
            data = answer.small_body(MAX_TOKEN_ANSWER_BYTES)
        try:
            decoded = msgspec.convert(strict_json.check(data, max_depth=8), _TokenAnswer)
        except (strict_json.JsonInvalid, msgspec.ValidationError):
            raise TransferRefused("token-malformed", "the token server's answer cannot be read") from None
        token = decoded.token or decoded.access_token
        if token is None:
            raise TransferRefused("token-malformed", "the token server sent no token")
        return token


def referrers_tag(subject: Digest) -> str:
    """Distribution specification 1.1, "Referrers Tag Schema"."""
    return f"sha256-{subject.hex}"


def expect(answer: Response, statuses: set[int]) -> None:
    """Raises ``TransferRefused`` for any other status. The body of an error is never read."""
    if answer.status not in statuses:
        reason = _STATUS_REASONS.get(answer.status, "status-unexpected")
        raise TransferRefused(reason, f"the registry answered {answer.status}")


def _content_type(answer: Response) -> str | None:
    kind = answer.header("Content-Type")
    return None if kind is None else re.split(r"[ \t]*;", kind, maxsplit=1)[0].lower()


def _read_manifest(answer: Response, target: str | Digest) -> Found:
    data = answer.small_body(manifest.MAX_MANIFEST_BYTES)
    digest = Digest.of(data)
    announced = answer.header("Docker-Content-Digest")
    if isinstance(target, Digest) and target != digest:
        raise TransferRefused("digest-mismatch", "the manifest's bytes are not those of the digest that was asked for")
    if announced is not None and announced != str(digest):
        raise TransferRefused("digest-mismatch", "the manifest's bytes are not those of the digest it came with")
    return Found(digest=digest, size_bytes=len(data), document=manifest.parse(data, _content_type(answer)))


def _as_index(document: Manifest | Index) -> Index:
    if not isinstance(document, Index):
        raise TransferRefused("manifest-malformed", "the list of referrers is not an index")
    return document
