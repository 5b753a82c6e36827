"""What an operator writes about services that speak for users, and the secret that the settings name."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import issuers, settings
from appliance.core.delegation import OPENWEBUI_JWT, USER_TOKEN
from appliance.core.refusals import Misconfigured
from appliance.core.values import Presented, VerifiedClaims
from appliance.settings import Settings, SettingsInvalid
from tests.support.made_values import CLAIMS

ISSUER: dict[str, Any] = {
    "issuer": "https://idp.example",
    "audiences": ["llm"],
    "ca_file": "/etc/paddock/ca.pem",
    "jwks_uri": "https://idp.example/keys",
    "algorithms": ["ES256"],
}
TOKENS: dict[str, Any] = {"form": "user-token", "client_id": "agent", "user_issuers": ["https://idp.example"]}
SIGNED: dict[str, Any] = {"form": "openwebui-jwt", "client_id": "webui", "secret_file": "/etc/paddock/secret"}


def parsed(*tables: dict[str, Any], **more: Any) -> Settings:
    named = {f"n{number}": table for number, table in enumerate(tables)}
    return settings.parse({"state_dir": "/tmp/x", "issuer": {"idp": ISSUER}, "delegation": named, **more})


def problems(*tables: dict[str, Any], **more: Any) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        parsed(*tables, **more)
    return str(caught.value)


def test_nobody_speaks_for_users_unless_it_is_said() -> None:
    assert settings.parse({"state_dir": "/tmp/x"}).delegation == {}


def test_least_is_enough_and_gives_no_group() -> None:
    one = parsed(TOKENS, SIGNED).delegation["n1"]
    assert (one.groups_by_role, one.groups_by_email, one.groups_by_id) == ({}, {}, {})
    assert (one.max_lifetime_seconds, one.jwt_issuer) == (300, "open-webui")


@pytest.mark.parametrize("field", ["form", "client_id"])
def test_what_must_be_given_is_missed_by_its_name(field: str) -> None:
    assert f'delegation."n0".{field}: is missing' in problems({key: SIGNED[key] for key in SIGNED if key != field})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"form": "header"}, "form: Invalid enum value"),
        ({"client_id": ""}, "client_id"),
        ({"issuer": "https://other.example"}, "issuer: its tokens are not believed"),
        ({"secret_file": None}, "secret_file: must be given"),
        ({"secret_file": "secret"}, "must be an absolute path"),
        ({"user_issuers": ["https://idp.example"]}, 'user_issuers: is for the form "user-token"'),
        ({"max_lifetime_seconds": 601}, "max_lifetime_seconds"),
        ({"max_lifetime_seconds": 0}, "max_lifetime_seconds"),
        ({"jwt_issuer": ""}, "jwt_issuer"),
        ({"groups_by_role": {"": ["staff"]}}, "must not be empty"),
        ({"groups_by_role": {"user": "staff"}}, "groups_by_role"),
        ({"groups_by_role": {"user": [""]}}, "groups_by_role"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"concurrent_requests": 0}, "concurrent_requests"),
        ({"max_users": 0}, "max_users"),
        ({"trust_plain_headers": True}, "trust_plain_headers: unknown key"),
    ],
    ids=str,
)
def test_signed_form_that_would_not_hold_is_a_mistake(changes: dict[str, Any], told: str) -> None:
    table = {key: value for key, value in (SIGNED | changes).items() if value is not None}
    assert told in problems(table)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"user_issuers": None}, "user_issuers: must name at least one"),
        ({"user_issuers": ["https://other.example"]}, "tokens of https://other.example are not believed"),
        ({"secret_file": "/etc/paddock/secret"}, 'are for the form "openwebui-jwt"'),
        ({"groups_by_id": {"7": ["staff"]}}, 'are for the form "openwebui-jwt"'),
    ],
    ids=str,
)
def test_form_of_tokens_that_would_not_hold_is_a_mistake(changes: dict[str, Any], told: str) -> None:
    table = {key: value for key, value in (TOKENS | changes).items() if value is not None}
    assert told in problems(table)


def test_one_service_has_one_form() -> None:
    again = SIGNED | {"client_id": "agent", "issuer": "https://paddock.local", "subject": "agent"}
    assert "the same service is there twice" in problems(TOKENS, again)
    parsed(TOKENS, again | {"subject": "another"})


@pytest.mark.parametrize("name", ["", "a#b", "a b", "a" * 65, "é", "a\n"])
def test_name_that_could_be_part_of_another_is_a_mistake(name: str) -> None:
    assert "must have a name" in problems(delegation={name: SIGNED})


@pytest.mark.parametrize(
    "more",
    [
        {"issuer": {"idp": ISSUER, "evil": ISSUER | {"issuer": "https://paddock.local#n0"}}},
        {"identity": {"issuer": "https://idp.example#n0"}},
    ],
    ids=str,
)
def test_no_issuer_has_the_name_of_a_services_users(more: dict[str, Any]) -> None:
    table = SIGNED | ({"issuer": "https://idp.example"} if "identity" in more else {})
    assert "an issuer has the name of its users" in problems(table, **more)


class Nobody:
    async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
        raise AssertionError

    def has_ended(self, claims: VerifiedClaims) -> bool:
        raise AssertionError


def delegation_of(table: dict[str, Any]) -> Any:
    [(found, chosen)] = issuers.delegations(parsed(table), Nobody())
    assert chosen.client_id == table["client_id"]
    return found


def service(**changes: str) -> VerifiedClaims:
    return msgspec.structs.replace(CLAIMS, **({"issuer": "https://paddock.local"} | changes))


def test_service_is_our_own_client_by_its_own_token_unless_the_settings_say_another(tmp_path: Path) -> None:
    found = delegation_of(TOKENS)
    assert found.header == USER_TOKEN
    assert found.is_for(service(client_id="agent", subject="agent"))
    assert not found.is_for(service(client_id="agent", subject="alice"))
    assert not found.is_for(service(client_id="agent", subject="agent", issuer="https://idp.example"))
    other = delegation_of(TOKENS | {"issuer": "https://idp.example", "subject": "f00d"})
    assert other.is_for(service(client_id="agent", subject="f00d", issuer="https://idp.example"))
    assert not other.is_for(service(client_id="agent", subject="agent", issuer="https://idp.example"))


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("a" * 31, 0o600, "at least 32 bytes"),
        ("", 0o600, "one line of printable ASCII"),
        ("a" * 20 + " " + "b" * 20, 0o600, "one line of printable ASCII"),
        ("é" * 32, 0o600, "one line of printable ASCII"),
        ("a" * 2000, 0o600, "one line of printable ASCII"),
        ("a" * 32, 0o640, "only its owner"),
        ("a" * 32, 0o604, "only its owner"),
        (None, 0, "cannot read the secret"),
    ],
)
def test_secret_that_is_none_is_refused_at_the_start(tmp_path: Path, text: str | None, mode: int, told: str) -> None:
    path = tmp_path / "secret"
    if text is not None:
        path.write_text(text + "\n")
        path.chmod(mode)
    with pytest.raises(Misconfigured, match=told):
        delegation_of(SIGNED | {"secret_file": str(path)})


def test_good_secret_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    path.chmod(0o600)
    found = delegation_of(SIGNED | {"secret_file": str(path)})
    assert found.header == OPENWEBUI_JWT
    assert found.is_for(service(client_id="webui", subject="webui"))


def test_secret_is_no_part_of_what_is_printed(tmp_path: Path) -> None:
    assert b"0123456789abcdef" not in parsed(SIGNED | {"secret_file": str(tmp_path / "s")}).effective()


def test_table_is_written_as_the_page_says() -> None:
    text = """
        [delegation.webui]
        form = "openwebui-jwt"
        client_id = "webui"
        secret_file = "/secret"
        groups_by_role = { user = ["a"] }
    """
    assert settings.parse(tomllib.loads(text)).delegation["webui"].groups_by_role == {"user": ("a",)}
