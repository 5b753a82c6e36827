"""Clients of an appliance's own authorization server: registered by the operator's own commands, and what they send."""

import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from appliance.cli import clients
from appliance.core.clients import TOKEN_EXCHANGE
from appliance.settings import child_environment
from tests.support.appliance import LIMIT_SECONDS, Answer, TestAppliance

PUBLIC_URL: Final = "https://llm.example"
ISSUING: Final = f'[identity]\nissuer = "{PUBLIC_URL}"\npublic_url = "{PUBLIC_URL}"\n'
"""Settings with which an appliance issues tokens itself."""
ALL_GRANTS: Final = ("client_credentials", "refresh_token", TOKEN_EXCHANGE)
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
REFRESH_TOKEN: Final = "urn:ietf:params:oauth:token-type:refresh_token"
FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class OAuthClient:
    """One that authenticates itself by HTTP Basic."""

    server: TestAppliance
    client_id: str
    secret: str

    @property
    def credentials(self) -> str:
        return b64encode(f"{self.client_id}:{self.secret}".encode()).decode()

    def ask(self, path: str, form: dict[str, str] | Sequence[tuple[str, str]], **headers: str) -> Answer:
        fields = {"Content-Type": FORM, "Authorization": f"Basic {self.credentials}"} | headers
        return self.server.request("POST", path, body=urlencode(form).encode(), headers=fields)

    def granted(self, **form: str) -> dict[str, Any]:
        """What the token endpoint gives."""
        answer = self.ask("/oauth/token", {"grant_type": "client_credentials"} | form)
        assert answer.status == 200, answer
        said: dict[str, Any] = answer.json()
        return said

    def token(self, **form: str) -> str:
        token: str = self.granted(**form)["access_token"]
        return token

    def family(self) -> dict[str, Any]:
        """An access token with a refresh token, in exchange for one of the client's own."""
        return self.granted(
            grant_type=TOKEN_EXCHANGE,
            subject_token=self.token(),
            subject_token_type=ACCESS_TOKEN,
            requested_token_type=REFRESH_TOKEN,
        )

    def refreshed(self, refresh_token: str, **form: str) -> Answer:
        return self.ask("/oauth/token", {"grant_type": "refresh_token", "refresh_token": refresh_token} | form)

    def introspected(self, token: str) -> dict[str, Any]:
        answer = self.ask("/oauth/introspect", {"token": token})
        assert answer.status == 200, answer
        said: dict[str, Any] = answer.json()
        return said


def register(server: TestAppliance, client_id: str, **given: Any) -> OAuthClient:
    """A client of the group ``staff`` that may use every kind of grant, unless ``given`` says otherwise."""
    fields: dict[str, Any] = {
        "authentication": "client_secret_basic",
        "grants": ALL_GRANTS,
        "groups": ("staff",),
        "models": ("*",),
        "exchanges": (PUBLIC_URL,),
    }
    secret = clients.add(server.config, client_id, keys=(), certificates=(), **(fields | given))
    return OAuthClient(server, client_id, secret)


def paddock(server: TestAppliance, *arguments: str) -> str:
    """The operator's command, as an operator gives it. Returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-m", "appliance", *arguments, "--config", str(server.config_file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=child_environment(),
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.decode()
