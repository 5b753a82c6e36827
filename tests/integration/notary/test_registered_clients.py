"""Tokens of clients, from a whole notary: what is registered, once, on record, and until it ends."""

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.core.clients import IssuedTokens, Party
from appliance.core.records import ClientChanged, TokenIssued, TokenRevoked
from appliance.core.refusals import Misconfigured, Reason, Refused
from appliance.core.values import Digest
from appliance.ipc.messages import (
    AskGrant,
    AskRefresh,
    AskRevoke,
    ClientList,
    EndTokens,
    Failed,
    FamilyList,
    FindClient,
    ListClients,
    ListFamilies,
    PutClient,
    RemoveClient,
)
from appliance.notary import granting, operating, registrar
from appliance.notary.clock import SystemClock
from appliance.notary.files import Files
from appliance.notary.main import NotaryConfig
from appliance.notary.registry import Registry
from appliance.notary.signer import TokenSigner
from tests.support.audit_log import run
from tests.support.notary_client import NotaryClient, notary_config, running_notary
from tests.support.registered import (
    CERTIFICATE,
    JKT,
    by_certificate,
    by_key,
    client,
    exchange,
    exchanging,
    order,
    public_key,
    refresh,
    revoke,
)
from tests.support.registry_world import World, connected, world


def records(config: NotaryConfig, *kinds: Any) -> list[Any]:
    return [entry.record for entry in read_entries(config.state_dir / "log") if isinstance(entry.record, kinds)]


def findings(config: NotaryConfig) -> list[str]:
    report = verify_log(config.state_dir / "log", (config.public_dir / "log.vkey").read_text())
    assert report.verdict == "intact", report
    return [remark.what for remark in report.findings]


async def refused(asking: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        await asking
    return caught.value.reason


def said(tokens: IssuedTokens) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(tokens.access_token, options={"verify_signature": False})
    return claims


class Full(Files):
    """The log's disk; SQLite writes by itself."""

    full = False

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().write_at(fd, data, offset)


class MovedClock(SystemClock):
    moved_seconds = 0

    def wall_seconds(self) -> int:
        return super().wall_seconds() + self.moved_seconds


async def next_second() -> None:
    """Tokens of the second in which a client's tokens were ended have ended too, so none is issued in it."""
    second = int(time.time())
    while int(time.time()) == second:
        await asyncio.sleep(0.01)


# --- grants ---------------------------------------------------------------------------------------------------------


def test_token_says_what_was_asked_for_and_is_on_record(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(exchanging())
            acting = (Party(subject="agent"), Party(subject="planner", issuer="https://other.test"))
            asked = exchange(acting=acting, certificate_sha256=CERTIFICATE, jkt=JKT, groups=("analysts", "staff"))
            tokens = await here.registry.grant(asked)
            claims = said(tokens)
            assert claims.pop("exp") - claims.pop("iat") == tokens.expires_in_seconds == 600
            assert claims == {
                "iss": "https://issuer.test",
                "aud": "paddock",
                "sub": "ada",
                "client_id": "agent",
                "jti": tokens.token_id,
                "scope": "analysts staff",
                "groups": ["analysts", "staff"],
                "models": ["demo"],
                "act": {"sub": "agent", "act": {"sub": "planner", "iss": "https://other.test"}},
                "cnf": {"x5t#S256": CERTIFICATE, "jkt": JKT},
            }
            (record,) = records(config, TokenIssued)
            assert record.token_sha256 == Digest.of(tokens.access_token.encode())
            assert (record.grant, record.acting, record.family) == (asked.grant, acting, None)
            assert (record.certificate_sha256, record.jkt) == (CERTIFICATE, JKT)
            assert tokens.refresh_token is None

    run(scenario)
    assert findings(config) == []


def test_gateway_gets_nothing_beyond_what_is_registered(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            assert await refused(here.registry.grant(order(groups=("admins",)))) is Reason.SCOPE_INVALID
            for asked in (
                order(client_id="nobody", subject="nobody"),
                order(models=("*",)),
                order(subject="root"),
                order(ttl_seconds=86_400),
                order(subject="a\u202eb", client_id="agent"),
                exchange(),
            ):
                assert await refused(here.registry.grant(asked)) is Reason.GRANT_INVALID
            assert await here.registry.client("nobody") is None
            assert await here.registry.client("agent") == client()

    run(scenario)
    assert records(config, TokenIssued) == []


def test_no_text_of_a_stranger_ends_the_gateways_connection(tmp_path: Path) -> None:
    config = notary_config(tmp_path)
    texts = ("", "a b", "x" * 129, "\u00e9", "\ud800", "a\x00", "x" * 500_000)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            for text in texts:
                assert await here.registry.client(text) is None
                for asking in (
                    here.registry.grant(order(groups=(text or " ",))),
                    here.registry.grant(order(subject=text * 10)),
                    here.registry.refresh(refresh(text)),
                    here.registry.refresh(refresh("f.s", groups=(text or " ",))),
                ):
                    assert await refused(asking) in {Reason.GRANT_INVALID, Reason.SCOPE_INVALID}
                await here.registry.revoke(revoke(unverified_refresh_token=text))
            for text in texts:
                await here.registry.revoke(revoke(token_id=text, expires_at_seconds=0))
            assert await here.registry.client("agent") == client()  # over the same connection

    run(scenario)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (FindClient, {"client_id": "agent"}),
        (AskGrant, {"order": order()}),
        (AskRefresh, {"order": refresh("f.x")}),
        (AskRevoke, {"order": revoke(token_id="t", expires_at_seconds=2**40)}),
    ],
)
def test_warden_that_asks_for_a_clients_tokens_is_disconnected(tmp_path: Path, kind: Any, fields: Any) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            warden = await NotaryClient.hello(config.socket_path, "warden")
            with pytest.raises(Exception, match="peer closed"):
                await warden.ask(kind, **fields)
            assert warden.revoked.empty()
            nobody = await NotaryClient.open(config.socket_path)
            with pytest.raises(Exception, match="peer closed"):
                await nobody.ask(kind, **fields)

    run(scenario)
    assert records(config, TokenIssued, TokenRevoked) == []


def test_operators_order_from_a_gateways_process_ends_its_connection(tmp_path: Path) -> None:
    config = notary_config(tmp_path)
    from appliance.notary.speakers import Process

    async def scenario() -> None:
        async with running_notary(config, process_of=lambda _sock: Process(-1, 0)):
            gateway = await NotaryClient.hello(config.socket_path, "gateway")
            await gateway.revoked.get()
            for kind, fields in (
                (PutClient, {"client": client()}),
                (RemoveClient, {"client_id": "agent"}),
                (ListClients, {}),
                (ListFamilies, {}),
                (EndTokens, {"client_id": "agent"}),
            ):
                taken_over = await NotaryClient.open(config.admin_socket_path)
                with pytest.raises(Exception, match="peer closed"):
                    await taken_over.ask(kind, **fields)

    run(scenario)
    assert records(config, ClientChanged, TokenRevoked) == []


# --- refresh tokens -------------------------------------------------------------------------------------------------


async def family(here: World, **fields: Any) -> IssuedTokens:
    tokens = await here.registry.grant(order(refreshable=True, groups=("analysts", "staff"), **fields))
    assert tokens.refresh_token is not None
    return tokens


def test_refresh_token_is_used_once_and_gives_no_more_than_before(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            first = await family(here)
            second = await here.registry.refresh(refresh(first.refresh_token, groups=("staff",)))
            assert (second.groups, said(second)["scope"], said(second)["sub"]) == (("staff",), "staff", "agent")
            assert await refused(here.registry.refresh(refresh(second.refresh_token, groups=("admins",)))) is (
                Reason.SCOPE_INVALID
            )
            third = await here.registry.refresh(refresh(second.refresh_token))
            assert third.groups == ("analysts", "staff")
            assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
            assert all(here.counts(one.token_id) for one in (first, second, third))

            given.extend(str(one.refresh_token).partition(".")[2] for one in (first, second, third))

    given: list[str] = []
    run(scenario)
    issued = records(config, TokenIssued)
    assert [record.grant for record in issued] == ["client_credentials", "refresh_token", "refresh_token"]
    assert len({record.family for record in issued}) == 1
    assert findings(config) == []
    state = b"".join(path.read_bytes() for path in config.state_dir.rglob("*") if path.is_file())
    assert [secret for secret in given if secret.encode() in state] == []


def test_refresh_token_that_is_used_again_ends_its_family_and_no_other(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            other, stolen = await family(here), await family(here)
            newest = await here.registry.refresh(refresh(stolen.refresh_token))
            assert await refused(here.registry.refresh(refresh(stolen.refresh_token))) is Reason.GRANT_INVALID
            await here.ended(newest.token_id)
            assert not here.counts(stolen.token_id)
            assert here.counts(other.token_id)
            assert await refused(here.registry.refresh(refresh(newest.refresh_token))) is Reason.GRANT_INVALID
            await here.registry.refresh(refresh(other.refresh_token))

    run(scenario)
    (record,) = records(config, TokenRevoked)
    assert (record.why, record.client_id) == ("refresh-token-reused", "agent")
    assert findings(config) == ["a refresh token of agent was used twice"]


def test_hundred_refreshes_at_once_are_one_and_the_end_of_the_family(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            tokens = await family(here)
            asking = [here.registry.refresh(refresh(tokens.refresh_token)) for _ in range(100)]
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            (winner,) = [outcome for outcome in outcomes if isinstance(outcome, IssuedTokens)]
            assert {one.reason for one in outcomes if isinstance(one, Refused)} == {Reason.GRANT_INVALID}
            await here.ended(winner.token_id)
            assert await refused(here.registry.refresh(refresh(winner.refresh_token))) is Reason.GRANT_INVALID

    run(scenario)
    assert len(records(config, TokenIssued)) == 2
    assert [record.why for record in records(config, TokenRevoked)] == ["refresh-token-reused"]


@pytest.mark.parametrize("text", ["", ".", "x", "x.y", "{family}", "{family}.", "{family}.\u00e9", "{family}.x.y"])
def test_refresh_token_that_was_never_issued_gives_nothing(tmp_path: Path, text: str) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            tokens = await family(here)
            family_id = str(tokens.refresh_token).partition(".")[0]
            asked = refresh(text.format(family=family_id) or "-")
            assert await refused(here.registry.refresh(asked)) is Reason.GRANT_INVALID

    run(scenario)
    assert len(records(config, TokenIssued)) == 1


def test_refresh_token_is_of_no_use_to_another_client_or_key(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            await here.put(client(client_id="thief"))
            tokens = await family(here, jkt=JKT)
            for asked in (
                refresh(tokens.refresh_token, client_id="thief", jkt=JKT),
                refresh(tokens.refresh_token),
                refresh(tokens.refresh_token, jkt="k" * 43),
                refresh(tokens.refresh_token, jkt=JKT, certificate_sha256=CERTIFICATE),
            ):
                assert await refused(here.registry.refresh(asked)) is Reason.GRANT_INVALID
            assert said(await here.registry.refresh(refresh(tokens.refresh_token, jkt=JKT)))["cnf"] == {"jkt": JKT}

    run(scenario)
    assert records(config, TokenRevoked) == []


# --- the end of tokens ----------------------------------------------------------------------------------------------


def test_client_ends_its_own_tokens_and_nobody_elses(tmp_path: Path) -> None:
    config = notary_config(tmp_path)
    far = 2**40

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            await here.put(client(client_id="other"))
            mine, others = await family(here), await family(here, client_id="other", subject="other")
            for passed_over in (
                revoke(token_id=others.token_id, expires_at_seconds=far),
                revoke(unverified_refresh_token=others.refresh_token),
                revoke(unverified_refresh_token="no.such"),
                revoke(token_id="expired", expires_at_seconds=int(time.time()) - 31),
                revoke(token_id="t", expires_at_seconds=far, client_id="nobody"),
                revoke(),
            ):
                await here.registry.revoke(passed_over)
            assert records(config, TokenRevoked) == []
            for _ in range(2):
                await here.registry.revoke(revoke(token_id=mine.token_id, expires_at_seconds=said(mine)["exp"]))
            assert not here.counts(mine.token_id)
            newer = await here.registry.refresh(refresh(mine.refresh_token))
            await here.registry.revoke(revoke(unverified_refresh_token=mine.refresh_token))  # the old one does too
            assert not here.counts(newer.token_id)
            assert await refused(here.registry.refresh(refresh(newer.refresh_token))) is Reason.GRANT_INVALID
            assert here.counts(others.token_id)

    run(scenario)
    assert [(one.why, one.token_id is None) for one in records(config, TokenRevoked)] == [
        ("client", False),
        ("client", True),
    ]


def test_end_reaches_a_connected_gateway_within_a_second(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            tokens = await here.registry.grant(order())
            began = time.monotonic()
            await here.end(token_id=tokens.token_id)
            await here.ended(tokens.token_id)
            assert time.monotonic() - began < 1.0

    run(scenario)


def test_operator_ends_a_family_a_token_or_all_of_a_client(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            one, two = await family(here), await family(here)
            listed = await here.operator.ask(ListFamilies, client_id="agent")
            assert isinstance(listed, FamilyList)
            ids = {facts.token_ids[0]: facts.family.family_id for facts in listed.families}
            assert set(ids) == {one.token_id, two.token_id}
            await here.end(token_id=ids[one.token_id])
            await here.ended(one.token_id)
            assert here.counts(two.token_id)
            await here.end(token_id="issued-by-an-operator")
            await here.ended("issued-by-an-operator")
            now = int(time.time())
            await here.end(client_id="agent")
            await here.ended(two.token_id, issued_at_seconds=now)
            assert await refused(here.registry.refresh(refresh(two.refresh_token))) is Reason.GRANT_INVALID
            await here.end(client_id="paddock-cli")
            await here.ended("x", client_id="paddock-cli", issued_at_seconds=now)
            nothing = await here.operator.ask(EndTokens)
            assert isinstance(nothing, Failed)

    run(scenario)
    assert {record.why for record in records(config, TokenRevoked)} == {"operator"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (client(), client(disabled=True)),
        (client(), client(groups=("analysts",))),
        (client(), client(secrets_sha256=(Digest.of(b"new"),))),
        (by_certificate(), by_certificate(certificates=("n" * 43,))),
        (by_key(public_key(), public_key(key_id="k2")), None),
        (client(), None),
    ],
)
def test_what_is_taken_away_ends_what_was_issued(tmp_path: Path, before: Any, after: Any) -> None:
    config = notary_config(tmp_path)
    certificate = before.certificates[0] if before.certificates else None

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(before)
            tokens = await family(here, certificate_sha256=certificate)
            if after is None:
                await here.remove("agent")
            else:
                await here.put(after, before)
            await here.ended(tokens.token_id, issued_at_seconds=said(tokens)["iat"])
            again = refresh(tokens.refresh_token, certificate_sha256=certificate)
            assert await refused(here.registry.refresh(again)) is Reason.GRANT_INVALID
            gone = after is None or after.disabled
            assert (await here.registry.client("agent") is None) is gone

    run(scenario)
    assert [record.change for record in records(config, ClientChanged)][1:] == [
        "removed" if after is None else "disabled" if after.disabled else "changed"
    ]
    assert [record.why for record in records(config, TokenRevoked)] == ["client-changed"]


def test_no_token_is_issued_that_would_be_dead_at_once(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            await next_second()
            await here.end(client_id="agent")
            assert await refused(here.registry.grant(order())) is Reason.AUDIT_UNAVAILABLE
            await next_second()
            tokens = await here.registry.grant(order())
            assert here.counts(tokens.token_id, issued_at_seconds=said(tokens)["iat"])

    run(scenario)


def test_clock_that_was_set_back_lets_no_token_survive_its_client(tmp_path: Path) -> None:
    config, clock = notary_config(tmp_path), MovedClock()

    async def scenario() -> None:
        async with world(config, clock=clock) as here:
            await here.put(client())
            tokens = await here.registry.grant(order())
            clock.moved_seconds = -3600
            await here.end(client_id="agent")
            await here.ended(tokens.token_id, issued_at_seconds=said(tokens)["iat"])
            assert await refused(here.registry.grant(order())) is Reason.AUDIT_UNAVAILABLE
            clock.moved_seconds = 1
            await here.registry.grant(order())

    run(scenario)


def test_what_is_only_added_ends_nothing(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            before = await here.put(client())
            tokens = await family(here)
            wider = client(
                groups=("analysts", "staff", "more"), secrets_sha256=(*before.secrets_sha256, Digest.of(b"2"))
            )
            await here.put(wider, before)
            await here.registry.refresh(refresh(tokens.refresh_token))
            assert here.counts(tokens.token_id, issued_at_seconds=0)

    run(scenario)
    assert records(config, TokenRevoked) == []


# --- operators ------------------------------------------------------------------------------------------------------


def test_change_of_what_is_no_longer_so_is_refused(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            for asked, before in (
                (client(), None),
                (client(groups=()), client(groups=("x",))),
                (client(client_id="new"), client(client_id="new")),
            ):
                answer = await here.operator.ask(PutClient, client=asked, before=before)
                assert isinstance(answer, Failed)
                assert answer.reason == "field-invalid"
            assert isinstance(await here.operator.ask(RemoveClient, client_id="new"), Failed)
            listed = await here.operator.ask(ListClients)
            assert listed == ClientList(call=listed.call, clients=(client(),))

    run(scenario)
    assert [record.change for record in records(config, ClientChanged)] == ["added"]


@pytest.mark.parametrize(
    "asked",
    [
        client(secrets_sha256=()),
        by_key(public_key("P-384", algorithm="ES256")),
        by_key(public_key("ES256", algorithm="RS256")),
        by_key(public_key("short", algorithm="RS256")),
        by_key(public_key("EdDSA", spki=b"no key")),
    ],
)
def test_client_that_could_not_prove_itself_is_not_registered(tmp_path: Path, asked: Any) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            answer = await here.operator.ask(PutClient, client=asked)
            assert isinstance(answer, Failed)
            assert answer.reason == "field-invalid"

    run(scenario)
    assert records(config, ClientChanged) == []


def test_record_of_a_change_names_credentials_and_holds_none(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            await here.put(by_certificate(client_id="c"))
            await here.put(
                by_key(public_key("RS256", "k1", algorithm="PS256"), public_key("EdDSA", "k2"), client_id="d")
            )

    run(scenario)
    named = {record.client_id: record.credentials for record in records(config, ClientChanged)}
    assert named["agent"] == (f"secret {Digest.of(b'secret').hex[:16]}",)
    assert named["c"] == (f"certificate {CERTIFICATE}",)
    assert [text.split()[:3] for text in named["d"]] == [["key", "k1", "PS256"], ["key", "k2", "EdDSA"]]


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_the_bounds_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating, "MAX_CLIENTS", 2)
    monkeypatch.setattr(granting, "MAX_FAMILIES_OF_CLIENT", 2)
    monkeypatch.setattr(granting, "MAX_REVOKED", 2)
    monkeypatch.setattr(granting, "MAX_LIVING_OF_FAMILY", 3)
    config = notary_config(tmp_path)
    far = 2**40

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            await here.put(client(client_id="b"))
            assert isinstance(await here.operator.ask(PutClient, client=client(client_id="c")), Failed)
            one, two = await family(here), await family(here)
            assert await refused(here.registry.grant(order(refreshable=True))) is Reason.GRANT_INVALID
            await here.registry.grant(order())
            one = await here.registry.refresh(refresh(one.refresh_token))
            one = await here.registry.refresh(refresh(one.refresh_token))
            assert await refused(here.registry.refresh(refresh(one.refresh_token))) is Reason.AUDIT_UNAVAILABLE
            await here.registry.revoke(revoke(token_id="a", expires_at_seconds=far))
            await here.registry.revoke(revoke(token_id="b", expires_at_seconds=far))
            assert await refused(here.registry.revoke(revoke(token_id="c", expires_at_seconds=far))) is (
                Reason.AUDIT_UNAVAILABLE
            )
            # There is no room to name the tokens of the family, so all of the client end with it.
            await here.registry.revoke(revoke(unverified_refresh_token=one.refresh_token))
            await here.ended(two.token_id, issued_at_seconds=said(two)["iat"])

    run(scenario)
    assert [record.family is None for record in records(config, TokenRevoked)] == [True, True, False, True]


# --- disks that fail ------------------------------------------------------------------------------------------------


def test_no_token_leaves_whose_record_cannot_be_written(tmp_path: Path) -> None:
    config, files = notary_config(tmp_path), Full()

    async def scenario() -> None:
        async with world(config, files=files) as here:
            await here.put(client())
            tokens = await family(here)
            files.full = True
            assert await refused(here.registry.grant(order())) is Reason.AUDIT_UNAVAILABLE
            assert await refused(here.registry.refresh(refresh(tokens.refresh_token))) is Reason.AUDIT_UNAVAILABLE
            assert await refused(here.registry.revoke(revoke(token_id="t", expires_at_seconds=2**40))) is (
                Reason.AUDIT_UNAVAILABLE
            )
            assert isinstance(await here.operator.ask(RemoveClient, client_id="agent"), Failed)
            files.full = False
            assert here.counts("t")
            await here.registry.refresh(refresh(tokens.refresh_token))  # the one that was not used

    run(scenario)
    assert len(records(config, TokenIssued)) == 2


def test_commit_that_fails_takes_back_the_turn_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = notary_config(tmp_path)
    commit, failures, changes = Registry.commit, 0, 0

    def failing(registry: Registry) -> None:
        """A turn that only reads has nothing that could fail."""
        nonlocal failures, changes
        before, changes = changes, registry._db.total_changes
        if failures and changes > before:
            failures, changes = failures - 1, 0  # it is opened again
            raise sqlite3.OperationalError("disk I/O error")
        commit(registry)

    monkeypatch.setattr(Registry, "commit", failing)

    async def scenario() -> None:
        nonlocal failures
        async with world(config) as here:
            await here.put(client())
            tokens = await family(here)
            failures = 1
            assert await refused(here.registry.refresh(refresh(tokens.refresh_token))) is Reason.AUDIT_UNAVAILABLE
            failures = 1
            assert isinstance(await here.operator.ask(RemoveClient, client_id="agent"), Failed)
            assert await here.registry.client("agent") == client()
            assert here.counts(tokens.token_id, issued_at_seconds=0)
            await here.registry.refresh(refresh(tokens.refresh_token))
            failures = 1
            assert await refused(here.registry.revoke(revoke(token_id="t", expires_at_seconds=2**40))) is (
                Reason.AUDIT_UNAVAILABLE
            )
            await here.registry.revoke(revoke(token_id="t", expires_at_seconds=2**40))
            await here.ended("t")

    run(scenario)


def test_order_that_breaks_something_of_ours_takes_nothing_else_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = notary_config(tmp_path)
    sign = TokenSigner.sign_grant

    def broken(signer: TokenSigner, asked: Any, *, now_seconds: int) -> Any:
        if asked.groups == ("staff",):
            raise RuntimeError("a mistake of ours")
        return sign(signer, asked, now_seconds=now_seconds)

    monkeypatch.setattr(TokenSigner, "sign_grant", broken)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
            tokens = await family(here)
            asking = [here.registry.grant(order(groups=(name,))) for name in ("analysts", "staff", "analysts")]
            one, two, three = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(one, IssuedTokens)
            assert isinstance(three, IssuedTokens)
            assert isinstance(two, Refused)
            assert two.reason is Reason.AUDIT_UNAVAILABLE
            narrow = refresh(tokens.refresh_token, groups=("staff",))
            assert await refused(here.registry.refresh(narrow)) is Reason.AUDIT_UNAVAILABLE
            await here.registry.refresh(refresh(tokens.refresh_token))  # it was not used

    run(scenario)
    assert len(records(config, TokenIssued)) == 4


# --- restarts -------------------------------------------------------------------------------------------------------


def test_restart_keeps_everything_and_tells_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "REVOKED_IN_A_MESSAGE", 2)
    config = notary_config(tmp_path)

    async def scenario() -> None:
        kept: list[Any] = []
        async with world(config) as here:
            await here.put(client())
            await here.put(client(client_id="off"))
            await here.put(client(client_id="off", disabled=True), client(client_id="off"))
            kept.append(await family(here))
            for number in range(5):
                await here.end(token_id=f"t{number}")
        async with world(config) as here:
            assert [name for name in ("t0", "t4", "t5") if here.counts(name)] == ["t5"]
            assert not here.counts("x", client_id="off", issued_at_seconds=0)
            assert await here.registry.client("off") is None
            assert await here.registry.client("agent") == client()
            await here.registry.refresh(refresh(kept[0].refresh_token))
            assert await refused(here.registry.refresh(refresh(kept[0].refresh_token))) is Reason.GRANT_INVALID
            raw = await NotaryClient.hello(config.socket_path, "gateway")
            pages = [await raw.revoked.get() for _ in range(4)]
            assert [page.anew for page in pages] == [True, False, False, False]
            assert [page.complete for page in pages] == [False, False, False, True]
            assert len({token.token_id for page in pages for token in page.tokens}) == 7

    run(scenario)


def test_gateway_that_loses_the_notary_lets_no_token_pass_until_it_is_back(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with running_notary(config) as stop, connected(config) as here:
            await here.put(client())
            assert here.counts("t")
            stop.set()
            async with asyncio.timeout(10):
                while True:
                    try:
                        here.counts("t")
                    except Refused as error:
                        assert error.reason is Reason.AUDIT_UNAVAILABLE
                        break
                    await asyncio.sleep(0)
            assert await refused(here.registry.client("agent")) is Reason.AUDIT_UNAVAILABLE
            assert await refused(here.registry.grant(order())) is Reason.AUDIT_UNAVAILABLE

    run(scenario)


def test_registry_with_a_changed_byte_is_not_started_with(tmp_path: Path) -> None:
    config = notary_config(tmp_path)

    async def scenario() -> None:
        async with world(config) as here:
            await here.put(client())
        path = config.state_dir / "registry.db"
        path.write_bytes(path.read_bytes().replace(b"analysts", b"analystz"))
        with pytest.raises(Misconfigured, match=r"registry\.db is damaged \(a row of client has changed\)"):
            async with running_notary(config):
                pass

    run(scenario)
