"""Every kind of listener behind the gateway's own fence: it serves, and the fence is no wider than it needs."""

import http.client
import json
import os
import pwd
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.core.proxy_protocol import SIGNATURE
from appliance.core.records import Opened, RefusalSummary
from tests.support.appliance import TestAppliance, appliance, chat_body, free_port
from tests.support.chain_model import chain_model
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder

CA, OTHER = authority(), authority("another authority")
LIMIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("plain", "tls", "both")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[TestAppliance]:
    folder = tmp_path_factory.mktemp("listeners")
    tls = write_folder(folder / "tls", server_of(CA), CA)
    me = pwd.getpwuid(os.getuid()).pw_name
    listeners: list[dict[str, Any]] = [
        {"host": "127.0.0.1", "port": ports["plain"]},
        {"host": "127.0.0.1", "port": ports["tls"], "tls": str(tls), "client_certificates": "optional"},
        {"host": "127.0.0.1", "port": ports["both"], "tls": str(tls), "proxy_protocol": True, "trusted": ["127.0.0.1"]},
        {"path": str(folder / "http.sock"), "mode": 0o600, "users": [me], "trusted": ["unix"]},
    ]
    hosts = [f"127.0.0.1:{ports['plain']}", "llm.example.com"]
    tables = "".join(
        "[[listen]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in one.items()) for one in listeners
    )
    with appliance(folder, {"chain": chain_model()}, f"allowed_hosts = {json.dumps(hosts)}\n{tables}") as one:
        yield one


def ask(
    server: TestAppliance,
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """A chat over a connected socket: the status, and the record of it."""
    connection = http.client.HTTPConnection("llm.example.com", timeout=LIMIT_SECONDS)
    connection.sock = tls.wrap_socket(sock, server_hostname="llm.example.com") if tls else sock
    before = len(server.records(Opened))
    fields = {"Authorization": f"Bearer {server.token()}", "Content-Type": "application/json", **(headers or {})}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(chat_body(max_tokens=2)), fields)
        with connection.getresponse() as answer:
            answer.read()
            status = answer.status
    finally:
        connection.close()
    server.wait_until(lambda: len(server.records(Opened)) > before, "the record")
    return status, server.records(Opened)[-1].peer


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS)


CLAIM = {"X-Forwarded-For": "203.0.113.9"}
OF_A_CLIENT = socket.inet_aton("203.0.113.77") * 2 + struct.pack("!HH", 4711, 443)
ANNOUNCED = SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(OF_A_CLIENT)) + OF_A_CLIENT


def certificates_lead_to(root: Any, ports: dict[str, int], tmp_path: Path) -> bool:
    """On each listener with TLS, which look at the folder one by one."""
    for name, first in (("tls", b""), ("both", ANNOUNCED)):
        sock = connected(ports[name])
        sock.sendall(first)
        try:
            client_context(tmp_path, root).wrap_socket(sock, server_hostname="llm.example.com").close()
        except ssl.SSLCertVerificationError:
            return False
        finally:
            sock.close()
    return True


def test_plain_listener_believes_nobody(server: TestAppliance, ports: dict[str, int]) -> None:
    status, peer = ask(server, connected(ports["plain"]), headers=CLAIM)
    assert (status, peer.address) == (200, "127.0.0.1")
    assert "stripped from a request of 127.0.0.1: x-forwarded-for" in server.log


def test_handshake_needs_nothing_that_the_fence_forbids(
    server: TestAppliance, ports: dict[str, int], tmp_path: Path
) -> None:
    for client in (None, client_of(CA)):
        context = client_context(tmp_path, CA, client)
        status, peer = ask(server, connected(ports["tls"]), tls=context, headers=CLAIM)
        assert (status, peer.address) == (200, "127.0.0.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(server, connected(ports["tls"]), tls=client_context(tmp_path, CA, client_of(OTHER)))


def test_proxy_header_before_tls_says_who_asks(server: TestAppliance, ports: dict[str, int], tmp_path: Path) -> None:
    sock = connected(ports["both"])
    sock.sendall(ANNOUNCED)
    status, peer = ask(server, sock, tls=client_context(tmp_path, CA), headers=CLAIM)
    assert (status, peer.address, peer.port) == (200, "203.0.113.77", 4711)
    with connected(ports["both"]) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: llm.example.com\r\n\r\n")
        with suppress(ConnectionResetError):
            assert sock.recv(1000) == b""


def test_peers_user_is_looked_at_behind_the_fence(server: TestAppliance) -> None:
    path = str(server.directory / "http.sock")
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT_SECONDS)
    sock.connect(path)
    status, peer = ask(server, sock, headers=CLAIM)
    assert (status, peer.address, peer.port) == (200, "203.0.113.9", 0)
    assert Path(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_not_answered_even_where_the_file_lets_it(server: TestAppliance) -> None:
    path = server.directory / "http.sock"
    path.chmod(0o666)
    server.directory.chmod(0o711)
    listening = os.open(server.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        script = (
            "import os, socket, sys; os.fchdir(int(sys.argv[1])); os.setgroups([]); os.setuid(65534);"
            "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect('http.sock');"
            "print(s.recv(100))"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", script, str(listening)],
            pass_fds=[listening], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(listening)
        path.chmod(0o600)
        server.directory.chmod(0o700)
    assert done.stdout == "b''\n" or "ConnectionResetError" in done.stderr, done
    assert "connection-refused: 'uid 65534 at " in server.log


def test_new_certificate_is_read_behind_the_fence(server: TestAppliance, ports: dict[str, int], tmp_path: Path) -> None:
    write_folder(server.directory / "tls", server_of(OTHER), CA)
    server.wait_until(lambda: certificates_lead_to(OTHER, ports, tmp_path), "the new certificate")
    assert ask(server, connected(ports["tls"]), tls=client_context(tmp_path, OTHER))[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        client_context(tmp_path, CA).wrap_socket(connected(ports["tls"]), server_hostname="llm.example.com")
    write_folder(server.directory / "tls", server_of(CA), CA)
    server.wait_until(lambda: certificates_lead_to(CA, ports, tmp_path), "the former one")


FENCED = """
import sys
from pathlib import Path
from appliance import assemble, settings
assemble.fence("gateway", settings.load(Path(sys.argv[1])))
for mode, path in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        open(path, mode).close()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


def test_fence_leaves_the_certificates_folder_and_nothing_beside_it(server: TestAppliance) -> None:
    tls = server.directory / "tls"
    tried = {
        ("rb", tls / "key.pem"): "done",
        ("rb", tls / "certificate.pem"): "done",
        ("ab", tls / "key.pem"): "PermissionError",
        ("wb", tls / "new"): "PermissionError",
        ("rb", tls.parent / "paddock.toml"): "PermissionError",
        ("rb", Path("/etc/passwd")): "PermissionError",
    }
    arguments = [str(part) for pair in tried for part in pair]
    command = [sys.executable, "-I", "-B", "-c", FENCED, str(server.config_file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == list(tried.values()), done.stderr


def test_socket_file_of_a_killed_gateway_keeps_the_next_one_from_nothing(server: TestAppliance) -> None:
    """The fence lets none remove its own."""
    path = str(server.directory / "http.sock")
    server.kill("gateway")

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            sock.settimeout(LIMIT_SECONDS)
            sock.connect(path)
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: llm.example.com\r\n\r\n")
            return sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        return False

    server.wait_until(answers, "another gateway at the same place")
    server.wait_until(server.ready, "its models")


def test_second_gateway_does_not_take_the_place_of_one_that_listens(server: TestAppliance) -> None:
    script = (
        "import sys; from pathlib import Path; from appliance import assemble, settings\n"
        "config = settings.load(Path(sys.argv[1]))\n"
        "[one] = [one for one in config.listen if one.path]\n"
        "try:\n    assemble._sockets(one, {})\nexcept assemble.Fault as fault:\n    print(fault)\n"
    )
    command = [sys.executable, "-I", "-B", "-c", script, str(server.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "somebody else does" in done.stdout, done.stderr


def test_connections_that_never_spoke_http_are_in_the_log(tmp_path: Path) -> None:
    """In the summary of the interval, as every refusal of strangers."""
    port = free_port()
    tls = write_folder(tmp_path / "tls", server_of(CA))
    hosts = json.dumps([f"127.0.0.1:{port}"])
    plain = free_port()
    config = (
        f"allowed_hosts = {json.dumps([f'127.0.0.1:{plain}', *json.loads(hosts)])}\n"
        f'[[listen]]\nhost = "127.0.0.1"\nport = {plain}\n'
        f'[[listen]]\nhost = "127.0.0.1"\nport = {port}\ntls = {json.dumps(str(tls))}\n'
    )
    with appliance(tmp_path, {}, config) as one:
        with connected(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            sock.recv(1000)
        one.wait_until(lambda: "connection-refused" in one.log, "the line")
        one.stop()
        counts = [record.counts.get("connection-refused", 0) for record in one.records(RefusalSummary)]
    assert sum(counts) == 1
