"""What comes before HTTP, and who is believed: on real sockets, the gateway's own server in this process."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from appliance.core.forwarded import Trust, network
from appliance.core.proxy_protocol import SIGNATURE
from appliance.core.refusals import Fault, Misconfigured
from appliance.gateway.asgi import CLIENT_CERTIFICATE
from appliance.gateway.listeners import Listener, inherited_listener, listen_tcp, listen_unix
from appliance.gateway.serve import http_server
from appliance.gateway.tally import MAX_LINE_CHARACTERS, Tally
from appliance.gateway.tls import TlsFolder
from appliance.gateway.wire import WireLimits
from tests.fakes.world import World
from tests.support.scenario import run, until
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder
from tests.support.wire_server import App, Served, gate_around, served

GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n%s\r\n"
PLAIN = GET % b""
LOCAL = Trust(networks=(network("127.0.0.1"), network("10.0.0.0/8")))
UNIX = Trust(unix=True)
ELSEWHERE = Trust(networks=(network("10.0.0.0/8"),))


@asynccontextmanager
async def gateway(**details: Any) -> AsyncIterator[tuple[Served, App]]:
    inner, refusals = App(), Tally()
    terms = {name: details.pop(name) for name in ("trust", "proxy_protocol", "tls", "uids") if name in details}
    gate = gate_around(World(), inner=inner, refusals=refusals)
    async with served(gate, refusals, terms=terms, **details) as server:
        yield server, inner


async def asked(server: Served, inner: App, request: bytes = PLAIN, **how: Any) -> Any:
    """The scope in which a request reached the application."""
    async with server.client(**how) as client:
        client.send(request)
        answer = await client.answer()
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return inner.asked[-1]


async def refused(server: Served, sent: bytes, **how: Any) -> None:
    """Closed without a word, and counted."""
    before = server.refusals.strangers["connection-refused"]
    async with server.client(**how) as client:
        client.send(sent)
        assert await client.rest() == b""
    await until(lambda: server.refusals.strangers["connection-refused"] == before + 1)


# --- headers --------------------------------------------------------------------------------------------------------

CLAIMS = (
    b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 203.0.113.8\r\n"
    b"Forwarded: for=203.0.113.7\r\nX-User: root\r\nX-Tenant-Id: acme\r\nClient-Cert: :MAMCAQA=:\r\n"
)


@pytest.mark.parametrize("trust", [Trust(), ELSEWHERE, UNIX])
def test_nobody_is_another_by_a_header(trust: Trust, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with gateway(trust=trust) as (server, inner):
            scope = await asked(server, inner, GET % CLAIMS)
            assert (scope["client"][0], scope["scheme"], scope[CLIENT_CERTIFICATE]) == ("127.0.0.1", "http", None)
            assert scope["headers"] == [(b"host", b"test")]
            assert server.refusals.stripped_headers == 7

    caplog.set_level("INFO")
    run(scenario)
    [line] = [record.getMessage() for record in caplog.records if "stripped" in record.getMessage()]
    assert line.startswith("stripped from a request of 127.0.0.1: x-forwarded-for, x-forwarded-proto, ")
    assert "203.0.113" not in line


def test_names_of_strangers_headers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with gateway() as (server, inner):
            await asked(server, inner, GET % b"".join(b"X-User-%d%s: x\r\n" % (n, b"y" * 800) for n in range(10)))
            assert server.refusals.stripped_headers == 10

    caplog.set_level("INFO")
    run(scenario)
    [line] = [record.getMessage() for record in caplog.records if "stripped" in record.getMessage()]
    assert len(line) <= MAX_LINE_CHARACTERS


def test_trusted_proxy_is_believed_and_its_other_headers_go_too() -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL) as (server, inner):
            scope = await asked(server, inner, GET % CLAIMS)
            assert (scope["client"], scope["scheme"]) == (("203.0.113.9", 0), "https")
            assert scope[CLIENT_CERTIFICATE] == sha256(b"\x30\x03\x02\x01\x00").digest()
            assert scope["headers"] == [(b"host", b"test")]
            assert server.refusals.stripped_headers == 0
            assert (await asked(server, inner))["client"][0] == "127.0.0.1"

    run(scenario)


@pytest.mark.parametrize(
    "header",
    [b"X-Forwarded-For: here", b"X-Forwarded-For:", b"X-Forwarded-Proto: gopher", b"Client-Cert: :a:",
     b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http"],
)  # fmt: skip
def test_trusted_proxy_that_cannot_be_understood_gets_400(header: bytes) -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL) as (server, inner), server.client() as client:
            client.send(GET % (header + b"\r\n"))
            answer = await client.answer()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"header-invalid" in answer
            assert inner.asked == []

    run(scenario)


def test_headers_of_one_request_are_not_the_next_ones() -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL) as (server, inner), server.client() as client:
            for header, address in ((b"X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"), (b"", "127.0.0.1")):
                client.send(GET % header)
                await client.answer()
                assert inner.asked[-1]["client"][0] == address

    run(scenario)


def test_address_of_a_client_has_one_spelling_on_a_socket_of_both_families() -> None:
    """As systemd makes it of a port alone; policy would not know the client in IPv6 clothes."""

    async def scenario() -> None:
        for trust, address in ((Trust(), "127.0.0.1"), (LOCAL, "203.0.113.9")):
            at = listen_tcp("::", 0)
            async with gateway(at=at, trust=trust) as (server, inner):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(GET % b"X-Forwarded-For: ::ffff:203.0.113.9\r\n")
                await reader.readuntil(b"ok")
                assert inner.asked[0]["client"][0] == address
                writer.transport.abort()

    run(scenario)


# --- Unix sockets ---------------------------------------------------------------------------------------------------


def test_unix_socket_is_believed_only_where_it_is_trusted(tmp_path: Path) -> None:
    async def scenario() -> None:
        header = GET % b"X-Forwarded-For: 203.0.113.9\r\n"
        for trust, address in ((UNIX, "203.0.113.9"), (Trust(), "unix"), (LOCAL, "unix")):
            at = listen_unix(tmp_path / "http.sock", mode=0o600)
            async with gateway(at=at, trust=trust) as (server, inner):
                assert (await asked(server, inner, header))["client"] == (address, 0)
                assert (await asked(server, inner))["client"] == ("unix", 0)

    run(scenario)


def test_process_of_another_user_is_not_let_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        at = listen_unix(tmp_path / "http.sock", mode=0o600)
        async with gateway(at=at, uids=frozenset({54321})) as (server, inner):
            await refused(server, PLAIN)
            assert inner.asked == []
        at = listen_unix(tmp_path / "http.sock", mode=0o600)
        async with gateway(at=at, uids=frozenset({54321}), trust=UNIX, proxy_protocol=True) as (server, inner):
            await refused(server, b"", before=proxied("203.0.113.9") + PLAIN)
            assert inner.asked == []

    run(scenario)


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_socket_file_is_never_wider_than_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "http.sock"
    with listen_unix(path, mode=mode):
        assert path.stat().st_mode & 0o7777 == mode
    with listen_unix(path, mode=0o600):  # what an earlier process left
        assert path.stat().st_mode & 0o7777 == 0o600


def test_socket_file_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with listen_unix(path, mode=0o600):
        with pytest.raises(Fault, match="somebody else does"):
            listen_unix(path, mode=0o600)
        assert path.is_socket()
    other = tmp_path / "precious"
    other.write_text("data")
    with pytest.raises(Misconfigured, match="another kind"):
        listen_unix(other, mode=0o600)
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(Misconfigured, match="another kind"):
        listen_unix(link, mode=0o600)
    assert other.read_text() == "data"
    with pytest.raises(Fault, match="No such file"):
        listen_unix(tmp_path / "absent" / "http.sock", mode=0o600)


# --- inherited descriptors ------------------------------------------------------------------------------------------


def paired() -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


UNFIT = {
    "not listening": socket.socket,
    "datagrams": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "messages": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a pair": paired,
}


@pytest.mark.parametrize("make", UNFIT.values(), ids=UNFIT)
def test_inherited_descriptor_that_does_not_listen_is_refused(make: Any) -> None:
    with pytest.raises(Misconfigured, match="inherited descriptor"):
        inherited_listener(make().detach(), any_user=True)


def test_inherited_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(Misconfigured, match="Socket operation on non-socket"):
        inherited_listener(file.fileno(), any_user=True)
    with pytest.raises(Misconfigured, match="Bad file descriptor"):
        inherited_listener(10_000, any_user=True)


def test_inherited_unix_socket_that_is_open_to_everybody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    sock = listen_unix(path, mode=0o660)
    path.chmod(0o666)
    duplicate = sock.dup()
    with pytest.raises(Misconfigured, match="open to everybody"):
        inherited_listener(duplicate.detach(), any_user=True)
    inherited_listener(sock.dup().detach(), any_user=False).close()  # the kernel says who connects
    path.chmod(0o660)
    inherited_listener(sock.detach(), any_user=True).close()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(b"\0paddock-test-%d" % id(abstract))
    abstract.listen()
    with pytest.raises(Misconfigured, match="without a file"):
        inherited_listener(abstract.detach(), any_user=True)


def test_inherited_listener_is_one() -> None:
    with inherited_listener(listen_tcp("127.0.0.1", 0).detach(), any_user=True) as sock:
        assert (sock.family, sock.proto, sock.getblocking()) == (socket.AF_INET, socket.IPPROTO_TCP, False)


# --- PROXY protocol -------------------------------------------------------------------------------------------------


def header(command: int, family: int, rest: bytes = b"") -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def proxied(address: str) -> bytes:
    return header(0x21, 0x11, socket.inet_aton(address) * 2 + struct.pack("!HH", 4711, 443))


def test_header_in_front_says_who_asks_and_nothing_in_the_request_does() -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL, proxy_protocol=True) as (server, inner):
            scope = await asked(server, inner, GET % CLAIMS, before=proxied("203.0.113.200"))
            assert (scope["client"], scope["scheme"]) == (("203.0.113.200", 4711), "http")
            assert scope[CLIENT_CERTIFICATE] is None
            scope = await asked(server, inner, b"", before=proxied("203.0.113.201") + PLAIN)  # in one piece
            assert scope["client"][0] == "203.0.113.201"
            scope = await asked(server, inner, GET % CLAIMS, before=proxied("10.1.2.3"))  # another trusted proxy
            assert scope["client"][0] == "203.0.113.9"

    run(scenario)


@pytest.mark.parametrize(
    "before", [header(0x20, 0), header(0x20, 0x11, b"x"), header(0x21, 0), header(0x21, 0, bytes(520))]
)
def test_header_that_names_nobody_leaves_the_proxy_and_nobodys_headers(before: bytes) -> None:
    """In a connection for nobody in particular, headers may be anybody's."""

    async def scenario() -> None:
        async with gateway(trust=LOCAL, proxy_protocol=True) as (server, inner):
            scope = await asked(server, inner, GET % CLAIMS, before=before)
            assert scope["client"][0] == "127.0.0.1"

    run(scenario)


@pytest.mark.parametrize(
    "sent",
    [PLAIN, b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n" + PLAIN, proxied("203.0.113.9")[1:] + PLAIN,
     header(0x21, 0x12, bytes(12)) + PLAIN, header(0x31, 0x11, bytes(12)) + PLAIN,
     header(0x21, 0x11, bytes(521)) + PLAIN, header(0x21, 0x11, bytes(11)) + PLAIN, b"\x16\x03\x01" * 20],
)  # fmt: skip
def test_connection_without_a_good_header_is_closed(sent: bytes) -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL, proxy_protocol=True) as (server, inner):
            await refused(server, sent)
            assert inner.asked == []

    run(scenario)


@pytest.mark.parametrize("sent", [b"", SIGNATURE, proxied("203.0.113.9")[:-1]])
def test_header_that_does_not_end_is_given_up(sent: bytes) -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL, proxy_protocol=True, head_seconds=0.2) as (server, _inner):
            await refused(server, sent)

    run(scenario)


def test_header_of_a_stranger_is_not_read() -> None:
    async def scenario() -> None:
        async with gateway(trust=ELSEWHERE, proxy_protocol=True) as (server, inner):
            await refused(server, b"", before=proxied("10.0.0.1") + PLAIN)
            assert inner.asked == []

    run(scenario)


def test_header_over_a_unix_socket_is_as_good_as_over_an_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        at = listen_unix(tmp_path / "http.sock", mode=0o600)
        async with gateway(at=at, trust=UNIX, proxy_protocol=True) as (server, inner):
            scope = await asked(server, inner, GET % CLAIMS, before=proxied("203.0.113.200"))
            assert scope["client"] == ("203.0.113.200", 4711)
            scope = await asked(server, inner, GET % CLAIMS, before=header(0x21, 0x31, bytes(216)))
            assert scope["client"] == ("unix", 0)
            await refused(server, PLAIN)

    run(scenario)


def test_header_is_refused_where_none_is_expected() -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL) as (server, inner), server.client(before=proxied("203.0.113.9")) as client:
            client.send(PLAIN)
            assert b"request-malformed" in await client.rest()
            assert inner.asked == []

    run(scenario)


def test_connections_count_against_those_for_whom_they_are() -> None:
    async def scenario() -> None:
        limits = {"connections_per_peer": 2, "head_seconds": 5.0}
        async with gateway(trust=LOCAL, proxy_protocol=True, **limits) as (server, inner):
            inner.go.clear()
            mine = [server.client(before=proxied("203.0.113.9")) for _ in range(2)]
            for one in mine:
                (await one.__aenter__()).send(PLAIN)
            await until(lambda: len(inner.asked) == 2)
            async with server.client(before=proxied("203.0.113.9")) as third:
                assert (await third.rest()).startswith(b"HTTP/1.1 503 ")
            async with server.client(before=proxied("203.0.113.10")) as another:
                another.send(PLAIN)
                await until(lambda: len(inner.asked) == 3)
                inner.go.set()
                assert (await another.answer()).endswith(b"ok")
            for one in mine:
                await one.__aexit__(None, None, None)

    run(scenario)


def test_waiting_on_the_porch_keeps_nobody_out() -> None:
    async def scenario() -> None:
        async with gateway(trust=LOCAL, proxy_protocol=True, connections=3) as (server, inner):
            waiting = [server.client() for _ in range(10)]
            clients = [await one.__aenter__() for one in waiting]
            assert (await asked(server, inner, before=proxied("203.0.113.9")))["client"][0] == "203.0.113.9"
            assert await clients[0].rest() == b""
            for one in waiting:
                await one.__aexit__(None, None, None)
        assert server.refusals.strangers["overloaded"] == 0

    run(scenario)


# --- TLS ------------------------------------------------------------------------------------------------------------

CA, OTHER = authority(), authority("another authority")
SERVER = server_of(CA)


def folder(tmp_path: Path, client_certificates: Any = "none", clients: Any = CA) -> TlsFolder:
    path = write_folder(tmp_path / "tls", SERVER, None if client_certificates == "none" else clients)
    return TlsFolder(path, client_certificates)


def test_request_over_tls_is_answered_and_its_scheme_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path)) as (server, inner):
            scope = await asked(server, inner, tls=client_context(tmp_path, CA))
            assert (scope["scheme"], scope["client"][0], scope[CLIENT_CERTIFICATE]) == ("https", "127.0.0.1", None)

    run(scenario)


def test_no_other_version_of_tls_is_spoken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path)) as (server, inner):
            context = client_context(tmp_path, CA)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asked(server, inner, tls=context)
            async with server.client(tls=client_context(tmp_path, CA)) as client:
                assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert server.refusals.strangers["connection-refused"] == 1

    run(scenario)


@pytest.mark.parametrize("sent", [PLAIN, b"\x16\x03\x01\xff\xff" + bytes(100), proxied("203.0.113.9") + PLAIN])
def test_what_is_not_tls_gets_no_answer_in_http(tmp_path: Path, sent: bytes) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path), head_seconds=0.5) as (server, inner), server.client() as client:
            client.send(sent)
            assert b"HTTP" not in await client.rest()
            await until(lambda: server.refusals.strangers["connection-refused"] == 1)
            assert inner.asked == []

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_handshake_that_does_not_end_is_given_up(tmp_path: Path, sent: bytes) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path), head_seconds=0.2) as (server, _inner):
            await refused(server, sent)

    run(scenario)


def test_handshakes_that_do_not_end_keep_nobody_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path), connections=3) as (server, inner):
            waiting = [server.client() for _ in range(10)]
            clients = [await one.__aenter__() for one in waiting]
            await asked(server, inner, tls=client_context(tmp_path, CA))
            assert await clients[0].rest() == b""
            for one in waiting:
                await one.__aexit__(None, None, None)

    run(scenario)


@pytest.mark.parametrize("required", ["optional", "required"])
def test_certificate_of_a_client_goes_with_its_requests(tmp_path: Path, required: str) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path, required)) as (server, inner):
            client = client_of(CA)
            scope = await asked(server, inner, tls=client_context(tmp_path, CA, client))
            assert scope[CLIENT_CERTIFICATE] == sha256(client.der).digest()

    run(scenario)


def test_certificate_of_a_proxy_is_not_its_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path, "required"), trust=LOCAL) as (server, inner):
            context = client_context(tmp_path, CA, client_of(CA))
            assert (await asked(server, inner, tls=context))[CLIENT_CERTIFICATE] is None
            scope = await asked(server, inner, GET % CLAIMS, tls=context)
            assert scope[CLIENT_CERTIFICATE] == sha256(b"\x30\x03\x02\x01\x00").digest()

    run(scenario)


def test_client_without_a_certificate_is_let_in_only_where_it_is_optional(tmp_path: Path) -> None:
    async def scenario() -> None:
        context = client_context(tmp_path, CA)
        async with gateway(tls=folder(tmp_path, "optional")) as (server, inner):
            assert (await asked(server, inner, tls=context))[CLIENT_CERTIFICATE] is None
        async with gateway(tls=folder(tmp_path, "required")) as (server, inner):
            await not_through(server, inner, context)

    run(scenario)


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize(
    "client", [client_of(OTHER), client_of(CA, ends=1_700_000_000, begins=1_600_000_000), SERVER],
    ids=["another authority's", "expired", "a server's"],
)  # fmt: skip
def test_certificate_that_is_not_good_is_not_taken_for_none(tmp_path: Path, mode: str, client: Any) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path, mode)) as (server, inner):
            await not_through(server, inner, client_context(tmp_path, CA, client))

    run(scenario)


async def not_through(server: Served, inner: App, context: ssl.SSLContext) -> None:
    """In TLS 1.3 a client learns of it when it reads."""
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await asked(server, inner, tls=context)
    await until(lambda: server.refusals.strangers["connection-refused"] == 1)
    assert inner.asked == []


def test_no_session_is_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        context = client_context(tmp_path, CA)
        async with gateway(tls=folder(tmp_path)) as (server, _inner), server.client(tls=context) as client:
            client.send(PLAIN)
            await client.answer()
            session = client.writer.get_extra_info("ssl_object").session
            assert session is None or not session.has_ticket

    run(scenario)


def test_proxy_header_goes_before_tls(tmp_path: Path) -> None:
    async def scenario() -> None:
        terms = {"tls": folder(tmp_path, "required"), "trust": LOCAL, "proxy_protocol": True}
        async with gateway(**terms) as (server, inner):
            client = client_of(CA)
            context = client_context(tmp_path, CA, client)
            scope = await asked(server, inner, GET % CLAIMS, before=proxied("203.0.113.44"), tls=context)
            assert scope["client"] == ("203.0.113.44", 4711)
            assert (scope["scheme"], scope[CLIENT_CERTIFICATE]) == ("https", sha256(client.der).digest())
            await refused(server, PLAIN)

    run(scenario)


def test_cut_sender_over_tls_is_told_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tls=folder(tmp_path)) as (server, inner):
            async with server.client(tls=client_context(tmp_path, CA)) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: test\r\nA: " + b"a" * 30_000)
                assert (await client.rest()).startswith(b"HTTP/1.1 431 ")
            async with server.client(tls=client_context(tmp_path, CA)) as client:
                client.send(b"GET / HTTP/1.1\r\nHost : test\r\n\r\n")
                assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
            assert inner.asked == []

    run(scenario)


def test_reader_over_tls_that_does_not_read_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await App()(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            watcher = asyncio.create_task(until_gone(receive, ended))
            while not ended.is_set():
                await send({"type": "http.response.body", "body": bytes(20_000), "more_body": True})
                await asyncio.sleep(0)
            await watcher

        terms, context = {"tls": folder(tmp_path)}, client_context(tmp_path, CA)
        gate = gate_around(World(), inner=endless)
        async with (
            served(gate, terms=terms, stalled_seconds=0.3) as server,
            server.client(small_buffer=True, tls=context) as client,
        ):
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(PLAIN)
            await ended.wait()

    run(scenario)


async def until_gone(receive: Any, ended: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    ended.set()


# --- its end --------------------------------------------------------------------------------------------------------


def test_listener_that_goes_deaf_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """It would look alive, and nobody could connect."""

    async def scenario() -> None:
        listening = listen_tcp("127.0.0.1", 0)
        limits = WireLimits(request_seconds=5.0)
        server = http_server(App(), limits, Tally(), [Listener(listening, trust=LOCAL, proxy_protocol=True)])
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        listening.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(task, 10)
        assert server.went_deaf

    run(scenario)
    assert "a listener went deaf" in caplog.text


def test_server_that_is_stopped_has_not_gone_deaf() -> None:
    async def scenario() -> None:
        listener = Listener(listen_tcp("127.0.0.1", 0), trust=LOCAL, proxy_protocol=True)
        server = http_server(App(), WireLimits(request_seconds=5.0), Tally(), [listener])
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        server.should_exit = True
        await asyncio.wait_for(task, 10)
        assert not server.went_deaf

    run(scenario)


# --- its files ------------------------------------------------------------------------------------------------------


def test_new_certificate_is_for_new_connections_and_ends_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = folder(tmp_path)
        async with gateway(tls=one) as (server, inner), server.client(tls=client_context(tmp_path, CA)) as client:
            client.send(PLAIN)
            await client.answer()
            write_folder(one.folder, server_of(OTHER))
            one.look()
            await asked(server, inner, tls=client_context(tmp_path, OTHER))
            client.send(PLAIN)
            assert (await client.answer()).endswith(b"ok")
            with pytest.raises(ssl.SSLCertVerificationError):
                await asked(server, inner, tls=client_context(tmp_path, CA))

    run(scenario)


def test_key_that_is_closed_to_others_afterwards_is_used_then(tmp_path: Path) -> None:
    one = folder(tmp_path)
    before = one.context
    write_folder(one.folder, server_of(OTHER))
    (one.folder / "key.pem").chmod(0o644)
    one.look()
    assert one.context is before
    (one.folder / "key.pem").chmod(0o400)
    one.look()
    assert one.context is not before


def test_files_that_do_not_belong_together_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = folder(tmp_path)
    before = one.context
    (one.folder / "certificate.pem").write_bytes(server_of(OTHER).pem)
    for _ in range(3):
        one.look()
    assert one.context is before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (one.folder / "key.pem").unlink()
    one.look()
    assert one.context is before
    write_folder(one.folder, server_of(OTHER))
    one.look()
    assert one.context is not before


def spoil_key_mode(path: Path) -> None:
    (path / "key.pem").chmod(0o644)


def spoil_by_link(path: Path) -> None:
    (path / "key.pem").rename(path.parent / "key.pem")
    (path / "key.pem").symlink_to(path.parent / "key.pem")


def spoil_clients(path: Path) -> None:
    (path / "clients.pem").write_text("nothing\n")


def spoil_clients_leaf(path: Path) -> None:
    (path / "clients.pem").write_bytes(client_of(CA).pem)


def spoil_certificate(path: Path) -> None:
    (path / "certificate.pem").write_bytes(OTHER.pem)


def spoil_by_size(path: Path) -> None:
    with (path / "certificate.pem").open("ab") as file:
        file.truncate(2**21)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: (path / "more").mkdir(), spoil_key_mode, spoil_by_link,
     spoil_clients, spoil_clients_leaf, spoil_certificate, spoil_by_size,
     lambda path: (path / "clients.pem").unlink(), lambda path: (path / "key.pem").write_text("")],
)  # fmt: skip
def test_folder_that_cannot_be_used_refuses_to_start(tmp_path: Path, spoil: Any) -> None:
    path = write_folder(tmp_path / "tls", SERVER, CA)
    TlsFolder(path, "required")
    spoil(path)
    with pytest.raises(Misconfigured):
        TlsFolder(path, "required")
