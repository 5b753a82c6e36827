"""An identity provider, as a public client asks it: where its endpoints are, for a code, for tokens, and to end them.

A public client has no secret, since a program on a person's machine could not keep one (RFC 8628 section 5.6).

Trusts: the certificate authorities of the TLS context, and whoever has the issuer's name by them.
Promises: each question ends in time, over HTTPS, at an endpoint that the issuer itself names; what is refused is
    ``Declined``, what cannot be used ``AnswerInvalid``, and no answer ``Unreachable``.
Not here: what becomes of the tokens (``session``); when to ask again (``waiting``).
"""

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

from appliance.cli.login import answers
from appliance.cli.login.answers import AnswerInvalid, DeviceAuthorization, Grant, Metadata
from appliance.core.refusals import Fault
from appliance.identity.https import Endpoint, Reply, Unreachable, converse, exchange, tls_context

EXCHANGE_SECONDS: Final = 15.0
DEVICE_CODE: Final = "urn:ietf:params:oauth:grant-type:device_code"


class Provider:
    """One issuer and our client id there. Made by ``discover``."""

    def __init__(self, metadata: Metadata, client_id: str, tls: ssl.SSLContext) -> None:
        self._metadata = metadata
        self._client_id = client_id
        self._tls = tls

    @classmethod
    async def discover(cls, issuer: str, client_id: str, ca_file: Path | None) -> "Provider":
        """OpenID Connect's place for the metadata, then that of RFC 8414. Raises ``Fault`` for an issuer or a file that
        cannot be one."""
        tls = trust(ca_file)
        openid, oauth = _well_known(issuer)
        try:
            body = await exchange(openid, tls, timeout_seconds=EXCHANGE_SECONDS)
        except Unreachable as first:
            try:
                body = await exchange(oauth, tls, timeout_seconds=EXCHANGE_SECONDS)
            except Unreachable:
                raise first from None
        return cls(answers.metadata(body, issuer), client_id, tls)

    async def authorise_device(self, scopes: tuple[str, ...]) -> DeviceAuthorization:
        """RFC 8628 section 3.1."""
        endpoint = self._metadata.device_authorization_endpoint
        if endpoint is None:
            raise AnswerInvalid("the provider does not offer the device authorization grant (RFC 8628)")
        fields = {"scope": " ".join(scopes)} if scopes else {}
        return answers.device_authorization(await self._ask(endpoint, fields))

    async def token_for_device(self, device_code: str) -> Grant:
        """RFC 8628 section 3.4. ``Declined`` says whether to go on asking."""
        return await self._token({"grant_type": DEVICE_CODE, "device_code": device_code})

    async def refresh(self, refresh_token: str) -> Grant:
        """RFC 6749 section 6."""
        return await self._token({"grant_type": "refresh_token", "refresh_token": refresh_token})

    @property
    def can_revoke(self) -> bool:
        return self._metadata.revocation_endpoint is not None

    async def revoke(self, token: str, kind: str) -> None:
        """RFC 7009 section 2.1. A token that is not known is as good as revoked: 200."""
        if self._metadata.revocation_endpoint is not None:
            await self._ask(self._metadata.revocation_endpoint, {"token": token, "token_type_hint": kind}, json=False)

    async def _token(self, fields: dict[str, str]) -> Grant:
        return answers.grant(await self._ask(self._metadata.token_endpoint, fields))

    async def _ask(self, address: str, fields: dict[str, str], *, json: bool = True) -> bytes:
        form = urlencode({"client_id": self._client_id, **fields}).encode("ascii")
        reply = await converse(_endpoint(address), self._tls, timeout_seconds=EXCHANGE_SECONDS, form=form)
        return _accepted(reply, json=json)


def _accepted(reply: Reply, *, json: bool) -> bytes:
    """The body of a 200. A client's mistakes are 4xx with the shape of RFC 6749 section 5.2; anything else says nothing
    about the question."""
    if reply.status == 200 and (reply.is_json or not json):
        return reply.body
    if 400 <= reply.status <= 499 and reply.is_json:
        raise answers.declined(reply.body)
    raise Unreachable(f"status {reply.status}" if reply.status != 200 else "the answer is not JSON")


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """The authorities of this file and no other, or those of this machine. Raises ``Misconfigured``."""
    if ca_file is not None:
        return tls_context(ca_file)
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _well_known(issuer: str) -> tuple[Endpoint, Endpoint]:
    """OpenID Connect Discovery section 4.1 puts its name after the issuer's path, RFC 8414 section 3.1 before it."""
    try:
        Endpoint.parse(issuer)
        parts = urlsplit(issuer)
        if parts.query:
            raise ValueError("must not have a query")
        path = parts.path.rstrip("/")
        origin = f"https://{parts.netloc}"
        return (
            Endpoint.parse(f"{origin}{path}/.well-known/openid-configuration"),
            Endpoint.parse(f"{origin}/.well-known/oauth-authorization-server{path}"),
        )
    except ValueError as error:
        raise Fault(f"the issuer {answers.told(issuer)!r} {error}") from error


def _endpoint(address: str) -> Endpoint:
    try:
        return Endpoint.parse(address)
    except ValueError as error:
        raise AnswerInvalid(f"the provider's address {answers.told(address)!r} {error}") from error
