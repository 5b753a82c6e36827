"""Keycloak, a real identity provider: its tokens at a real gateway, and ``paddock login`` by the device flow.

``tools/keycloak.py`` fetches it; where that was not done, these tests are skipped.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.core.records import Opened
from tests.integration.oauth.conftest import LIMITS
from tests.support.appliance import GROUP, Answer, TestAppliance, appliance
from tests.support.chain_model import chain_model
from tests.support.device_provider import SECONDS, Machine
from tests.support.identity_provider import new_key, proof_for
from tests.support.keycloak import Keycloak, distribution, realm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]

PUBLIC_URL = "https://llm.example"


@dataclass
class Site:
    server: TestAppliance
    keycloak: Keycloak
    short_lived: str
    """A token that lived for a second when it was given, before the appliance was started."""

    def get(self, token: str | None, **headers: str) -> Answer:
        return self.server.request("GET", "/v1/models", token=token, headers=headers or None)


def settings(keycloak: Keycloak, name: str, **changes: str) -> str:
    issuer = keycloak.issuer(name)
    values = {
        "issuer": json.dumps(issuer),
        "audiences": '["paddock"]',
        "audience_list": "true",
        "ca_file": json.dumps(str(keycloak.ca_file)),
        "jwks_uri": json.dumps(f"{issuer}/protocol/openid-connect/certs"),
        "algorithms": '["RS256"]',
        "client_claim": '["azp"]',
        "groups_claim": '["realm_access", "roles"]',
        "groups": f'{{ llm-users = "{GROUP}" }}',
        "models": '["*"]',
    } | changes
    return f"[issuer.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """``staff`` writes tokens by RFC 9068, ``classic`` as Keycloak does by itself; ``other`` is not configured."""
    program = distribution()
    folder = tmp_path_factory.mktemp("keycloak")
    plain = {"access.token.header.type.rfc9068": "false"}
    realms = {"staff": realm("staff"), "classic": realm("classic", **plain), "other": realm("other")}
    with ExitStack() as stack:
        keycloak = stack.enter_context(Keycloak(folder / "keycloak", realms).serving(program))
        short_lived = keycloak.tokens("hasty")["access_token"]
        as_documented = {
            "token_types": '["JWT"]',
            "required_claims": '{ typ = "Bearer" }',
            "clients": '["paddock-cli"]',
        }
        config = "\n".join(
            (
                LIMITS,
                f'[identity]\npublic_url = "{PUBLIC_URL}"',
                settings(keycloak, "staff"),
                settings(keycloak, "classic", **as_documented),
            )
        )
        (folder / "appliance").mkdir()
        server = stack.enter_context(appliance(folder / "appliance", {"chain": chain_model()}, config))
        for name in ("staff", "classic"):
            server.wait_until(lambda name=name: f"issuer {name}: " in server.log, "Keycloak's keys")  # type: ignore[misc]
        yield Site(server, keycloak, short_lived)


def part(token: str, number: int) -> dict[str, object]:
    segment = token.split(".")[number]
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return found


def refused(answer: Answer) -> None:
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


# --- its tokens at the gateway --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("staff", "at+jwt"), ("classic", "JWT")])
def test_persons_token_is_good_for_an_answer_and_the_record_names_the_person(site: Site, name: str, kind: str) -> None:
    token = site.keycloak.tokens(realm=name)["access_token"]
    assert part(token, 0)["typ"] == kind
    answer = site.server.chat(token, max_tokens=2)
    assert answer.status == 200, answer.body
    actor = site.server.records(Opened)[-1].actor
    claims = part(token, 1)
    assert (actor.issuer, actor.client_id, actor.groups) == (site.keycloak.issuer(name), "paddock-cli", (GROUP,))
    assert (actor.subject, actor.token_id) == (claims["sub"], claims["jti"])


def test_person_without_the_role_gets_no_model(site: Site) -> None:
    token = site.keycloak.tokens(person="mallory")["access_token"]
    assert site.server.chat(token, max_tokens=2).status == 404


def test_token_for_another_audience_is_refused(site: Site) -> None:
    token = site.keycloak.tokens("mail")["access_token"]
    assert "paddock" not in str(part(token, 1).get("aud"))
    refused(site.get(token))


@pytest.mark.parametrize("name", ["staff", "classic"])
def test_id_token_and_refresh_token_are_refused(site: Site, name: str) -> None:
    tokens = site.keycloak.tokens(realm=name)
    refused(site.get(tokens["id_token"]))
    refused(site.get(tokens["refresh_token"]))


def test_token_of_another_realm_is_refused_also_under_the_first_ones_name(site: Site) -> None:
    theirs = site.keycloak.tokens(realm="other")["access_token"]
    refused(site.get(theirs))
    head, body, _ = site.keycloak.tokens()["access_token"].split(".")
    refused(site.get(f"{head}.{body}.{theirs.split('.')[2]}"))


def test_token_of_a_client_that_is_not_named_is_refused(site: Site) -> None:
    """Where the type does not say that it is an access token, the client must."""
    refused(site.get(site.keycloak.tokens("hasty", realm="classic")["access_token"]))


def test_token_is_refused_when_it_has_expired(site: Site) -> None:
    """Both lived for a second, by a clock that may differ by thirty; one of them is older."""
    site.server.wait_until(lambda: site.get(site.short_lived).status == 401, "it has expired")
    assert site.get(site.keycloak.tokens("hasty")["access_token"]).status == 200
    refused(site.get(site.short_lived))


def test_bound_token_needs_its_key(site: Site) -> None:
    """RFC 9449 from end to end: Keycloak binds the token to the key of the proof that it is sent."""
    key = new_key("ES256")
    proof = proof_for(key, "", method="POST", url=site.keycloak.endpoint("token"), ath=None)
    answer = site.keycloak.tokens("bound", DPoP=proof)
    token = answer["access_token"]
    assert answer["token_type"] == "DPoP"
    url = f"{PUBLIC_URL}/v1/models"
    assert site.get(None, Authorization=f"DPoP {token}", DPoP=proof_for(key, token, url=url)).status == 200
    assert site.get(token).status == 401
    stolen = proof_for(new_key("ES256"), token, url=url)
    assert site.get(None, Authorization=f"DPoP {token}", DPoP=stolen).status == 401


# --- paddock login --------------------------------------------------------------------------------------------------


class Laptop(Machine):
    def sign_in(self, site: Site, *more: str, answer: str = "accept") -> tuple[int, str, str]:
        where = ["--issuer", site.keycloak.issuer(), "--client-id", "paddock-cli", "--ca", str(site.keycloak.ca_file)]
        with self.start("login", *(more or where)) as process:
            killer = threading.Timer(SECONDS, process.kill)
            killer.start()
            assert process.stdout is not None
            shown = ""
            for line in process.stdout:
                shown += line
                if line.startswith("Waiting"):
                    break
            addresses = re.findall(r"^    (https://\S+)$", shown, re.MULTILINE)
            assert len(addresses) == 2, (shown, process.stderr.read() if process.stderr and not addresses else "")
            page = site.keycloak.person_signs_in(addresses[1], answer=answer)
            assert re.search(r"^    [A-Z]{4}-[A-Z]{4}$", shown, re.MULTILINE), (shown, page)
            out, err = process.communicate(timeout=SECONDS)
            killer.cancel()
        return process.returncode, shown + out, err


@pytest.fixture
def machine(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_person_signs_in_asks_a_model_and_signs_out(site: Site, machine: Laptop) -> None:
    status, out, err = machine.sign_in(site)
    assert (status, err) == (0, "")
    assert f"Signed in as alice at {site.keycloak.issuer()}" in out
    assert machine.file.stat().st_mode & 0o777 == 0o600
    assert machine.file.parent.stat().st_mode & 0o777 == 0o700

    status, token, err = machine.run("login", "--token")
    assert (status, err, token.count("\n")) == (0, "", 1)
    answer = site.server.chat(token.strip(), max_tokens=2)
    assert answer.status == 200, answer.body
    assert site.server.records(Opened)[-1].actor.client_id == "paddock-cli"
    assert machine.run("login", "--token")[1] == token
    assert site.keycloak.introspected(token.strip())["active"] is True

    status, out, _ = machine.run("whoami")
    assert (status, "signed in as alice" in out, site.keycloak.issuer() in out) == (0, True, True)
    assert token.strip() not in out

    assert machine.run("logout") == (0, "signed out\n", "")
    assert site.keycloak.introspected(token.strip()) == {"active": False}
    assert token.strip() not in machine.file.read_text()
    assert machine.run("login", "--token")[0] == 1
    assert machine.run("whoami") == (1, "nobody is signed in here\n", "")


def test_refresh_token_is_spent_once_also_when_many_want_a_token(site: Site, machine: Laptop) -> None:
    """Keycloak takes each once (``revokeRefreshToken``) and ends the login when one comes twice."""
    assert machine.sign_in(site)[0] == 0
    first = machine.age()
    asked = [machine.start("login", "--token") for _ in range(4)]
    answers = [process.communicate(timeout=SECONDS) for process in asked]
    tokens = {out for out, _err in answers}
    assert [process.returncode for process in asked] == [0] * 4, answers
    assert len(tokens) == 1
    assert tokens != {first + "\n"}
    machine.age()
    status, token, err = machine.run("login", "--token")  # what was kept is the successor
    assert (status, err) == (0, "")
    assert site.get(token.strip()).status == 200
    assert machine.run("logout")[0] == 0


def test_login_that_the_provider_ended_is_told_and_forgotten(site: Site, machine: Laptop) -> None:
    assert machine.sign_in(site)[0] == 0
    document = json.loads(machine.file.read_bytes())
    form = {"client_id": "paddock-cli", "token": document["tokens"]["refresh_token"]}
    assert site.keycloak.ask("POST", site.keycloak.endpoint("revoke"), form)[0] == 200
    machine.age()
    status, out, err = machine.run("login", "--token")
    assert (status, out) == (1, "")
    assert "the provider has ended this login (invalid_grant" in err
    assert json.loads(machine.file.read_bytes())["tokens"] is None
    assert machine.sign_in(site, "--scope", "openid")[0] == 0  # where, it still knows
    assert machine.run("logout")[0] == 0


def test_person_who_refuses_is_believed(site: Site, machine: Laptop) -> None:
    status, _out, err = machine.sign_in(site, answer="cancel")
    assert (status, err.startswith("paddock: the sign-in was refused (access_denied")) == (1, True), err
    assert not machine.file.exists()
