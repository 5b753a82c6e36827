"""``paddock login`` and a provider that is hostile, slow, broken, or asked by many at once (RFC 8628)."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from appliance.cli.login import store
from appliance.cli.login.store import Store
from appliance.cli.login.waiting import Waiting
from appliance.cli.main import main
from tests.support.device_provider import CLIENT, JSON, SECONDS, DeviceProvider, Machine, said
from tests.support.identity_provider import Authority


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[DeviceProvider]:
    with DeviceProvider(tmp_path / "provider").serving() as one:
        assert isinstance(one, DeviceProvider)
        yield one


class Quick(Machine):
    """Whose command runs in this process, and does not wait between its questions (``test_waiting`` has that)."""

    def run(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(arguments)
        return status, out.getvalue(), err.getvalue()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    pause_seconds = Waiting.pause_seconds

    def at_once(self: Waiting, now_seconds: float) -> float:
        pause_seconds(self, now_seconds)
        return 0.0

    monkeypatch.setattr(Waiting, "pause_seconds", at_once)
    return Quick(tmp_path / "home")


def where(provider: DeviceProvider) -> list[str]:
    return ["--issuer", provider.issuer, "--client-id", CLIENT, "--ca", str(provider.ca_file)]


def sign_in(machine: Machine, provider: DeviceProvider, *more: str) -> tuple[int, str, str]:
    return machine.run("login", *where(provider), *more)


def refused(answer: tuple[int, str, str]) -> str:
    """What it said: one line, printable, on stderr."""
    status, _out, err = answer
    assert status == 1
    assert err.startswith("paddock: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    return err


def forms(provider: DeviceProvider, path: str) -> list[dict[str, str]]:
    asked = (body for one, _headers, body in provider.asked if one == path)
    return [{name: values[0] for name, values in parse_qs(body.decode()).items()} for body in asked]


def without_room(machine: Machine) -> Machine:
    """As on a disk that is full: no file can get larger than 8 kB."""
    return Machine(machine.home, ("bash", "-c", 'ulimit -f 8; exec "$@"', "bash"))


# --- the flow -------------------------------------------------------------------------------------------------------


def test_code_is_shown_plainly_and_the_questions_are_those_of_the_rfc(
    provider: DeviceProvider, machine: Machine
) -> None:
    provider.device["verification_uri_complete"] = f"{provider.issuer}/go?c=WDJB-MJHT"
    provider.polls = ["authorization_pending"]
    status, out, err = sign_in(machine, provider, "--scope", "openid", "--scope", "offline_access")
    assert (status, err) == (0, "")
    assert f"\n    {provider.issuer}/go\n" in out
    assert "\n    WDJB-MJHT\n" in out
    assert "Signed in as alice" in out
    assert forms(provider, "/device") == [{"client_id": CLIENT, "scope": "openid offline_access"}]
    grant = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": "device-code"}
    assert forms(provider, "/token") == [{"client_id": CLIENT, **grant}] * 2
    assert machine.run("login", "--token") == (0, "access-1\n", "")
    assert machine.run("login", "--status") == machine.run("whoami")
    assert len(forms(provider, "/token")) == 2  # nobody was asked for what was there


def test_metadata_are_also_found_where_rfc_8414_puts_them(provider: DeviceProvider, machine: Machine) -> None:
    provider.answers["/.well-known/openid-configuration"] = (404, {}, b"")
    provider.answers["/.well-known/oauth-authorization-server"] = said(provider.metadata)
    assert sign_in(machine, provider)[0] == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("access_denied", "the sign-in was refused"),
        ("expired_token", "the code has expired"),
        ("invalid_client", "the provider refused (invalid_client"),
    ],
)
def test_no_of_the_provider_ends_the_waiting(provider: DeviceProvider, machine: Machine, error: str, told: str) -> None:
    provider.polls = ["authorization_pending", error, "authorization_pending"]
    assert told in refused(sign_in(machine, provider))
    assert len(forms(provider, "/token")) == 2
    assert not machine.file.exists()


def test_interrupted_waiting_leaves_nothing_behind(provider: DeviceProvider, machine: Machine) -> None:
    provider.polls = ["authorization_pending"] * 99
    polled = threading.Event()
    provider.gate = lambda: polled.set() if provider.asked[-1][0] == "/token" else None
    with machine.start("login", *where(provider)) as process:
        assert polled.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, "")
    assert {path.name for path in machine.file.parent.iterdir()} == {"login.lock"}


# --- a provider that is not what it should be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"issuer": "https://evil.example"}, "calls itself"),
        ({"issuer": "https://evil.example/\x1b[2J"}, "calls itself"),
        ({"device_authorization_endpoint": None}, "does not offer the device authorization grant"),
        ({"token_endpoint": None}, "metadata is not usable"),
        ({"token_endpoint": "http://127.0.0.1/token"}, "metadata is not usable"),
        ({"device_authorization_endpoint": "https://a@127.0.0.1/d"}, "absolute https URL"),
        ({"device_authorization_endpoint": "https://127.0.0.1:0x/d"}, "the provider's address"),
        ({"device_authorization_endpoint": "https://127.0.0.1/\r\nX: y"}, "metadata is not usable"),
    ],
    ids=str,
)
def test_metadata_that_lead_elsewhere_are_not_followed(
    provider: DeviceProvider, machine: Machine, changes: dict[str, Any], told: str
) -> None:
    provider.metadata |= changes
    assert told in refused(sign_in(machine, provider))
    assert [path for path, _, _ in provider.asked] == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize(
    "changes",
    [
        {"user_code": "\x1b]0;evil\x07"},
        {"user_code": "AB\nCD"},
        {"user_code": "\u0410\u0412\u0421D-\u202eEFG"},
        {"user_code": ""},
        {"user_code": "A" * 65},
        {"user_code": 7},
        {"verification_uri": "http://127.0.0.1/go"},
        {"verification_uri": "https://bücher.example/go"},
        {"verification_uri": "https://127.0.0.1/\x1b[1A"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri_complete": "https://127.0.0.1/ x"},
        {"device_code": "with space"},
        {"device_code": None},
        {"expires_in": None},
        {"expires_in": -1},
        {"expires_in": 1e400},
        {"interval": "5"},
    ],
    ids=ascii,
)
def test_code_that_would_mislead_a_person_is_not_shown(
    provider: DeviceProvider, machine: Machine, changes: dict[str, Any]
) -> None:
    provider.device |= changes
    answer = sign_in(machine, provider)
    assert "the answer about a code is not usable" in refused(answer)
    assert answer[1] == ""
    assert forms(provider, "/token") == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said({"access_token": "a b", "token_type": "Bearer"}), "not usable"),
        (said({"access_token": "a\nb", "token_type": "Bearer"}), "not usable"),
        (said({"access_token": "\x1b[2J", "token_type": "Bearer"}), "not usable"),
        (said({"access_token": "", "token_type": "Bearer"}), "not usable"),
        (said({"token_type": "Bearer"}), "not usable"),
        (said({"access_token": "a"}), "not usable"),
        (said({"access_token": "a", "token_type": "DPoP"}), "must be Bearer"),
        (said({"access_token": "a", "token_type": "\x1b[2J"}), "must be Bearer"),
        (said({"access_token": "a", "token_type": "Bearer", "expires_in": "300"}), "not usable"),
        (said({"access_token": "a", "token_type": "Bearer", "id_token": "no"}), "not usable"),
        ((200, JSON, b'{"access_token":"a","access_token":"b","token_type":"Bearer"}'), "not usable"),
        ((200, JSON, b"[" * 5000), "not usable"),
        (said({"error": "invalid_request", "error_description": "\x1b[2Jhello\n\u202e" + "x" * 9000}, 400), "refused"),
        (said({"error_description": "no"}, 400), "error is not usable"),
    ],
    ids=lambda value: ascii(value[2][:60]) if isinstance(value, tuple) else value,
)
def test_answer_that_is_no_token_is_not_kept(
    provider: DeviceProvider, machine: Machine, answer: tuple[int, dict[str, str], bytes], told: str
) -> None:
    provider.answers["/token"] = answer
    said_then = refused(sign_in(machine, provider))
    assert told in said_then
    assert len(said_then) < 600
    assert not machine.file.exists()


@pytest.mark.parametrize(
    "changes",
    [{"iss": "https://evil.example"}, {"aud": "another"}, {"aud": ["another"]}, {"exp": 1}],
    ids=str,
)
def test_id_token_for_somebody_else_ends_the_sign_in(
    provider: DeviceProvider, machine: Machine, changes: dict[str, Any]
) -> None:
    provider.grant["id_token"] = provider.id_token(**changes)
    assert "the ID token is of another issuer" in refused(sign_in(machine, provider))


def test_persons_name_does_not_reach_the_terminal_as_it_is(provider: DeviceProvider, machine: Machine) -> None:
    provider.grant["id_token"] = provider.id_token(preferred_username="\x1b[2Jroot\n")
    status, out, _ = sign_in(machine, provider)
    assert (status, "Signed in as ?[2Jroot? at" in out) == (0, True)
    assert "\x1b" not in out + machine.run("whoami")[1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, JSON, b" " * 70_000), "too large"),
        ((200, {"Content-Type": "text/html"}, b"{}"), "not JSON"),
        ((302, {"Location": "https://evil.example"}, b""), "status 302"),
        ((500, JSON, b"{}"), "status 500"),
    ],
    ids=lambda value: ascii(value[:2]) if isinstance(value, tuple) else value,
)
def test_answer_that_is_not_one_is_not_used(
    provider: DeviceProvider, machine: Machine, answer: tuple[int, dict[str, str], bytes], told: str
) -> None:
    provider.answers["/.well-known/openid-configuration"] = answer
    assert f"cannot be asked: {told}" in refused(sign_in(machine, provider)).replace("the answer is ", "")


def test_provider_of_another_authority_is_not_believed(
    provider: DeviceProvider, machine: Machine, tmp_path: Path
) -> None:
    other, _, _ = Authority().write(tmp_path / "other")
    known = ["--issuer", provider.issuer, "--client-id", CLIENT]
    assert "CERTIFICATE_VERIFY_FAILED" in refused(machine.run("login", *known, "--ca", str(other)))
    assert "CERTIFICATE_VERIFY_FAILED" in refused(machine.run("login", *known))  # nor by the machine's own
    assert provider.asked == []


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the first time"),
        (["--issuer", "https://sso.example"], "the first time"),
        (["--issuer", "http://127.0.0.1", "--client-id", "c"], "absolute https URL"),
        (["--issuer", "https://127.0.0.1/?a=b", "--client-id", "c"], "must not have a query"),
        (["--issuer", "https://127.0.0.1", "--client-id", "c", "--scope", 'a"b'], "--scope must be"),
        (["--issuer", "https://127.0.0.1", "--client-id", "c\n"], "--client-id must be"),
        (["--issuer", "https://127.0.0.1", "--client-id", "c", "--ca", "/nonexistent"], "certificate authorities"),
        (["--token"], "nobody is signed in here"),
        (["--token", "--client-id", "c"], "take no other option"),
        (["--status", "--scope", "c"], "take no other option"),
    ],
    ids=str,
)
def test_option_that_cannot_be_meant_is_refused(machine: Machine, arguments: list[str], told: str) -> None:
    assert told in refused(machine.run("login", *arguments))
    assert not machine.file.exists()


# --- refresh, and more than one at once -----------------------------------------------------------------------------


def test_many_at_once_spend_the_refresh_token_once(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    asked = [machine.start("login", "--token") for _ in range(5)]
    answers = [process.communicate(timeout=SECONDS) for process in asked]
    assert answers == [("access-2\n", "")] * 5
    assert [form["refresh_token"] for form in forms(provider, "/token")[1:]] == ["refresh-1"]
    machine.age()
    assert machine.run("login", "--token") == (0, "access-3\n", "")


def test_killed_program_does_not_keep_the_lock_or_spoil_the_file(provider: DeviceProvider, machine: Machine) -> None:
    """With the provider's answer still to come: the token there may be spent, and the next one finds that out."""
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    before = machine.file.read_bytes()
    asked, dead = threading.Event(), threading.Event()

    def hold() -> None:
        if provider.asked[-1][0] == "/token" and not asked.is_set():
            asked.set()
            dead.wait(SECONDS)

    provider.gate = hold
    with machine.start("login", "--token") as process:
        assert asked.wait(SECONDS)
        process.kill()
        process.communicate(timeout=SECONDS)
    dead.set()
    assert machine.file.read_bytes() == before
    assert "the provider has ended this login (invalid_grant)" in refused(machine.run("login", "--token"))
    assert machine.stored()["tokens"] is None
    assert {path.name for path in machine.file.parent.iterdir()} == {"login.json", "login.lock"}


def test_refresh_for_somebody_else_is_not_kept(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    provider.grant["id_token"] = provider.id_token(sub="u2")
    before = machine.file.read_bytes()
    assert "somebody else" in refused(machine.run("login", "--token"))
    assert machine.file.read_bytes() == before


def test_provider_out_of_reach_does_not_end_the_login(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    provider.answers["/token"] = (503, {}, b"")
    assert "cannot be asked: status 503" in refused(machine.run("login", "--token"))
    provider.answers.clear()
    assert machine.run("login", "--token") == (0, "access-2\n", "")


def test_what_a_refresh_leaves_out_stays(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    provider.answers["/token"] = said({"access_token": "new", "token_type": "bearer", "expires_in": 300})
    assert machine.run("login", "--token") == (0, "new\n", "")
    kept = machine.stored()["tokens"]
    assert (kept["refresh_token"], kept["name"]) == ("refresh-1", "alice")


def test_no_token_is_fetched_that_could_not_be_kept(provider: DeviceProvider, machine: Machine) -> None:
    """Its refresh token would be spent, and its successor lost."""
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    before, asked = machine.file.read_bytes(), len(provider.asked)
    answer = without_room(machine).run("login", "--token")
    assert "no room for a login" in refused(answer)
    assert len(provider.asked) == asked
    assert machine.file.read_bytes() == before
    assert machine.run("login", "--token") == (0, "access-2\n", "")


def test_token_is_not_renewed_by_one_who_waited_for_a_logout(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    revoking, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if provider.asked[-1][0] == "/revoke" and not revoking.is_set():
            revoking.set()
            go_on.wait(SECONDS)

    provider.gate = hold
    leaving = machine.start("logout")
    assert revoking.wait(SECONDS)
    wanting = machine.start("login", "--token")
    go_on.set()
    assert leaving.communicate(timeout=SECONDS) == ("signed out\n", "")
    out, err = wanting.communicate(timeout=SECONDS)
    assert "nobody is signed in here" in refused((wanting.returncode, out, err))
    assert len(forms(provider, "/token")) == 1


def test_lock_that_is_never_let_go_ends_in_a_sentence(
    provider: DeviceProvider, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.age()
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    with Store(machine.file.parent).changing():
        assert "another 'paddock' holds this login" in refused(machine.run("login", "--token"))


# --- the end --------------------------------------------------------------------------------------------------------


def test_logout_revokes_both_tokens_and_removes_them(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    assert machine.run("logout") == (0, "signed out\n", "")
    hints = [(form["token"], form["token_type_hint"]) for form in forms(provider, "/revoke")]
    assert hints == [("refresh-1", "refresh_token"), ("access-1", "access_token")]
    assert machine.stored()["tokens"] is None
    assert machine.run("logout") == (0, "nobody is signed in here\n", "")
    assert machine.run("login")[0] == 0  # it remembers where


def test_full_disk_does_not_keep_the_tokens(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    assert without_room(machine).run("logout") == (0, "signed out\n", "")
    assert not machine.file.exists()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((503, {}, b""), "status 503"),
        (said({"error": "invalid_client"}, 401), "invalid_client"),
        ((302, {"Location": "https://evil.example"}, b""), "status 302"),
    ],
    ids=str,
)
def test_logout_that_is_not_confirmed_says_so_and_removes_all_the_same(
    provider: DeviceProvider, machine: Machine, answer: tuple[int, dict[str, str], bytes], told: str
) -> None:
    assert sign_in(machine, provider)[0] == 0
    provider.answers["/revoke"] = answer
    status, out, err = machine.run("logout")
    assert (status, err) == (1, "")
    assert "not revoked at the provider" in out
    assert told in out
    assert machine.stored()["tokens"] is None


def test_provider_without_revocation_is_said_to_be_one(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    provider.metadata["revocation_endpoint"] = None
    status, out, _ = machine.run("logout")
    assert (status, "does not offer to (RFC 7009)" in out) == (1, True)
    assert machine.stored()["tokens"] is None


def test_new_login_ends_the_former_before_it_begins(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    assert machine.run("login")[0] == 0
    assert provider.revoked == ["refresh-1", "access-1"]
    assert machine.run("login", "--token") == (0, "access-2\n", "")


# --- the file -------------------------------------------------------------------------------------------------------


def test_file_is_for_its_owner_only_under_any_umask(provider: DeviceProvider, machine: Machine) -> None:
    former = os.umask(0)
    try:
        assert sign_in(machine, provider)[0] == 0
    finally:
        os.umask(former)
    assert machine.file.stat().st_mode & 0o777 == 0o600
    assert machine.file.parent.stat().st_mode & 0o777 == 0o700


def test_file_that_others_can_read_is_not_used(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.file.chmod(0o640)
    for verb in (["login", "--token"], ["whoami"], ["logout"]):
        assert "nobody else can read" in refused(machine.run(*verb))


def test_link_in_its_place_is_not_followed(provider: DeviceProvider, machine: Machine) -> None:
    assert sign_in(machine, provider)[0] == 0
    machine.file.rename(machine.home / "elsewhere")
    machine.file.symlink_to(machine.home / "elsewhere")
    refused(machine.run("login", "--token"))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"site":{},"tokens":null}', b"\xff", b"[" * 200_000])
def test_damaged_file_is_said_to_be_damaged(machine: Machine, content: bytes) -> None:
    machine.file.parent.mkdir(parents=True)
    machine.file.write_bytes(content)
    machine.file.chmod(0o600)
    assert "is damaged" in refused(machine.run("login", "--token"))
