"""The fences of the services themselves: seen from outside on the living ones, and tried from inside on their like."""

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.cli.roles import EXIT_CONFIG
from appliance.core.records import PolicyLoaded
from appliance.core.refusals import Misconfigured
from appliance.core.values import Digest
from appliance.models.keys import generate_signing_key, private_pem, public_pem
from appliance.sandbox import confine, layers
from tests.support.appliance import GROUP, TestAppliance, appliance
from tests.support.chain_model import chain_model

ROLES = ("gateway", "notary", "warden")
EVERY_ROLE = (*ROLES, "liaison")
CHILD = Path(__file__).parents[1] / "support" / "confined_child.py"
NO_CAPABILITY = "0" * 16
ABI = layers.landlock_abi()
"""What Landlock covers depends on it; the filters, which do the rest, are the same everywhere."""


MANY_QUESTIONS = "[limits]\naddress_requests_per_minute = 100000\nprincipal_requests_per_minute = 100000\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("confined"), {"chain": chain_model()}, MANY_QUESTIONS) as one:
        yield one


# --- seen from outside ----------------------------------------------------------------------------------------------


def status(path: Path) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in path.read_text().splitlines())}


@pytest.mark.parametrize("role", ROLES)
def test_no_thread_of_a_living_service_is_outside_its_fence(server: TestAppliance, role: str) -> None:
    assert server.chat(server.token(), max_tokens=2).status == 200
    outside = int(status(Path("/proc/self/status"))["Seccomp_filters"])
    for thread in Path(f"/proc/{server.pid_of(role)}/task").iterdir():
        seen = status(thread / "status")
        assert {seen[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {NO_CAPABILITY}
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        assert int(seen["Seccomp_filters"]) == outside + 1


@pytest.mark.parametrize("role", ROLES)
def test_operator_reads_which_layers_are_on(server: TestAppliance, role: str) -> None:
    (line,) = {line.partition("fenced in by ")[2] for line in server.log.splitlines() if f" {role} " in line} - {""}
    whole = ", ".join(confine.SERVICE_LAYERS).replace("landlock", f"landlock (ABI {ABI})")
    assert line == f"{whole}; missing: none"


# --- tried from inside ----------------------------------------------------------------------------------------------

DONE = {
    "thread",
    "signal to itself",
    "memory to write",
    "read a module",
    "import a module",
    "encode an international name",
    "accept and answer",
}
DONE_BY = {
    "gateway": DONE | {"read the policy", "list the policy", "socket of Unix messages", "connect to a peer"},
    "liaison": DONE | {"socket of IPv4", "socket of IPv4 datagrams", "socket of IPv6"},
    "notary": DONE
    | {"pidfd_open", "read a signing key", "read the log", "write the log", "make a directory in the log"},
    "warden": DONE
    | {
        "read a trusted key",
        "read a model's entry",
        "read a model",
        "a set-user-id file by openat2",  # its arguments lie in memory; Landlock leaves it the catalogue's folder
        "read its environment",  # of /proc it sees what is not protected as another process's memory is
        "memfd_create",
        "pass a descriptor",
        "socket of Unix messages",
        "connect to a peer",
    },
}
SURVIVED = {
    "EPERM": {
        "seccomp",
        "a set-user-id file by openat2",
        "prctl",
        "landlock_create_ruleset",
        "pidfd_open",
        "a link",
        "a hard link",
        "a device",
        "change a mode",
        "change the directory",
    },
    "EACCES": {
        "memory to write and execute",
        "memory to execute",
        "program text of a library",
        "execute what was written",
        "an unnamed file",
        "a set-user-id file",
        "list the root",
        "list the policy",
    },
}
FOR_A_READER = {
    "remove the policy": "EPERM",
    "rename the policy": "EPERM",
    "make a directory in /tmp": "EPERM",
    "make a directory in the log": "EPERM",
    # The call itself is needed, for peers with a path: these two rest on Landlock alone.
    "connect to an abstract name": "EPERM" if ABI >= 6 else "done",
    "connect a leaked TCP socket": "EACCES" if ABI >= 4 else "done",
}
OTHER_FAMILIES = (
    "of packets",
    "of netlink",
    "of the kernel's ciphers",
    "of a hypervisor",
    "of Unix streams",
    "of Unix datagrams",
    "of Unix messages",
)
SURVIVED_BY = {
    "gateway": FOR_A_READER
    | {"set-user-id afterwards": "EPERM", "pass a descriptor": "EPERM", "a socket pair": "EPERM"},
    "notary": {
        "remove the policy": "EACCES",
        "rename the policy": "EACCES",
        "make a directory in /tmp": "EACCES",
        "pass a descriptor": "EPERM",
        "a socket pair": "EPERM",
    },
    "warden": FOR_A_READER | {"kill the host's process": "EPERM", "kill nobody": "EPERM"},
    "liaison": FOR_A_READER
    | dict.fromkeys((f"socket {family}" for family in OTHER_FAMILIES), "EAFNOSUPPORT")
    | dict.fromkeys(("connect to a peer", "connect to an abstract name"), "EAFNOSUPPORT")
    | {"pass a descriptor": "EPERM", "a socket pair": "EPERM", "set-user-id afterwards": "EPERM"},
}
"""Everything else that is tried ends the process, but for opening files, which fails with EACCES."""


def expected(role: str, probe: str) -> str:
    if probe in DONE_BY[role]:
        return "done"
    if probe in SURVIVED_BY[role]:
        return SURVIVED_BY[role][probe]
    for name, probes in SURVIVED.items():
        if probe in probes:
            return name
    return "EACCES" if probe.startswith(("read ", "write ")) else "killed"


@pytest.mark.parametrize("role", EVERY_ROLE)
def test_nothing_that_a_service_does_not_need_has_an_effect(server: TestAppliance, role: str) -> None:
    with subprocess.Popen(["sleep", "600"]) as victim:
        try:
            command = [sys.executable, "-I", "-B", str(CHILD), role, str(server.config_file), str(victim.pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            assert done.returncode == 0, done.stderr
            assert victim.poll() is None
        finally:
            victim.send_signal(signal.SIGKILL)
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 80
    assert outcomes == {probe: expected(role, probe) for probe in outcomes}


# --- missing layers -------------------------------------------------------------------------------------------------

LACKING = """
import errno
from pathlib import Path
from appliance import assemble, settings
from appliance.cli import init, roles
from appliance.core.refusals import Misconfigured
from appliance.sandbox import libc
lacking = {lacking!r}
real = libc.syscall
def syscall(number, *arguments):
    if (number, arguments[0] if number == 157 else None) == lacking:
        raise OSError(errno.EINVAL, "Invalid argument")
    return real(number, *arguments)
libc.syscall = syscall
"""
FENCE = """
config = settings.parse({{"state_dir": "/nonexistent", "sandbox": {{"allow_degraded": {degraded!r}}}}})
try:
    assemble.fence("gateway", config)
except Misconfigured as error:
    print(error)
else:
    print("fenced in")
"""
SERVE = """
init.initialise(settings.load(Path({config!r})))
raise SystemExit(roles.run({role!r}, Path({config!r}), None))
"""
CALLS = {layers.MDWE: (157, 65), layers.LANDLOCK: (444, None), confine.SECCOMP: (317, None)}


def poorer(lacking: str, *degraded: str) -> str:
    script = LACKING.format(lacking=CALLS[lacking]) + FENCE.format(degraded=degraded)
    command = [sys.executable, "-I", "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("lacking", CALLS)
def test_missing_layer_is_refused(lacking: str) -> None:
    said = poorer(lacking)
    assert "cannot fence the gateway in" in said
    assert f"{lacking}: " in said
    assert said.endswith("; if this host cannot have it, name it in sandbox.allow_degraded") == (
        lacking in layers.DEGRADABLE
    )


@pytest.mark.parametrize("role", ["notary", "warden"])
def test_service_does_not_serve_on_a_host_that_lacks_a_layer(tmp_path: Path, role: str) -> None:
    config = tmp_path / "paddock.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n')
    script = LACKING.format(lacking=CALLS[layers.LANDLOCK]) + SERVE.format(config=str(config), role=role)
    command = [sys.executable, "-I", "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CONFIG, done.stderr
    assert f"paddock {role}: this host cannot fence the {role} in: landlock: " in done.stderr


def test_named_layer_may_be_missing() -> None:
    assert poorer(layers.MDWE, layers.MDWE) == "fenced in"


def test_filter_is_not_to_be_named(server: TestAppliance) -> None:
    with pytest.raises(ValueError, match="may be missing"):
        layers.Stack(frozenset({confine.SECCOMP}))


def test_fence_is_not_put_on_beside_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "threads", lambda: 2)
    with pytest.raises(RuntimeError, match="thread"):
        confine.confine("gateway", allow_degraded=())


def test_other_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "threads", lambda: 1)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(Misconfigured, match="no filter for aarch64"):
        confine.confine("gateway", allow_degraded=())


# --- taken over, under the operator's own uid -----------------------------------------------------------------------

PEER = CHILD.with_name("notary_peer.py")


def asked(server: TestAppliance, *orders: str) -> list[str]:
    """What a process of our uid is answered that gives these orders to ``notary_peer``."""
    command = [sys.executable, "-I", "-B", str(PEER)]
    done = subprocess.run(command, input="\n".join(orders), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def known_to_the_notary(server: TestAppliance) -> int:
    fds = Path(f"/proc/{server.pid_of('notary')}/fd").iterdir()
    return sum(os.readlink(fd) == "anon_inode:[pidfd]" for fd in fds)


def test_fenced_notary_gives_no_token_to_who_greeted_it(server: TestAppliance) -> None:
    notary, admin = server.config.notary_socket, server.config.admin_socket
    assert asked(server, f"token {admin}") == ["token"]
    assert asked(server, f"hello {notary} warden", f"token {admin}", f"hello {notary} gateway") == [
        "heard",
        "refused",
        "refused",
    ]
    server.wait_until(lambda: known_to_the_notary(server) == 2, "gateway and warden are watched, and nobody else")


def test_notary_that_is_started_again_knows_the_living_services(server: TestAppliance) -> None:
    former = server.pid_of("notary")
    server.kill("notary")
    server.wait_until(lambda: server.ready() and server.pid_of("notary") != former, "another notary")
    words = Path(f"/proc/{server.pid_of('notary')}/cmdline").read_text().split("\0")
    living = {f"{role}={server.pid_of(role)}" for role in ("gateway", "warden")}
    assert {after for word, after in itertools.pairwise(words) if word == "--beside"} == living
    server.wait_until(lambda: server.chat(server.token(), max_tokens=1).status == 200, "an answer")


# --- at work --------------------------------------------------------------------------------------------------------


def permitted(server: TestAppliance) -> bool:
    return server.chat(server.token(), max_tokens=1).status == 200


def digests(server: TestAppliance) -> list[str]:
    return [record.policy_digest.hex for record in server.records(PolicyLoaded)]


def test_rules_that_change_behind_the_fence_are_followed(server: TestAppliance) -> None:
    """They are compiled where no memory can be made executable: by the interpreter, with the same answers."""
    rules = server.config.policy_dir / "policy.wasm"
    before = len(digests(server))
    fresh = rules.with_name("policy.wasm.new")
    fresh.write_bytes(rules.read_bytes() + b"\x00\x05\x04note")  # another custom section: the same rules, other bytes
    fresh.rename(rules)
    server.wait_until(lambda: len(digests(server)) > before, "the record of the new rules")
    assert "these rules are interpreted" in server.log
    server.wait_until(lambda: permitted(server), "an answer under the new rules")
    server.write_policy_data({"groups": {GROUP: {"models": [], "max_tokens": 1}}})
    server.wait_until(lambda: not permitted(server), "the new rules' refusal")
    server.write_policy_data({"groups": {GROUP: {"models": ["*"], "max_tokens": 100_000}}})
    server.wait_until(lambda: permitted(server), "the rules' answer with the data of before")


def publish(server: TestAppliance, version: int, *names: str) -> None:
    """A catalogue that lists these models, in the operator's way."""
    later = int(time.time()) + 1000
    digest = str(Digest.of(chain_model().read_bytes()))
    models = [
        {"name": name, "version": 1, "digest": digest, "signer": "tester", "minimum_seal": "ro-store",
         "expires_at_seconds": later}
        for name in names
    ]  # fmt: skip
    key, document, envelope = (
        server.directory / name for name in ("catalogue.key", "catalogue.in", "catalogue.signed")
    )
    document.write_text(json.dumps({"version": version, "expires_at_seconds": later, "models": models}))
    keys = server.config.trust_dir / "catalogue-keys"
    if not key.exists():
        signer = generate_signing_key()
        key.write_bytes(private_pem(signer))
        key.chmod(0o600)
        keys.mkdir(mode=0o700)
        (keys / "tester.pem").write_bytes(public_pem(signer.public_key()))
    envelope.unlink(missing_ok=True)
    assert main(["models", "catalogue", "sign", str(document), str(envelope), "--key", str(key)]) == 0
    envelope.rename(server.config.trust_dir / "catalogue.json")


def listed(server: TestAppliance) -> list[str]:
    answer = server.request("GET", "/v1/models", token=server.token("reader"))
    return [model["id"] for model in answer.json()["data"]]


def test_catalogue_is_followed_and_remembered_behind_the_fence(server: TestAppliance) -> None:
    memory = server.config.models_dir / "catalogue" / "seen.json"

    def remembered() -> int:
        return int(json.loads(memory.read_bytes())["version"]) if memory.exists() else 0

    publish(server, 1, "chain")
    server.wait_until(lambda: remembered() == 1, "the memory of the first catalogue")
    publish(server, 2)
    server.wait_until(lambda: remembered() == 2 and listed(server) == [], "the model's disappearance")
    publish(server, 3, "chain")
    server.wait_until(lambda: remembered() == 3 and permitted(server), "the model's return")


def answers_anew(server: TestAppliance, former: int) -> bool:
    with suppress(OSError, AssertionError, http.client.HTTPException):
        return server.pid_of("gateway") != former and server.request("GET", "/healthz").status == 200
    return False


def test_policy_directory_that_is_replaced_is_followed_by_another_gateway(server: TestAppliance) -> None:
    """The fence is around the directory that was there, not around its name."""
    folder = server.config.policy_dir
    old, other = folder.with_name("policy.old"), folder.with_name("policy.new")
    other.mkdir()
    for path in folder.glob("*.*"):
        if not path.is_symlink():
            (other / path.name).write_bytes(path.read_bytes().replace(b'["*"]', b'["x"]'))
    assert permitted(server)

    def put_in_place(change: Callable[[], object]) -> None:
        gateway, said = server.pid_of("gateway"), server.log.count("another directory has become")
        change()
        server.wait_until(lambda: answers_anew(server, gateway), "another gateway")
        assert server.log.count("another directory has become") == said + 1

    folder.rename(old)
    put_in_place(lambda: folder.symlink_to(other))
    server.wait_until(lambda: not permitted(server), "the other policy's refusal")
    link = folder.with_name("policy.link")
    link.symlink_to(old)
    put_in_place(lambda: link.rename(folder))
    server.wait_until(lambda: permitted(server), "the first policy's answer")
    folder.unlink()
    old.rename(folder)
