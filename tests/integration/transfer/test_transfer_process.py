"""The process that talks to registries: what it can reach, what it leaves when it is killed, and who believes it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from appliance.cli import puller, transfer
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.models.transfer import jobs, media
from appliance.models.transfer.partial import Partial
from appliance.models.transfer.reference import parse_reference
from tests.support.gguf_files import small_model_bytes
from tests.support.hostile_http import Asked, HostileServer, answer
from tests.support.signed_models import signed
from tests.support.transfer import PULLER, ROOT, names_in, settings_in

MODEL = small_model_bytes("demo")
BUNDLE = signed(MODEL)
OPEN = jobs.Access()


def publish(server: HostileServer, blob_answer: object) -> str:
    """A registry with one signed model, whose bytes come from ``blob_answer(asked)``."""
    layers = [
        {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}
        for kind, data in [(media.MODELPACK_WEIGHT, MODEL), (media.BUNDLE, BUNDLE)]
    ]
    document = json.dumps({"schemaVersion": 2, "mediaType": media.MANIFEST, "layers": layers}).encode()

    def script(asked: Asked) -> Iterable[bytes]:
        if asked.target.endswith("/manifests/v1"):
            return [answer(200, document)]
        if asked.target.endswith(str(Digest.of(BUNDLE))):
            return [answer(200, BUNDLE)]
        return blob_answer(asked)  # type: ignore[operator, no-any-return]

    server.script = script
    return f"{server.host}/models/demo:v1"


# --- what it can reach -----------------------------------------------------------------------------------------------

PROBE = """
import errno, json, os, socket, sys
sys.path.insert(0, {root!r})
from appliance.models.transfer.confine import confine
confine(allow_degraded=frozenset(), max_file_bytes=4096)
found = {{}}
def attempt(name, action):
    try:
        action()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, str(error))
attempt("read-secret", lambda: open({secret!r}))
attempt("list-store", lambda: os.listdir({folder!r}))
attempt("write-new", lambda: open({folder!r} + "/new", "w"))
attempt("write-tmp", lambda: open("/tmp/paddock-probe", "w"))
attempt("read-self-memory", lambda: open("/proc/self/mem", "rb"))
attempt("read-settings", lambda: open("/etc/passwd"))
attempt("execute", lambda: os.execv("/bin/true", ["true"]))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", {port}), 5))
attempt("resolve", lambda: socket.getaddrinfo("localhost", 80))
attempt("grow", lambda: os.pwrite({fd}, b"x" * 8192, 4096))
attempt("fill", lambda: os.pwrite({fd}, b"x", 0))
print(json.dumps(found))
"""


def test_confined_process_reaches_the_network_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "part").open("wb") as part:
        code = PROBE.format(
            root=str(ROOT), secret=str(secret), folder=str(tmp_path), port=listener.getsockname()[1], fd=part.fileno()
        )
        finished = subprocess.run(
            [sys.executable, "-I", "-B", "-c", code],
            capture_output=True,
            pass_fds=(part.fileno(),),
            timeout=30,
            check=True,
        )
    assert json.loads(finished.stdout) == {
        "read-secret": "EACCES",
        "list-store": "EACCES",
        "write-new": "EACCES",
        "write-tmp": "EACCES",
        "read-self-memory": "EACCES",
        "read-settings": "EACCES",
        "execute": "EACCES",
        "listen": "EACCES",
        "connect": "done",
        "resolve": "done",
        "grow": "EFBIG",
        "fill": "done",
    }


def test_process_gets_no_environment_and_no_descriptor_but_its_own(tmp_path: Path, server: HostileServer) -> None:
    """Looked at while it waits for an answer that does not come."""
    seen: dict[str, object] = {}

    def script(_asked: Asked) -> Iterable[bytes]:
        child = _transfer()
        seen["environment"] = Path(f"/proc/{child}/environ").read_bytes()
        targets = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
        seen["files"] = [target for target in targets if target.startswith("/") and target != "/dev/null"]
        return [answer(404)]

    server.script = script
    with (tmp_path / "secret").open("w"), pytest.raises(Fault, match=r"^not-found: "):
        puller.run(jobs.Resolve(place=jobs.Place.of(parse_reference(f"{server.host}/a/b:c")), access=OPEN))
    assert seen == {"environment": b"LC_ALL=C.UTF-8\0", "files": []}


def _transfer() -> int:
    """The one child that transfers; other tests' servers may be alive beside it."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (child,) = [one for one in children if puller.COMMAND[-1].encode() in Path(f"/proc/{one}/cmdline").read_bytes()]
    return int(child)


def test_missing_layer_that_nobody_named_is_refused(server: HostileServer) -> None:
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r})\n"
        "from appliance.models.transfer import confine\n"
        "def missing(paths): raise OSError(38, 'not implemented')\n"
        "confine.landlock_read_only = missing\n"
        "from appliance.models.transfer.__main__ import main\n"
        "raise SystemExit(main())"
    )
    broken = (*PULLER[:-1], code)
    place = jobs.Place.of(parse_reference(f"{server.host}/a/b:c"))
    with pytest.raises(Fault, match=r"^layer-missing: landlock"):
        puller.run(jobs.Resolve(place=place, access=OPEN), command=broken)
    assert server.asked == []
    with pytest.raises(Fault, match=r"^not-found: "):
        puller.run(jobs.Resolve(place=place, access=jobs.Access(allow_degraded=("landlock",))), command=broken)


# --- killed half way -------------------------------------------------------------------------------------------------

PULL = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from appliance import settings
from appliance.cli import puller, transfer
from appliance.models.transfer.jobs import Access
puller.COMMAND = {command!r}
config = settings.parse({{"state_dir": {state!r}, "runtime_dir": "/run/unused"}})
print(transfer.pull(config, {reference!r}, "demo", Access()))
"""


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_download_that_was_killed_goes_on_where_it_stopped(tmp_path: Path, server: HostileServer, victim: str) -> None:
    half = len(MODEL) // 2

    def stalls(_asked: Asked) -> Iterable[bytes]:
        yield answer(200, MODEL[:half], Content_Length=str(len(MODEL)))
        server.ended.wait(20)

    reference = publish(server, stalls)
    config = settings_in(tmp_path)
    part = config.models_dir / "incoming" / f"{Digest.of(MODEL).hex}.part"
    code = PULL.format(root=str(ROOT), command=PULLER, state=str(config.state_dir), reference=reference)
    process = subprocess.Popen([sys.executable, "-I", "-B", "-c", code], stderr=subprocess.PIPE)
    try:
        _await(lambda: part.exists() and part.stat().st_size == half)
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(process.pid if victim == "parent" else child, signal.SIGKILL)
        process.communicate(timeout=20)
        _await(lambda: not Path(f"/proc/{child}").exists())
    finally:
        process.kill()
        process.wait(10)
    assert names_in(config) == ()
    assert part.read_bytes() == MODEL[:half]

    rest = answer(206, MODEL[half:], Content_Range=f"bytes {half}-{len(MODEL) - 1}/{len(MODEL)}")
    publish(server, lambda _asked: [rest])
    assert transfer.pull(config, reference, "demo", OPEN).endswith("signed by acme")
    assert server.asked[-1].headers["range"] == f"bytes={half}-"
    assert not part.exists()


def _await(happened: object) -> None:
    deadline = time.monotonic() + 20
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_pulls_of_one_model_do_not_mix(tmp_path: Path, server: HostileServer) -> None:
    reference = publish(server, lambda _asked: [answer(200, MODEL)])
    config = settings_in(tmp_path)
    config.models_dir.mkdir(mode=0o700)
    with Partial(config.models_dir, Digest.of(MODEL)), pytest.raises(Fault, match=r"^busy: "):
        transfer.pull(config, reference, "demo", OPEN)
    assert transfer.pull(config, reference, "demo", OPEN).endswith("signed by acme")


@pytest.mark.parametrize("kind", ["link", "directory", "second-name"])
def test_partial_that_is_not_a_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "incoming").mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    path = tmp_path / "incoming" / f"{Digest.of(MODEL).hex}.part"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "second-name":
        path.hardlink_to(victim)
    else:
        path.mkdir()
    with pytest.raises((Fault, OSError)):
        Partial(tmp_path, Digest.of(MODEL))
    assert victim.read_text() == "precious"


def test_model_for_which_there_is_no_room_is_not_fetched(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with Partial(tmp_path, Digest.of(MODEL)) as partial, pytest.raises(Fault, match=r"^no-space: "):
        partial.require_room(2**60)


# --- who believes it -------------------------------------------------------------------------------------------------


def liar(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", f"import sys; sys.stdin.buffer.read(); {text}")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("pass", "ended without an answer"),
        ("raise SystemExit(3)", "ended without an answer"),
        ("print('nonsense')", "cannot be read"),
        ("""print('{"event":"done","manifest_digest":"sha256:../.."}')""", "cannot be read"),
        ("""print('{"event":"found"}')""", "cannot be read"),
        ("""print('{"event":"done","extra":1}')""", "cannot be read"),
        ("""print('{"event":"no","reason":"x\\\\u001b[2J","detail":""}')""", "cannot be read"),
        ("sys.stdout.buffer.write(b'x' * 30_000_000)", "ended without an answer"),
    ],
    ids=range(8),
)
def test_process_that_was_taken_over_is_not_believed(text: str, match: str) -> None:
    place = jobs.Place.of(parse_reference("127.0.0.1:1/a/b:c"))
    with pytest.raises(Fault, match=match):
        puller.run(jobs.Resolve(place=place, access=OPEN), command=liar(text))


def test_terminal_escapes_of_the_process_are_not_shown() -> None:
    place = jobs.Place.of(parse_reference("127.0.0.1:1/a/b:c"))
    text = """print('{"event":"no","reason":"x","detail":"\\\\u001b]0;owned\\\\u0007"}')"""
    with pytest.raises(Fault) as caught:
        puller.run(jobs.Resolve(place=place, access=OPEN), command=liar(text))
    assert str(caught.value) == "x: ?]0;owned?"


def test_process_that_falls_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puller, "SILENCE_SECONDS", 0.5)
    place = jobs.Place.of(parse_reference("127.0.0.1:1/a/b:c"))
    with pytest.raises(Fault, match=r"^too-slow: "):
        puller.run(jobs.Resolve(place=place, access=OPEN), command=liar("import time; time.sleep(60)"))


def test_bytes_that_the_process_exchanged_are_not_imported(
    tmp_path: Path, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is expected to be taken over: what it says it fetched is judged like anybody's file."""
    reference = publish(server, lambda _asked: [answer(200, MODEL)])
    config = settings_in(tmp_path)
    honest = puller.run

    def lies(job: jobs.Job, **how: object) -> object:
        if isinstance(job, jobs.Fetch):
            os.pwrite(job.fd, small_model_bytes("other"), 0)
            return jobs.Done()
        return honest(job)

    monkeypatch.setattr(puller, "run", lies)
    with pytest.raises(Exception, match="digest-mismatch"):
        transfer.pull(config, reference, "demo", OPEN)
    assert names_in(config) == ()
