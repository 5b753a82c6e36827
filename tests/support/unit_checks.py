"""Runs as root inside the container of ``nspawn``: sets the appliance up as an operator would, starts its units, uses
them, and prints one JSON object of what it saw. Standard library only, apart from the installed appliance."""

import contextlib
import http.client
import json
import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path

PADDOCK = ["/usr/lib/paddock/bin/python3", "-I", "-B", "-m", "appliance"]
CONFIG = ["--config", "/etc/paddock/paddock.toml"]
PACKAGES = Path("/usr/lib/paddock/lib/python3.11/site-packages")


def run(*command: str, user: str | None = None) -> str:
    if user:
        command = ("setpriv", f"--reuid={user}", "--regid=paddock", "--clear-groups", *command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def paddock(*arguments: str, user: str | None = None) -> str:
    return run(*PADDOCK, *arguments, user=user)


def set_up() -> None:
    """docs/install.md, without the comments."""
    paddock("init", *CONFIG)
    rules = {"closed": {"models": [], "subjects": []}, "groups": {"staff": {"models": ["demo"], "max_tokens": 64}}}
    Path("/var/lib/paddock/policy/data.json").write_text(json.dumps(rules))
    model = Path("/tmp/demo.gguf")
    shutil.copy(PACKAGES / "appliance/data/paddock-demo.gguf", model)
    paddock("models", "keygen", "/tmp/signer.key", "/tmp/signer.pem")
    paddock("models", "sign", str(model), "--key", "/tmp/signer.key")
    paddock("models", "trust", "/tmp/signer.pem", "--signer", "tester", *CONFIG)
    paddock("models", "import", str(model), "--name", "demo", *CONFIG, user="paddock-warden")
    run("systemctl", "start", "paddock.target")


def request(method: str, path: str, token: str | None = None, body: dict | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", 11435, timeout=30)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def fence_of(service: str) -> str:
    """What the service said of its own fence."""
    journal = run("journalctl", "--unit", f"paddock-{service}", "--output", "cat")
    return " ".join({line.partition("fenced in by ")[2] for line in journal.splitlines()} - {""})


def chat(token: str) -> tuple[int, str]:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    return request("POST", "/v1/chat/completions", token, body)


def chat_once_verified(token: str) -> tuple[int, str]:
    """The gateway refreshes its catalogue every two seconds; before the first time it knows no model."""
    for _ in range(20):
        status, text = chat(token)
        if status == 200:
            break
        time.sleep(0.3)
    return status, text


def runners() -> dict[int, dict[str, str]]:
    """Process status by pid of every live runner."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"appliance.runner" in (folder / "cmdline").read_bytes():
                lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                found[int(folder.name)] = {name: value.strip() for name, value in lines}
    return found


def connects(path: str, user: str) -> str:
    """What happens when ``user``, in no group of ours, connects to a socket."""
    child = os.fork()
    if child == 0:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        try:
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(path)
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return "refused" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 else "connected"


def main() -> dict:
    seen: dict = {}
    set_up()
    seen["healthz"] = request("GET", "/healthz")
    seen["without token"] = request("GET", "/v1/models")[0]
    token = paddock("token", "issue", "--sub", "alice", "--group", "staff", "--model", "*", *CONFIG)
    seen["chat"] = chat_once_verified(token)
    seen["runners"] = runners()
    for pid in seen["runners"]:
        os.kill(pid, 9)
    seen["chat after the runner was killed"] = chat_once_verified(token)
    seen["runners afterwards"] = runners()
    seen["sockets"] = {
        f"{name} as {user}": connects(f"/run/paddock/{name}.sock", user)
        for name in ("notary", "admin", "warden", "runner")
        for user in ("nobody", "paddock-gateway")
    }
    run("systemctl", "stop", "paddock.target", "paddock-*")  # the pattern, so as to wait for each of them
    seen["runners at the end"] = runners()
    seen["audit"] = json.loads(paddock("audit", "verify", "/var/lib/paddock/notary/log", "--json"))
    seen["fences"] = {service: fence_of(service) for service in ("gateway", "notary", "warden")}
    seen["failed"] = run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "paddock*")
    return seen


if __name__ == "__main__":
    print(json.dumps(main()))
