"""What reads strangers' bytes, as functions of bytes: each returns, or raises for a defect of ours.

A refusal by the rules is no defect. Any other exception is, and so is what two readers of the same bytes see
differently, an answer of 500 or more, and work that does not end.
"""

import asyncio
import functools
import ipaddress
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import uvicorn

from appliance.core import forwarded, proxy_protocol
from appliance.core.admit import AdmitLimits, admit
from appliance.core.decide import policy_input
from appliance.core.oauth import PATHS, TokenRequest
from appliance.core.refusals import Fault, Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.token_claims import IssuerRules
from appliance.core.values import UNIX_PEER, Asked, Peer, Presented
from appliance.gateway import wire
from appliance.gateway.listeners import Arrival
from appliance.gateway.runner_link import _submission
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.oauth import read_form
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionSurface
from appliance.identity import introspection
from appliance.identity.compact import base64url
from appliance.identity.dpop import ALGORITHMS, ProofChecker, thumbprint
from appliance.identity.https import Unreachable
from appliance.identity.issuer import forms
from appliance.identity.keys import from_wire, parse_foreign_keys, parse_keys, to_wire
from appliance.identity.tokens import JwtIssuer, OwnKeys, TokenVerifier
from appliance.ipc import frames, messages
from appliance.ipc.validation import decode_answer
from tests.fakes.models import STARTED, delta
from tests.fakes.world import World
from tests.support import oauth_desk
from tests.support.made_values import ALICE, PEER, model
from tests.support.wire_server import gate_around
from tests.vectors.jwt import generate

Target = Callable[[bytes], None]


class Defect(Exception):
    """Something that must not happen has happened."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


# --- JSON -----------------------------------------------------------------------------------------------------------


def strict_json(data: bytes) -> None:
    """What is accepted, Python's own parser and msgspec read in the same way."""
    try:
        value = check(data)
    except JsonInvalid:
        return
    if not _same(value, json.loads(data)) or not _same(value, msgspec.json.decode(data)):
        raise Defect("two parsers disagree")


def _same(one: Any, other: Any) -> bool:
    """Equal, and of equal types: 1, 1.0 and true are three things."""
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        case list():
            return len(one) == len(other) and all(map(_same, one, other))
        case float():
            return bool(one == other) and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


# --- bodies ---------------------------------------------------------------------------------------------------------

_CHAT, _COMPLETION = ChatSurface(), CompletionSurface()
_COMPUTATIONS: Final = (
    vectors.EmbeddingsSurface(),
    vectors.RerankSurface(),
    vocabulary.TokenizeSurface(),
    vocabulary.DetokenizeSurface(),
)
_LIMITS: Final = AdmitLimits(context_tokens=4096, default_max_tokens=64)
_CATALOGUE: Final = (model(context_tokens=8192), model("vectors", pools=True))
_PRINCIPAL: Final = msgspec.structs.replace(ALICE, models=("*",))
_TO_RUNNER: Final = frames.FrameDecoder[messages.ToRunner](messages.ToRunner)


def bodies(data: bytes) -> None:
    """What a surface takes in, admission and policy can judge, and the runner does not end itself over."""
    for asked in _asked(data):
        for name in ("demo", "vectors"):
            _submit(msgspec.structs.replace(asked, model=name))


def _asked(data: bytes) -> Iterator[Asked]:
    for surface in (_CHAT, _COMPLETION):
        with suppress(Refused):
            yield surface.decode(data)
    for other in _COMPUTATIONS:
        with suppress(Refused):
            yield other.asked(other.decode(data))  # type: ignore[attr-defined]


def _submit(asked: Asked) -> None:
    try:
        admission = admit(asked, _PRINCIPAL, _CATALOGUE, _LIMITS)
    except Refused:
        return
    msgspec.json.encode(
        policy_input(admission, principal=_PRINCIPAL, peer=PEER, method="POST", route="/", now_seconds=generate.NOW)
    )
    sent = _submission("r-1", admission, _PRINCIPAL.key, 1000)
    if _TO_RUNNER.decode(frames.encode(sent)) != sent:
        raise Defect("the runner reads another request")


# --- tokens ---------------------------------------------------------------------------------------------------------

_RULES: Final = IssuerRules(
    issuer=generate.ISSUER,
    audiences=frozenset({generate.AUDIENCE}),
    max_lifetime_seconds=generate.MAX_LIFETIME,
)
_JWKS: Final = {"keys": [generate.public_jwk(name, key) for name, key in generate.KEYS.items()]}
_KEYS: Final = parse_keys(json.dumps(_JWKS).encode())
_VERIFIER: Final = TokenVerifier([JwtIssuer(_RULES, OwnKeys(_KEYS))])


def tokens(data: bytes) -> None:
    """As they come, and as header and claims around a line break, signed by nobody and by the right key."""
    _verify(data.decode("latin-1"))
    header, _, claims = data.partition(b"\n")
    if _verify(_unsigned(header, claims)):
        raise Defect("a token that nobody signed was believed")
    _verify(generate.token(claims=claims))


def _verify(token: str) -> bool:
    presented = Presented(unverified_token=token, method="GET", path="/v1/models")
    try:
        claims = _loop().run_until_complete(_VERIFIER.verify(presented, now_seconds=generate.NOW))
    except Refused:
        return False
    if claims.issuer != generate.ISSUER or claims.audience != generate.AUDIENCE:
        raise Defect("a token of another issuer or for another audience was believed")
    return True


def _unsigned(header: bytes, claims: bytes) -> str:
    return ".".join(map(base64url, (header, claims, b"\0" * 64)))


_PUBLIC_URL: Final = "https://llm.example"
_BOUND_TO: Final = thumbprint(_KEYS["first"])


def proofs(data: bytes) -> None:
    """DPoP proofs, made as ``tokens`` are: none passes that is not signed, and none passes twice."""
    checker = ProofChecker(_PUBLIC_URL, since_seconds=0)
    header, _, claims = data.partition(b"\n")
    _proves(checker, data.decode("latin-1"))
    if _proves(checker, _unsigned(header, claims)):
        raise Defect("a proof that nobody signed was believed")
    proof = generate.token(header=header, claims=claims)
    if _proves(checker, proof) and _proves(checker, proof):
        raise Defect("a proof was believed twice")


def _proves(checker: ProofChecker, proof: str) -> bool:
    asked = {"token": generate.GOOD, "jkt": _BOUND_TO, "method": "GET", "path": "/v1/models"}
    try:
        checker.check(proof, **asked, now_seconds=generate.NOW)
    except Refused:
        return False
    return True


# --- the authorization server ---------------------------------------------------------------------------------------

_SIGNER: Final = msgspec.structs.replace(
    oauth_desk.SIGNER, keys=(oauth_desk.registered_key(generate.KEYS["first"], "ES256"),)
)
_ORDERS: Final = 500
_desks: list[oauth_desk.Desk] = []


def oauth(data: bytes) -> None:
    """A header and a form around a line break, as they come; the same bytes as header and claims of an assertion,
    signed by nobody and by the right key. Nobody gets anything who has not proved that he may."""
    header, _, body = data.partition(b"\n")
    text = header.decode("latin-1")
    pairs = parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    knows = ("client_secret", oauth_desk.SECRET) in pairs or ("client_secret", oauth_desk.NEXT_SECRET) in pairs
    with suppress(Refused):
        knows = knows or forms.basic(text)[1] == oauth_desk.SECRET
    _authorise(tuple(pairs), text or None, may=knows)
    _authorise(_by_assertion(_unsigned(header, body)), None, may=False)
    signed = _by_assertion(generate.token(header=header, claims=body))
    _authorise(signed, None, may=True)


def _by_assertion(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(oauth_desk.by_assertion(text, token="x").items())


def _authorise(pairs: tuple[tuple[str, str], ...], authorization: str | None, *, may: bool) -> None:
    if not _desks or len(_desks[0].registry.orders) > _ORDERS:
        _desks[:] = [oauth_desk.Desk(oauth_desk.BASIC, oauth_desk.POST, oauth_desk.CHAT, _SIGNER)]
    desk = _desks[0]
    for endpoint in PATHS.values():
        asked = TokenRequest(endpoint=endpoint, form=pairs, authorization=authorization)
        answer = _loop().run_until_complete(desk.authority.answer(asked))
        if answer.status >= 500 or not isinstance(json.loads(answer.body), dict):
            raise Defect(f"an answer of {answer.status}: {answer.body!r}")
        if answer.status == 200 and not may:
            raise Defect("a client that did not prove itself was answered")


# --- issuers --------------------------------------------------------------------------------------------------------

_ALGORITHMS: Final = frozenset(ALGORITHMS)


def issuers(data: bytes) -> None:
    """What an issuer says of its keys and of an opaque token: nothing of it goes beyond what it may say."""
    with suppress(Unreachable):
        claims = introspection.judge(data, _RULES)
        if claims is not None and (claims.issuer, claims.audience) != (generate.ISSUER, generate.AUDIENCE):
            raise Defect("an answer about a token of another issuer or for another audience was believed")
    with suppress(Fault):
        parse_keys(data)
    try:
        keys = parse_foreign_keys(data, _ALGORITHMS)
    except Fault:
        return
    if from_wire(to_wire(keys), _ALGORITHMS).keys() != keys.keys():
        raise Defect("the gateway has other keys than the liaison")


# --- forms ----------------------------------------------------------------------------------------------------------


def posted_forms(data: bytes) -> None:
    """What is accepted of a token request, Python's own parser reads in the same way."""
    try:
        pairs = read_form(data)
    except Refused:
        return
    said = parse_qsl(data.decode("ascii"), keep_blank_values=True, strict_parsing=bool(data), errors="strict")
    if list(pairs) != said:
        raise Defect("two parsers disagree")


# --- proxies --------------------------------------------------------------------------------------------------------

_TRUST: Final = forwarded.Trust(networks=(forwarded.network("192.0.2.0/24"),))


def proxies(data: bytes) -> None:
    """What stands in front of a connection, and what a trusted proxy's headers say: an address is one, or refused."""
    head, rest = data[: proxy_protocol.HEAD_BYTES], data[proxy_protocol.HEAD_BYTES :]
    with suppress(Refused):
        _check_peer(proxy_protocol.announced(head, rest[: proxy_protocol.length_after(head)]))
    pairs = (line.partition(b":") for line in data.split(b"\r\n"))
    own, told = forwarded.split([(name.lower(), value.strip(b" \t")) for name, _colon, value in pairs])
    if any(name in {forwarded.FOR, forwarded.PROTO, forwarded.CLIENT_CERT} for name, _value in own):
        raise Defect("a proxy's header is left")
    with suppress(Refused):
        said = forwarded.origin(PEER, told, _TRUST)
        _check_peer(said.peer)
        if said.scheme not in {None, "http", "https"} or len(said.client_certificate_sha256 or bytes(32)) != 32:
            raise Defect("a proxy says what none can mean")


def _check_peer(peer: Peer | None) -> None:
    if peer is not None and peer != UNIX_PEER:
        address = ipaddress.ip_address(peer.address)
        if address != proxy_protocol.unmapped(address) or not 0 <= peer.port <= 65535:
            raise Defect(f"{peer} is another spelling of an address, or none")


# --- frames ---------------------------------------------------------------------------------------------------------

_UNIONS: Final = {
    name: frames.FrameDecoder[Any](getattr(messages, name))
    for name in ("ToNotary", "FromNotary", "ToNotaryAdmin", "FromNotaryAdmin", "ToWarden", "FromWarden", "ToRunner")
}
_UNIONS["FromRunner"] = frames.FrameDecoder[Any](messages.FromRunner)


def frames_of_peers(data: bytes) -> None:
    """What a process reads from another, also from one that has been taken over."""
    for name, decoder in _UNIONS.items():
        try:
            heard = decoder.decode_all(data)
        except frames.FrameError:
            continue
        if decoder.decode_all(frames.join([frames.encode(message) for message in heard])) != heard:
            raise Defect(f"{name}: messages change when they are passed on")
    with suppress(ValueError):
        decode_answer(data)


# --- the wire, the guard and the gate -------------------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """Takes what is written; a connection from nowhere."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711), "sockname": ("192.0.2.1", 80)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class _Stage:
    """The application on its fakes, for some connections one after the other: making it takes 60 ms."""

    def __init__(self) -> None:
        self.connections = 0
        self.world = World()
        self.world.models.script = [[STARTED, delta("x")], None]
        self.gate = gate_around(self.world)
        self.config = uvicorn.Config(
            self.gate, loop="none", lifespan="off", ws="none", proxy_headers=False, log_config=None
        )
        self.config.load()
        self.crowd = wire.Crowd(wire.WireLimits(request_seconds=5.0), self.gate.refusals.strangers)

    async def connection(self, data: bytes) -> None:
        world, state, transport = self.world, uvicorn.server.ServerState(), _Transport()
        self.connections += 1
        world.budget.left = world.whole
        connection = wire.Wire(
            self.crowd,
            lambda _transport: _FROM_A_PROXY,
            config=self.config,
            server_state=state,
            app_state={},
            _loop=asyncio.get_running_loop(),
        )
        connection.connection_made(transport)
        for piece in data.split(_PAUSE):
            if not transport.closed:
                connection.data_received(piece)
                await asyncio.sleep(0)
        for _ in range(50):  # an answer needs a few dozen turns
            if state.tasks:
                await asyncio.sleep(0)
        connection.connection_lost(None)
        async with asyncio.timeout(5.0):
            while state.tasks:
                await asyncio.sleep(0)
        for answer in transport.written.split(b"HTTP/1.1 ")[1:]:
            if int(answer[:3]) >= 500:
                raise Defect(f"an answer of {answer[:60]!r}")
        if len(world.audit.closed) != len(world.audit.opened) or world.budget.held:
            raise Defect("an answer without its end, or tokens that nobody gives back")


_FROM_A_PROXY: Final = Arrival(peer=Peer(address="192.0.2.7", port=4711), trust=_TRUST, is_believed=True)
"""Whose headers are read, where a stranger's are only taken away."""
_PAUSE: Final = b"\n\n\n"
"""In the bytes of a connection: what follows comes later."""
_CONNECTIONS: Final = 500
_stages: list[_Stage] = []


def heads(data: bytes) -> None:
    """Bytes of one connection through the server, the guard and the whole application, on fakes that never fail:
    whatever they are, no answer is of ours being at fault, and what has begun has ended."""
    _loop().run_until_complete(_connection(data))


async def _connection(data: bytes) -> None:
    if not _stages or _stages[-1].connections == _CONNECTIONS:
        _stages[:] = [_Stage()]
    await _stages[-1].connection(data)


TARGETS: Final[dict[str, Target]] = {
    "json": strict_json,
    "bodies": bodies,
    "tokens": tokens,
    "proofs": proofs,
    "oauth": oauth,
    "issuers": issuers,
    "forms": posted_forms,
    "proxies": proxies,
    "frames": frames_of_peers,
    "heads": heads,
}
