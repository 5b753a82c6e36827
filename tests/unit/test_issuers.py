"""What an operator writes about foreign issuers, and the files that it names."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from appliance import issuers, settings
from appliance.core.refusals import Misconfigured
from appliance.identity.foreign import LiaisonLink
from appliance.identity.keys import parse_keys
from appliance.settings import IssuerSettings, Settings, SettingsInvalid
from tests.fakes.registry import FakeRevocations
from tests.support.identity_provider import Authority
from tests.unit.identity.test_keys import GOOD, of

LEAST: dict[str, Any] = {
    "issuer": "https://idp.example",
    "audiences": ["llm"],
    "ca_file": "/etc/paddock/ca.pem",
    "jwks_uri": "https://idp.example/keys",
    "algorithms": ["ES256"],
}
OPAQUE: dict[str, Any] = {
    **{name: LEAST[name] for name in ("issuer", "audiences", "ca_file")},
    "introspection_endpoint": "https://idp.example/introspect",
    "introspection_client_id": "paddock",
    "introspection_secret_file": "/etc/paddock/secret",
}


def parsed(**tables: dict[str, Any]) -> Settings:
    return settings.parse({"state_dir": "/tmp/x", "issuer": tables})


def problems(*tables: dict[str, Any], **identity: Any) -> str:
    named = {f"n{number}": table for number, table in enumerate(tables)}
    with pytest.raises(SettingsInvalid) as caught:
        settings.parse({"state_dir": "/tmp/x", "identity": identity, "issuer": named})
    return str(caught.value)


def test_least_is_enough_and_relaxes_nothing() -> None:
    one = parsed(idp=LEAST).issuer["idp"]
    assert (one.token_types, one.audience_list, one.groups, one.models) == (("at+jwt",), False, {}, ())
    assert parsed(idp=OPAQUE).issuer["idp"].introspection_cache_seconds == 1


@pytest.mark.parametrize("name", ["issuer", "audiences", "ca_file"])
def test_what_must_be_given_is_missed_by_its_name(name: str) -> None:
    assert f'issuer."n0".{name}: is missing' in problems({key: LEAST[key] for key in LEAST if key != name})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scopes": ["caf\xe9"]}, "scopes: "),  # a challenge is ASCII, and quotes them
        ({"scopes": ['a" b']}, "scopes: "),
        ({"jwks_uri": None}, "needs a jwks_uri or an introspection_endpoint"),
        (OPAQUE, "needs a jwks_uri or an introspection_endpoint, and not both"),
        ({"jwks_uri": "http://idp.example/keys"}, "jwks_uri: Expected `str` matching regex"),
        ({"jwks_uri": "https://u:p@idp.example/keys"}, "jwks_uri: Expected `str` matching regex"),
        ({"audiences": []}, "audiences: Expected `array` of length >= 1"),
        ({"audiences": [""]}, "audiences"),
        ({"algorithms": []}, "algorithms: must name at least one"),
        ({"algorithms": ["HS256"]}, "algorithms: Invalid enum value"),
        ({"algorithms": ["none"]}, "algorithms: Invalid enum value"),
        ({"token_types": []}, "token_types"),
        ({"token_types": ["JWT"]}, "clients: must name those"),
        ({"token_types": ["at+jwt", ""]}, "clients: must name those"),
        ({"models": ["*"], "models_claim": ["m"]}, "models: has no effect"),
        ({"groups": {"a": "b"}}, "groups: has no effect"),
        ({"groups_claim": ["g"], "groups": {"a": 1}}, "groups: Expected `str`"),
        ({"refresh_seconds": 100, "keep_seconds": 60}, "keep_seconds must be at least"),
        ({"cooldown_seconds": 400}, "keep_seconds must be at least"),
        ({"ca_file": "ca.pem"}, "must be an absolute path"),
        ({"subject_claim": []}, "subject_claim"),
        ({"trust_everything": True}, "trust_everything: unknown key"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], told: str) -> None:
    document = {name: value for name, value in (LEAST | changes).items() if value is not None}
    assert told in problems(document)


def test_two_issuers_cannot_have_one_name_and_none_has_ours() -> None:
    assert "https://idp.example is there twice" in problems(LEAST, LEAST)
    assert "https://paddock.local is there twice" in problems(LEAST | {"issuer": "https://paddock.local"})
    assert "only one may have" in problems(OPAQUE, OPAQUE | {"issuer": "https://other.example"})


@pytest.mark.parametrize(
    "url", ["http://llm.example", "https://llm.example/", "https://LLM.example", "https://a/b", "llm"]
)
def test_public_url_is_a_bare_origin(url: str) -> None:
    assert "identity.public_url" in problems(public_url=url)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    ca_file, _, _ = Authority().write(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("pass%word\n")
    secret.chmod(0o600)
    return {"ca_file": str(ca_file), "introspection_secret_file": str(secret)}


def test_providers_are_those_of_the_settings(files: dict[str, Any]) -> None:
    config = parsed(
        one=LEAST | {"ca_file": files["ca_file"]}, two=OPAQUE | files | {"issuer": "https://b.example:8443"}
    )
    (one,) = issuers.key_providers(config)
    assert (one.name, one.endpoint.host, one.algorithms) == ("one", "idp.example", {"ES256"})
    two = issuers.token_provider(config)
    assert two is not None
    assert (two.name, two.rules.issuer) == ("two", "https://b.example:8443")
    assert two.credential == "Basic cGFkZG9jazpwYXNzJTI1d29yZA=="
    assert issuers.provider_ports(config) == {443}
    assert issuers.token_provider(parsed(one=LEAST)) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_secret_that_others_can_read_is_refused(files: dict[str, Any], mode: int) -> None:
    Path(files["introspection_secret_file"]).chmod(mode)
    with pytest.raises(Misconfigured, match="only its owner"):
        issuers.token_provider(parsed(one=OPAQUE | files))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_secret_of_another_user_is_refused(files: dict[str, Any]) -> None:
    os.chown(files["introspection_secret_file"], 12345, -1)
    with pytest.raises(Misconfigured, match="only its owner"):
        issuers.token_provider(parsed(one=OPAQUE | files))


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"with space", b"\xff", b"x" * 1025])
def test_secret_that_is_no_line_of_ascii_is_refused(files: dict[str, Any], content: bytes) -> None:
    Path(files["introspection_secret_file"]).write_bytes(content)
    with pytest.raises(Misconfigured, match="one line"):
        issuers.token_provider(parsed(one=OPAQUE | files))


def test_absent_files_are_the_operators_mistake() -> None:
    for make in (issuers.key_providers, issuers.token_provider):
        with pytest.raises(Misconfigured):
            make(parsed(one=LEAST, two=OPAQUE | {"issuer": "https://b.example"}))


def test_verifier_believes_what_is_configured(tmp_path: Path) -> None:
    link = LiaisonLink(tmp_path / "nobody.sock", now_seconds=lambda: 0)
    made = issuers.verifier(parsed(one=LEAST), parse_keys(of(GOOD)), FakeRevocations(), link, started_at_seconds=0)
    assert set(made._issuers) == {"https://paddock.local", "https://idp.example"}
    assert issuers.challenges(parsed(one=LEAST)).metadata is None


def test_our_own_tokens_alone_are_looked_for_among_the_revoked(tmp_path: Path) -> None:
    link = LiaisonLink(tmp_path / "nobody.sock", now_seconds=lambda: 0)
    revocations = FakeRevocations()
    made = issuers.verifier(parsed(one=LEAST), parse_keys(of(GOOD)), revocations, link, started_at_seconds=0)
    asked = {name: issuer.revocations for name, issuer in made._issuers.items()}
    assert asked == {"https://paddock.local": revocations, "https://idp.example": None}


def servers(**identity: Any) -> list[str]:
    config = settings.parse({"state_dir": "/tmp/x", "identity": identity, "issuer": {"one": LEAST}})
    told: list[str] = json.loads(issuers.challenges(config).metadata or b"{}")["authorization_servers"]
    return told


def test_our_own_issuer_is_told_of_where_it_issues_tokens_itself() -> None:
    """RFC 8414 section 3.3: its metadata are found under its own name, or they are not its."""
    here = "https://llm.example"
    assert servers(public_url=here) == ["https://idp.example"]
    assert servers(public_url=here, issuer="https://llm.example/") == ["https://idp.example"]
    assert servers(public_url=here, issuer=here) == ["https://idp.example", here]


def test_tokens_are_issued_nowhere_without_being_asked_for() -> None:
    assert not settings.parse({"state_dir": "/tmp/x"}).identity.issues_tokens


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        ({}, False),
        ({"tls": "/tls"}, False),
        ({"tls": "/tls", "client_certificates": "optional"}, True),
        ({"trusted": ["192.0.2.1"]}, True),
    ],
    ids=str,
)
def test_certificates_are_taken_where_a_listener_or_its_proxy_takes_some(
    listener: dict[str, Any], expected: bool
) -> None:
    config = settings.parse({"state_dir": "/tmp/x", "listen": [{"host": "127.0.0.1", **listener}]})
    assert config.takes_certificates is expected


def test_settings_have_no_field_that_no_rule_uses() -> None:
    """Each setting of an issuer ends in its rules, its provider, or the verifier."""
    source = Path(issuers.__file__).read_text(encoding="utf-8")
    unused = [name for name in IssuerSettings.__struct_fields__ if f"issuer.{name}" not in source]
    assert unused == []


def test_examples_of_the_documentation_are_settings() -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    section = text.partition("## Tokens of other issuers")[2].partition("\n## ")[0]
    document = "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))
    config = settings.parse({"state_dir": "/tmp/x"} | tomllib.loads(document))
    assert set(config.issuer) == {"keycloak", "dex", "vault"}


def test_public_url_with_a_port_that_none_can_be_is_told_before_anything_starts() -> None:
    assert "identity.public_url: Port out of range" in problems(LEAST, public_url="https://llm.example:99999")
