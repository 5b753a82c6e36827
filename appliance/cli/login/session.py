"""``paddock login``, ``logout`` and ``whoami``: a person's tokens, from the provider to the programs that send them.

Trusts: the person at the terminal; the provider for what is theirs (``provider``).
Promises: a refresh token is spent by one program at a time, and what the provider gives for it is kept before anybody
    uses it; after ``sign_out`` nothing is left on this machine, whatever the provider said.
Not here: the appliance, which knows nothing of any of this but the token that it is sent.
"""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from appliance.cli.login import answers
from appliance.cli.login.answers import AnswerInvalid, Declined, DeviceAuthorization, Grant
from appliance.cli.login.provider import Provider
from appliance.cli.login.store import Change, Login, Site, Store, Tokens
from appliance.cli.login.waiting import Waiting
from appliance.core.refusals import Fault
from appliance.identity.https import Unreachable

DEFAULT_SCOPES: Final = ("openid",)
MARGIN_SECONDS: Final = 30
"""A token that lives no longer than this could expire on its way to the server."""
SIGN_IN_FIRST: Final = "nobody is signed in here: run 'paddock login'"

_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749 section 3.3."""
_CLIENT: Final = re.compile(r"[\x20-\x7e]{1,255}")
"""RFC 6749 appendix A.1."""


def site(
    store: Store, *, issuer: str | None, client_id: str | None, ca_file: Path | None, scopes: tuple[str, ...]
) -> Site:
    """Where to sign in: as said now, or as the last time where no issuer is named. Raises ``Fault``."""
    former = None if issuer is not None else store.read()
    known = former.site if former is not None else None
    issuer = issuer or (known.issuer if known else None)
    client_id = client_id or (known.client_id if known else None)
    if issuer is None or client_id is None:
        raise Fault("the first time, --issuer and --client-id must say where to sign in, and as which client")
    if not _CLIENT.fullmatch(client_id):
        raise Fault("--client-id must be 1 to 255 printable ASCII characters")
    wanted = tuple(one for given in scopes for one in given.split(" "))
    if not all(_SCOPE.fullmatch(one) for one in wanted):
        raise Fault("--scope must be names of scopes (RFC 6749 section 3.3)")
    ca = str(ca_file.absolute()) if ca_file is not None else known.ca_file if known else None
    return Site(
        issuer=issuer,
        client_id=client_id,
        ca_file=ca,
        scopes=wanted or (known.scopes if known else DEFAULT_SCOPES),
    )


def sign_in(store: Store, where: Site) -> None:
    """Device authorization grant (RFC 8628). What there was before is signed out first: some providers end all logins
    of a client when one is revoked, so afterwards would be too late. Raises ``Fault``."""
    with store.changing() as change:
        change.take_room()  # or the person would go to the browser in vain
    with _plainly():
        provider, given = asyncio.run(_asked(where))
    waiting = Waiting(given, began_seconds=time.monotonic())
    with store.changing() as change:
        problem = _end(change)
    if problem:
        print(f"The former login was removed here, but not revoked: {problem}\n")
    _show(given)
    with _plainly():
        tokens = asyncio.run(_granted(provider, given, waiting, where))
    with store.changing() as change:
        change.write(Login(site=where, tokens=tokens))
    print(f"Signed in{_as(tokens)} at {where.issuer}")


def sign_out(store: Store) -> int:
    """RFC 7009. Returns the exit status: 1 where the provider did not confirm."""
    with store.changing() as change:
        if change.login is None or change.login.tokens is None:
            print("nobody is signed in here")
            return 0
        problem = _end(change)
    if problem:
        print(f"removed from this machine, but not revoked at the provider: {problem}")
        return 1
    print("signed out")
    return 0


def access_token(store: Store) -> str:
    """One that is good for ``MARGIN_SECONDS`` or more, as far as the provider lets it. Raises ``Fault``."""
    login = store.read()
    if login is not None and login.tokens is not None and login.tokens.fresh(_now(), MARGIN_SECONDS):
        return login.tokens.access_token
    with store.changing() as change:
        return _refreshed(change).access_token


def whoami(store: Store) -> int:
    """Prints what is known here, without asking anybody. Returns the exit status: 1 where nobody is signed in."""
    login = store.read()
    if login is None or login.tokens is None:
        print("nobody is signed in here")
        return 1
    tokens = login.tokens
    print(f"signed in{_as(tokens)}")
    print(f"  issuer   {login.site.issuer}")
    print(f"  client   {login.site.client_id}")
    print(f"  scopes   {' '.join(login.site.scopes)}")
    print(f"  token    {_lifetime(tokens)}; {'can' if tokens.refresh_token else 'cannot'} be renewed")
    return 0


# --- with the provider ----------------------------------------------------------------------------------------------


async def _asked(where: Site) -> tuple[Provider, DeviceAuthorization]:
    provider = await _provider(where)
    return provider, await provider.authorise_device(where.scopes)


async def _granted(provider: Provider, given: DeviceAuthorization, waiting: Waiting, where: Site) -> Tokens:
    while True:
        await asyncio.sleep(waiting.pause_seconds(time.monotonic()))
        asked_at_seconds = _now()
        try:
            grant = await provider.token_for_device(given.device_code)
        except Declined as error:
            waiting.declined(error)
        except Unreachable as error:
            waiting.unanswered(error)
        else:
            return _tokens(grant, where, asked_at_seconds)


def _refreshed(change: Change) -> Tokens:
    """Another program may have renewed them while we waited for the lock, or signed out."""
    login = change.login
    if login is None or login.tokens is None:
        raise Fault(SIGN_IN_FIRST)
    former = login.tokens
    if former.fresh(_now(), MARGIN_SECONDS):
        return former
    if former.refresh_token is None:
        raise Fault("the token has expired, and the provider gave none to renew it: run 'paddock login'")
    change.take_room()
    try:
        with _plainly():
            tokens = asyncio.run(_refresh(login.site, former, former.refresh_token))
    except _Ended as error:
        change.write(Login(site=login.site, tokens=None))
        raise Fault(f"the provider has ended this login ({error}): run 'paddock login'") from error
    change.write(Login(site=login.site, tokens=tokens))
    return tokens


class _Ended(Exception):
    """RFC 6749 section 5.2, ``invalid_grant``: the refresh token will never be good again."""


async def _refresh(where: Site, former: Tokens, refresh_token: str) -> Tokens:
    provider = await _provider(where)
    asked_at_seconds = _now()
    try:
        grant = await provider.refresh(refresh_token)
    except Declined as error:
        if error.code == "invalid_grant":
            raise _Ended(str(error)) from error
        raise
    tokens = _tokens(grant, where, asked_at_seconds, former)
    if former.subject is not None and tokens.subject != former.subject:
        raise AnswerInvalid("the provider renewed the login of somebody else")  # OpenID Connect Core section 12.2
    return tokens


def _tokens(grant: Grant, where: Site, asked_at_seconds: int, former: Tokens | None = None) -> Tokens:
    """What an answer to a refresh leaves out is as before (RFC 6749 section 6)."""
    subject, name = (former.subject, former.name) if former else (None, None)
    if grant.id_token is not None:
        person = answers.person(
            grant.id_token, issuer=where.issuer, client_id=where.client_id, now_seconds=asked_at_seconds
        )
        subject, name = person.subject, person.name
    return Tokens(
        access_token=grant.access_token,
        refresh_token=grant.refresh_token or (former.refresh_token if former else None),
        received_at_seconds=asked_at_seconds,
        expires_at_seconds=None if grant.expires_in is None else asked_at_seconds + grant.expires_in,
        subject=subject,
        name=name,
    )


def _end(change: Change) -> str | None:
    """Revokes and removes what is there. Returns what kept the provider from revoking. The tokens go in any case:
    nobody can use what nobody has."""
    login = change.login
    if login is None or login.tokens is None:
        return None
    problem = None
    try:
        with _plainly():
            problem = asyncio.run(_revoke(login.site, login.tokens))
    except Fault as fault:
        problem = fault.detail
    try:
        change.write(Login(site=login.site, tokens=None))
    except (Fault, OSError):  # a full disk takes away at least
        change.remove()
    return problem


async def _revoke(where: Site, tokens: Tokens) -> str | None:
    provider = await _provider(where)
    if not provider.can_revoke:
        return "it does not offer to (RFC 7009)"
    if tokens.refresh_token is not None:
        await provider.revoke(tokens.refresh_token, "refresh_token")
    try:
        await provider.revoke(tokens.access_token, "access_token")
    except Declined as error:
        if error.code != "unsupported_token_type" or tokens.refresh_token is None:
            raise
    return None


async def _provider(where: Site) -> Provider:
    return await Provider.discover(where.issuer, where.client_id, Path(where.ca_file) if where.ca_file else None)


@contextmanager
def _plainly() -> Iterator[None]:
    """One sentence for the terminal, whatever the provider did."""
    try:
        yield
    except Unreachable as error:
        raise Fault(f"the provider cannot be asked: {answers.told(str(error))}") from error
    except Declined as error:
        raise Fault(f"the provider refused: {error}") from error
    except AnswerInvalid as error:
        raise Fault(str(error)) from error


# --- with the person ------------------------------------------------------------------------------------------------


def _show(given: DeviceAuthorization) -> None:
    """RFC 8628 section 3.3. All of it was held to printable ASCII (``answers``)."""
    print("To sign in, open this address in a browser, on any machine,\n")
    print(f"    {given.verification_uri}\n")
    print("and enter this code:\n")
    print(f"    {given.user_code}\n")
    if given.verification_uri_complete is not None:
        print("Or open this one, and go on only if it shows the same code:\n")
        print(f"    {given.verification_uri_complete}\n")
    print("Waiting until you have.", flush=True)


def _as(tokens: Tokens) -> str:
    return f" as {answers.told(tokens.name)}" if tokens.name else ""


def _lifetime(tokens: Tokens) -> str:
    if tokens.expires_at_seconds is None:
        return "the provider did not say for how long it is good"
    left = tokens.expires_at_seconds - _now()
    return f"good for {left} s" if left > 0 else "has expired"


def _now() -> int:
    return int(time.time())
