"""What reads strangers' bytes, as functions of bytes: each returns, or raises for a defect of ours.

A refusal by the rules is no defect. Any other exception is, and so is what two readers of the same bytes see
differently, an answer of 500 or more, and work that does not end.
"""

import asyncio
import base64
import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
import uvicorn

from appliance.core.admit import AdmitLimits, admit
from appliance.core.decide import policy_input
from appliance.core.refusals import Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.values import Asked
from appliance.gateway import wire
from appliance.gateway.runner_link import _submission
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionSurface
from appliance.identity.keys import parse_keys
from appliance.identity.tokens import JwtVerifier
from appliance.ipc import frames, messages
from appliance.ipc.validation import decode_answer
from tests.fakes.models import STARTED, delta
from tests.fakes.world import World
from tests.support.made_values import ALICE, PEER, model
from tests.support.wire_server import gate_around
from tests.vectors.jwt import generate

Target = Callable[[bytes], None]


class Defect(Exception):
    """Something that must not happen has happened."""


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

_VERIFIER: Final = JwtVerifier(
    parse_keys(json.dumps({"keys": [generate.public_jwk(name, key) for name, key in generate.KEYS.items()]}).encode()),
    issuer=generate.ISSUER,
    audience=generate.AUDIENCE,
    max_lifetime_seconds=generate.MAX_LIFETIME,
)


def tokens(data: bytes) -> None:
    """As they come, and as header and claims around a line break, signed by nobody and by the right key."""
    _verify(data.decode("latin-1"))
    header, _, claims = data.partition(b"\n")
    unsigned = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, claims, b"\0" * 64))
    if _verify(unsigned):
        raise Defect("a token that nobody signed was believed")
    _verify(generate.token(claims=claims))


def _verify(token: str) -> bool:
    try:
        claims = _VERIFIER.verify(token, now_seconds=generate.NOW)
    except Refused:
        return False
    if claims.issuer != generate.ISSUER or claims.audience != generate.AUDIENCE:
        raise Defect("a token of another issuer or for another audience was believed")
    return True


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
            message = decoder.decode(data)
        except frames.FrameError:
            continue
        if decoder.decode(frames.encode(message)) != message:
            raise Defect(f"{name}: a message changes when it is passed on")
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
        self.protocol: Any = wire.protocol(wire.WireLimits(request_seconds=5.0), self.gate.refusals.strangers)

    async def connection(self, data: bytes) -> None:
        world, state, transport = self.world, uvicorn.server.ServerState(), _Transport()
        self.connections += 1
        world.budget.left = world.whole
        connection = self.protocol(
            config=self.config, server_state=state, app_state={}, _loop=asyncio.get_running_loop()
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


_PAUSE: Final = b"\n\n\n"
"""In the bytes of a connection: what follows comes later."""
_CONNECTIONS: Final = 500
_stages: list[_Stage] = []


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


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
    "frames": frames_of_peers,
    "heads": heads,
}
