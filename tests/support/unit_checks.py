"""Runs as root inside the container of ``nspawn``: sets the appliance up as an operator would, starts its units, uses
them, and prints one JSON object of what it saw. Standard library only, apart from the installed appliance."""

import asyncio
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

WEAKENED = {
    "network shared": ("PrivateNetwork=no", "network-namespace"),
    "sockets allowed": ("RestrictAddressFamilies=AF_INET", "network-namespace"),
    "sockets to the hypervisor allowed": ("RestrictAddressFamilies=AF_VSOCK", "network-namespace"),
    "root of the host": ("RootDirectory=", "empty-root"),
    "a folder of the host": ("BindReadOnlyPaths=/etc", "empty-root"),
    "a folder of the host, writable": ("BindPaths=/var/lib/paddock/models:/srv", "mount-namespace"),
    "devices of the host": ("PrivateDevices=no", "empty-root"),
    "nothing made inaccessible": ("InaccessiblePaths=", "empty-root"),
    "processes of others in sight": ("ProtectProc=default", "empty-root"),
    "the kernel's settings in sight": ("ProcSubset=all", "empty-root"),
    "users of the host": ("PrivateUsers=no", "user-namespace"),
    "as root": ("DynamicUser=no\nUser=root", "user-namespace"),
    "message queues of the host": ("PrivateIPC=no", "ipc-namespace"),
    "a capability that could be gained": ("CapabilityBoundingSet=CAP_NET_RAW", "no-capabilities"),
}
"""Lines that take something away from the runner's unit, and the layer that the runner must then miss."""


def run(*command: str, user: str | None = None) -> str:
    if user:
        command = ("setpriv", f"--reuid={user}", "--regid=paddock", "--clear-groups", *command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def paddock(*arguments: str, user: str | None = None) -> str:
    return run(*PADDOCK, *arguments, user=user)


LISTENERS = """
[gateway]
allowed_hosts = ["127.0.0.1:11435", "llm.example.com"]
[[listen]]
inherited = "http"
[[listen]]
inherited = "proxy"
trusted = ["unix"]
"""


def set_up() -> None:
    """docs/install.md and docs/reverse-proxy.md, without the comments."""
    with Path("/etc/paddock/paddock.toml").open("a") as settings:
        settings.write(LISTENERS)
    paddock("init", *CONFIG)
    rules = {"closed": {"models": [], "subjects": []}, "groups": {"staff": {"models": ["demo"], "max_tokens": 64}}}
    Path("/var/lib/paddock/policy/data.json").write_text(json.dumps(rules))
    model = Path("/tmp/demo.gguf")
    shutil.copy(PACKAGES / "appliance/data/paddock-demo.gguf", model)
    paddock("models", "keygen", "/tmp/signer.key", "/tmp/signer.pem")
    paddock("models", "sign", str(model), "--key", "/tmp/signer.key")
    paddock("models", "trust", "/tmp/signer.pem", "--signer", "tester", *CONFIG)
    paddock("models", "import", str(model), "--name", "demo", *CONFIG, user="paddock-warden")
    run("systemctl", "enable", "--now", "paddock-gateway-unix.socket")
    run("systemctl", "start", "paddock.target")


def asked_by_a_proxy(token: str, user: str, group: str) -> str:
    """The first line of the answer to what www-data's group or another user asks at the Unix socket for a client."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect('/run/paddock/http.sock');"
        "s.sendall(sys.argv[1].encode()); print(s.recv(1000).decode().partition(chr(13))[0])"
    )
    lines = f"Host: llm.example.com\r\nAuthorization: Bearer {token}\r\nX-Forwarded-For: 203.0.113.9\r\n"
    asked = f"GET /v1/models/absent HTTP/1.1\r\n{lines}\r\n"
    who = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups")
    command = (*who, PADDOCK[0], "-I", "-B", "-c", script, asked)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def recorded_addresses() -> list[str]:
    """Of the requests that are in the log."""
    from appliance.audit.query import read_entries

    records = (entry.record for entry in read_entries(Path("/var/lib/paddock/notary/log")))
    return sorted({record.peer.address for record in records if hasattr(record, "peer")})


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
    """Process status by pid of every live runner, without the guardians that stand beside them."""
    found = runners_and_guardians()
    return {pid: status for pid, status in found.items() if int(status["PPid"]) in found}


def runners_and_guardians() -> dict[int, dict[str, str]]:
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"appliance.runner" in (folder / "cmdline").read_bytes():
                found[int(folder.name)] = status_of(folder)
    return found


def status_of(folder: Path) -> dict[str, str]:
    lines = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {name: value.strip() for name, value in lines}


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


DROP_INS = Path("/run/systemd/system")


def weaken(unit: str, lines: str) -> None:
    """From now on, for what is started then; instead of what was said of this unit before."""
    folder = DROP_INS / f"{unit}.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weaker.conf").write_text(f"[Service]\n{lines}\n")
    run("systemctl", "daemon-reload")


def first_word() -> str:
    """What a runner says that is started now, by root instead of the warden, and gets no model."""
    from appliance.ipc.frames import FrameDecoder
    from appliance.ipc.messages import FromRunner

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(20)
        channel.connect("/run/paddock/runner.sock")
        said = channel.recv(10000)
    return str(FrameDecoder(FromRunner).decode(said)) if said else "nothing"


def weakened() -> dict[str, str]:
    answers = {}
    for name, (lines, _layer) in WEAKENED.items():
        weaken("paddock-runner@.service", lines)
        answers[name] = first_word()
    weaken("paddock-runner@.service", "")
    return answers


def refused(token: str, why: str) -> bool:
    """Whether the warden refused to hand out a runner, and said so. It first looks at its models again."""
    for _ in range(30):
        if chat(token)[0] == 200:
            return False
        if why in run("journalctl", "--no-pager", "--output=cat", "--unit=paddock-warden.service"):
            return True
        time.sleep(0.2)
    return False


async def load_as_root() -> str:
    """The launcher's part, played by root instead of the warden's user."""
    from appliance.ipc.messages import Load
    from appliance.sandbox import given
    from appliance.warden.handshake import handshake

    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    channel.connect("/run/paddock/runner.sock")
    load = Load(runner_id="root", context_tokens=64, slots=1, threads=1)
    with (PACKAGES / "appliance/data/paddock-demo.gguf").open("rb") as model, channel:
        async with asyncio.timeout(20):
            _fenced, ready = await handshake(channel, load, [model.fileno()], given.NOT_GIVEN)
    return type(ready).__name__


def end_a_runner_that_ignores_its_channel(pid: int) -> dict[int, dict[str, str]]:
    """One that is stopped hears nothing, as one that is busy or hostile. The warden may not signal it."""
    os.kill(pid, 19)
    run("systemctl", "stop", "paddock-warden.service")
    deadline = time.monotonic() + 10
    while runners_and_guardians() and time.monotonic() < deadline:
        time.sleep(0.05)
    return runners_and_guardians()


ISSUER = """
[issuer.idp]
issuer = "https://127.0.0.1:{port}"
audiences = ["llm"]
ca_file = "/etc/paddock/idp.pem"
jwks_uri = "https://127.0.0.1:{port}/keys"
algorithms = ["ES256"]
groups_claim = ["groups"]
groups = {{ people = "staff" }}
models = ["demo"]
"""


def believe_another_issuer() -> dict:
    """What an operator does, and then one of its people."""
    program = [PADDOCK[0], "-I", "-B", str(Path(__file__).with_name("provider.py")), "/etc/paddock/idp.pem"]
    before = run("systemctl", "is-active", "paddock-liaison.socket") + " " + state_of("paddock-liaison.service")
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as provider:
        try:
            told = json.loads(provider.stdout.readline())
            with Path(CONFIG[1]).open("a") as settings:
                settings.write(ISSUER.format(port=told["port"]))
            run("systemctl", "restart", "paddock-gateway.service")
            answer = chat_once_verified(told["token"])
            return {"answer": answer, "before": before, "after": state_of("paddock-liaison.service")}
        finally:
            provider.kill()


def state_of(unit: str) -> str:
    return run("systemctl", "show", "--property=ActiveState", "--value", unit)


def main() -> dict:
    seen: dict = {}
    set_up()
    seen["healthz"] = request("GET", "/healthz")
    seen["without token"] = request("GET", "/v1/models")[0]
    token = paddock("token", "issue", "--sub", "alice", "--group", "staff", "--model", "*", *CONFIG)
    seen["chat"] = chat_once_verified(token)
    seen["through a proxy"] = {
        user: asked_by_a_proxy(token, user, group) for user, group in (("www-data", "www-data"), ("nobody", "nogroup"))
    }
    seen["runners"] = runners()
    for pid in seen["runners"]:
        os.kill(pid, 9)
    seen["chat after the runner was killed"] = chat_once_verified(token)
    seen["runners afterwards"] = runners()
    warden = int(run("systemctl", "show", "--property=MainPID", "--value", "paddock-warden.service"))
    seen["warden"] = status_of(Path(f"/proc/{warden}"))
    seen["a runner for root"] = asyncio.run(load_as_root())
    seen["status"] = json.loads(paddock("status", "--json", *CONFIG))
    seen["sockets"] = {
        f"{name} as {user}": connects(f"/run/paddock/{name}.sock", user)
        for name in ("notary", "admin", "warden", "runner")
        for user in ("nobody", "paddock-gateway")
    }
    seen["another issuer"] = believe_another_issuer()
    seen["weakened"] = weakened()
    seen["not weakened"] = first_word()
    seen["a runner that ignored its channel"] = end_a_runner_that_ignores_its_channel(*seen["runners afterwards"])
    weaken("paddock-runner@.service", "DynamicUser=no\nUser=paddock-warden")
    seen["a runner of the warden's user"] = refused(token, "the runner is the user")
    weaken("paddock-runner@.service", "")
    weaken("paddock-warden.service", "ProtectProc=invisible")
    run("systemctl", "restart", "paddock-warden.service")
    seen["a warden that sees no process"] = refused(token, "cannot be looked at")
    run("systemctl", "stop", "paddock.target", "paddock-*")  # the pattern, so as to wait for each of them
    seen["runners at the end"] = runners()
    seen["audit"] = json.loads(paddock("audit", "verify", "/var/lib/paddock/notary/log", "--json"))
    seen["addresses"] = recorded_addresses()
    seen["fences"] = {service: fence_of(service) for service in ("gateway", "notary", "warden", "liaison")}
    seen["failed"] = run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "paddock*")
    return seen


if __name__ == "__main__":
    print(json.dumps(main()))
