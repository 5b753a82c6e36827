"""An identity provider for people at a terminal: codes, tokens that rotate, revocation; and whatever a test wants said.

Its refresh tokens are good once. One that comes a second time ends the login, as RFC 9700 section 4.14.2 wants it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.support.identity_provider import IdentityProvider, base64url

JSON = {"Content-Type": "application/json"}
CLIENT = "paddock-cli"
SECONDS = 60
Said = tuple[int, dict[str, str], bytes]


def said(document: Any, status: int = 200) -> Said:
    return status, JSON, json.dumps(document).encode()


class DeviceProvider(IdentityProvider):
    """``polls`` are the errors that a device is told, one for each question, before it gets its tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.metadata: dict[str, Any] = {
            "issuer": self.issuer,
            "token_endpoint": f"{self.issuer}/token",
            "device_authorization_endpoint": f"{self.issuer}/device",
            "revocation_endpoint": f"{self.issuer}/revoke",
            "jwks_uri": f"{self.issuer}/keys",
        }
        self.device: dict[str, Any] = {
            "device_code": "device-code",
            "user_code": "WDJB-MJHT",
            "verification_uri": f"{self.issuer}/go",
            "expires_in": 600,
            "interval": 1,
        }
        self.grant: dict[str, Any] = {"token_type": "Bearer", "expires_in": 300}
        self.polls: list[str] = []
        self.number = 0
        self.ended = False
        self.revoked: list[str] = []
        self._lock = threading.Lock()
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Said:
        with self._lock:
            self.asked.append((path, headers, body))
            self.gate()
            if path in self.answers:
                return self.answers[path]
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            match path:
                case "/.well-known/openid-configuration":
                    return said(self.metadata)
                case "/device":
                    return said(self.device)
                case "/token" if form["grant_type"] == "refresh_token":
                    return self._refreshed(form["refresh_token"])
                case "/token":
                    return said({"error": self.polls.pop(0)}, 400) if self.polls else said(self._tokens())
                case "/revoke":
                    self.revoked.append(form["token"])
                    return 200, {}, b""
            return 404, {}, b""

    def _refreshed(self, token: str) -> Said:
        if self.ended or token != f"refresh-{self.number}":
            self.ended = True
            return said({"error": "invalid_grant"}, 400)
        return said(self._tokens())

    def _tokens(self) -> dict[str, Any]:
        self.number += 1
        return {
            "access_token": f"access-{self.number}",
            "refresh_token": f"refresh-{self.number}",
            "id_token": self.id_token(),
        } | self.grant

    def id_token(self, **changes: Any) -> str:
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "u1", "preferred_username": "alice"}
        claims |= {"exp": int(time.time()) + 300, "iat": int(time.time())} | changes
        return ".".join(base64url(json.dumps(one).encode()) for one in ({"alg": "none"}, claims, {}))


class Machine:
    """A person's own, with nothing of the appliance on it but the command."""

    def __init__(self, folder: Path, before: tuple[str, ...] = ()) -> None:
        """``before`` is a command that runs ours."""
        self._before = before
        self.home = folder
        self.file = folder / ".config" / "paddock" / "login.json"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._before, sys.executable, "-I", "-B", "-m", "appliance", *arguments],
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Status, what it printed, and what it complained of."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
        return process.returncode, out, err

    def stored(self) -> Any:
        return json.loads(self.file.read_bytes())

    def age(self) -> str:
        """Makes the stored token look old. Returns it."""
        document = self.stored()
        document["tokens"]["expires_at_seconds"] = int(time.time()) - 1
        self.file.write_text(json.dumps(document))
        token: str = document["tokens"]["access_token"]
        return token
