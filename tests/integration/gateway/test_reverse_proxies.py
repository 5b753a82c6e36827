"""The sample configurations of docs/reverse-proxy, with Debian's real nginx and HAProxy: nothing gets lost on the way,
and nothing is believed that a client says of itself. The gateway is this process, so that a test sees what comes when.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from appliance.core.forwarded import Trust, network
from appliance.gateway.asgi import CLIENT_CERTIFICATE
from appliance.gateway.listeners import listen_tcp, listen_unix
from appliance.gateway.tls import TlsFolder
from tests.fakes.models import STARTED, delta, end
from tests.fakes.world import World
from tests.support.appliance import free_port
from tests.support.proxies import haproxy, nginx, sample
from tests.support.scenario import run, until
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder
from tests.support.wire_server import Client, gate_around, served

CA, OTHER = authority(), authority("another authority")
SERVER = server_of(CA)
SERVICE = client_of(CA)
CLIENT_ADDRESS = "127.0.0.2"
"""Another than that of the proxy."""

BODY = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
LIES = (
    "X-Forwarded-For: 203.0.113.66\r\nX-Real-IP: 203.0.113.66\r\nForwarded: for=203.0.113.66\r\n"
    "X-Forwarded-Proto: http\r\nX-User: root\r\nClient-Cert: :MAMCAQA=:\r\n"
)


@dataclass
class Front:
    """A proxy, and how to stop it and start it again."""

    port: int
    folder: Path
    start: Callable[[], Any]

    @asynccontextmanager
    async def client(self, *, certificate: Any = None, newest: Any = ssl.TLSVersion.TLSv1_3) -> AsyncIterator[Client]:
        context = client_context(self.folder, CA, certificate)
        context.maximum_version = newest
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="llm.example.com", local_addr=(CLIENT_ADDRESS, 0)
        )
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


def of_nginx(folder: Path, port: int) -> Any:
    site = sample(
        "nginx.conf",
        **{
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "    listen [::]:443 ssl;\n": "",
            "/run/paddock-http/http.sock": str(folder / "http.sock"),
            "/etc/ssl/paddock": str(folder / "tls"),
        },
    )
    return nginx(folder / "nginx", site, port)


def of_haproxy(folder: Path, port: int) -> Any:
    (folder / "tls" / "paddock.pem").write_bytes(
        b"".join((folder / "tls" / name).read_bytes() for name in ("certificate.pem", "key.pem"))
    )
    changes = {"bind :443": f"bind 127.0.0.1:{port}", "/etc/haproxy": str(folder / "tls")}
    configuration = sample("haproxy.cfg", **changes, **{"/run/paddock-http/http.sock": str(folder / "http.sock")})
    return haproxy(folder / "haproxy", configuration, port)


def of_haproxy_passthrough(folder: Path, port: int, paddock: int) -> Any:
    changes = {"bind :443": f"bind 127.0.0.1:{port}", "127.0.0.1:11443": f"127.0.0.1:{paddock}"}
    return haproxy(folder / "haproxy", sample("haproxy-passthrough.cfg", **changes), port)


OVER_UNIX = {"nginx": of_nginx, "haproxy": of_haproxy}
FRONTS = (*OVER_UNIX, "haproxy-passthrough")


@asynccontextmanager
async def behind(
    name: str, folder: Path, world: World, *, started: bool = True, **details: Any
) -> AsyncIterator[Front]:
    """The gateway behind one of the proxies."""
    tls, port = write_folder(folder / "tls", SERVER, CA), free_port()
    if name == "haproxy-passthrough":
        at = listen_tcp("127.0.0.1", 0)
        paddock = at.getsockname()[1]
        terms = {"proxy_protocol": True, "tls": TlsFolder(tls, "optional")}
        terms["trust"] = Trust(networks=(network("127.0.0.1"),))
        front = Front(port, folder, lambda: of_haproxy_passthrough(folder, port, paddock))
    else:
        at = listen_unix(folder / "http.sock", mode=0o660)
        terms = {"trust": Trust(unix=True)}
        front = Front(port, folder, lambda: OVER_UNIX[name](folder, port))
    gate = gate_around(world, hosts={"llm.example.com"}, **details)
    async with served(gate, at=at, terms=terms):
        with front.start() if started else nullcontext():
            yield front


def post(body: dict[str, Any], lies: str = "") -> bytes:
    data = json.dumps(body)
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\nAuthorization: Bearer good\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n{lies}\r\n{data}"
    ).encode()


GET = b"GET /healthz HTTP/1.1\r\nHost: llm.example.com\r\n%s\r\n"


async def received(client: Client, text: bytes) -> bytes:
    """What has come when ``text`` has."""
    data = b""
    while text not in data:
        piece = await client.some(1)
        assert piece, data
        data += piece
    return data


class Scopes:
    """Behind a real gate: what reaches the application."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        self.seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


# --- streaming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRONTS)
def test_no_token_waits_for_the_next_one(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [delta("first")], [delta("second")], [end()]]

        def hold_the_second(_name: str) -> None:
            if world.steps.seen.count("events") == 3:
                world.steps.hold = "events"

        world.steps.watch = hold_the_second
        async with behind(name, tmp_path, world) as front, front.client() as client:
            client.send(post(BODY))
            so_far = await received(client, b"first")
            await world.steps.held.wait()
            assert world.audit.closed == []
            assert b"second" not in so_far
            assert b"content-encoding" not in so_far.lower()
            world.steps.go.set()
            await received(client, b"data: [DONE]")
            await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "completed"

    run(scenario)


@pytest.mark.parametrize("name", FRONTS)
def test_client_that_leaves_is_noticed_through_the_proxy(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [delta("first")], None]
        async with behind(name, tmp_path, world) as front:
            async with front.client() as client:
                client.send(post(BODY))
                await received(client, b"first")
            await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "cancelled"

    run(scenario)


@pytest.mark.parametrize("name", FRONTS)
def test_proxy_that_is_restarted_in_the_middle_of_an_answer_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [delta("first")], None]
        async with behind(name, tmp_path, world, started=False, slots=1) as front:
            with front.start() as process:
                async with front.client() as client:
                    client.send(post(BODY))
                    await received(client, b"first")
                    process.terminate()
                    with suppress(OSError):
                        assert b"[DONE]" not in await client.rest()
                await until(lambda: world.audit.closed != [])
            assert world.audit.closed[0].outcome == "cancelled"
            assert world.budget.held == {}
            world.models.script = [[STARTED], [delta("again")], [end()]]
            with front.start():
                async with front.client() as client:
                    client.send(post(BODY))
                    await received(client, b"again")

    run(scenario)


# --- who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lies", ["", LIES], ids=["honest", "lying"])
@pytest.mark.parametrize("name", FRONTS)
def test_client_is_who_connects_to_the_proxy_whatever_it_says(name: str, lies: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        world, scopes = World(), Scopes()
        async with behind(name, tmp_path, world) as front, front.client() as client:
            client.send(post(BODY, lies))
            await received(client, b"data: [DONE]")
            assert world.audit.opened[0].peer.address == CLIENT_ADDRESS
        async with behind(name, tmp_path, world, inner=scopes) as front, front.client() as client:
            client.send(GET % lies.encode())
            await client.answer()
            [scope] = scopes.seen
            assert (scope["client"][0], scope["scheme"]) == (CLIENT_ADDRESS, "https")
            assert scope[CLIENT_CERTIFICATE] is None
            assert not {b"x-user", b"x-real-ip", b"forwarded", b"client-cert"} & dict(scope["headers"]).keys()

    run(scenario)


@pytest.mark.parametrize("lies", ["", LIES], ids=["honest", "lying"])
@pytest.mark.parametrize("name", FRONTS)
def test_certificate_of_the_client_arrives(name: str, lies: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        scopes = Scopes()
        async with behind(name, tmp_path, World(), inner=scopes) as front:
            async with front.client(certificate=SERVICE) as client:
                client.send(GET % lies.encode())
                assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
            assert scopes.seen[0][CLIENT_CERTIFICATE] == sha256(SERVICE.der).digest()
            with suppress(OSError):
                async with front.client(certificate=client_of(OTHER)) as client:
                    client.send(GET % b"")
                    assert b"HTTP/1.1 200 " not in await client.rest()
            assert len(scopes.seen) == 1

    run(scenario)


@pytest.mark.parametrize("name", FRONTS)
def test_no_older_tls_is_spoken(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with behind(name, tmp_path, World()) as front:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with front.client(newest=ssl.TLSVersion.TLSv1_2):
                    pass

    run(scenario)


# --- what does not get through --------------------------------------------------------------------------------------


TOO_MUCH = {
    "declared": b"Content-Length: 10485760\r\n\r\n",
    "counted": b"Transfer-Encoding: chunked\r\n\r\na00000\r\n" + bytes(300_000),
}


@pytest.mark.parametrize("framing", TOO_MUCH.values(), ids=TOO_MUCH)
@pytest.mark.parametrize("name", FRONTS)
def test_body_of_ten_megabytes_is_refused_before_it_has_come(name: str, framing: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        async with behind(name, tmp_path, world) as front, front.client() as client:
            client.send(post(BODY).partition(b"Content-Length")[0] + framing)
            assert (await received(client, b"\r\n")).startswith(b"HTTP/1.1 413 ")
            assert world.audit.opened == []

    run(scenario)


@pytest.mark.parametrize("name", FRONTS)
def test_what_belongs_to_one_hop_goes_no_further(name: str, tmp_path: Path) -> None:
    """A token that is named as a hop's own is no reason to forget it, nor to answer without one."""

    async def scenario() -> None:
        world = World()
        async with behind(name, tmp_path, world) as front:
            async with front.client() as client:
                client.send(post(BODY, "Connection: authorization\r\nTE: trailers\r\nKeep-Alive: timeout=999\r\n"))
                answer = await received(client, b"\r\n\r\n")
                names = {line.partition(b":")[0].lower() for line in answer.split(b"\r\n")[1:]}
                assert not {b"keep-alive", b"upgrade", b"trailer", b"proxy-authenticate", b"te"} & names
                assert {b"cache-control", b"vary"} <= names
            assert [record.actor.subject for record in world.audit.opened] in ([], ["alice"])

    run(scenario)


@pytest.mark.parametrize("name", FRONTS)
def test_foreign_host_and_another_spelling_of_a_path_are_refused_behind_a_proxy_too(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        scopes = Scopes()
        async with behind(name, tmp_path, World(), inner=scopes) as front:
            for path in (b"//healthz", b"/%68ealthz", b"/v1/../healthz"):
                async with front.client() as client:
                    client.send((GET % b"").replace(b"/healthz", path))
                    assert (await client.answer()).startswith(b"HTTP/1.1 400 ")
            async with front.client() as client:
                client.send((GET % b"").replace(b"llm.example.com", b"evil.example"))
                assert (await client.answer()).startswith(b"HTTP/1.1 421 ")
            assert scopes.seen == []

    run(scenario)
