"""Messages to and from the bytes of one datagram.

A datagram is one message, or an array of several that came about together: each datagram costs both sides a system
call, and often a turn of their loops, which is more than its messages cost.

Trusts: nothing.
Promises: ``FrameDecoder`` returns messages of the expected union or raises ``FrameError``; nothing else.
Not here: sockets (``ipc.connection``).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Generic, TypeVar, Union

import msgspec
from msgspec import Meta

from appliance.core.codec import dec_hook, enc_hook
from appliance.core.text import printable

MAX_FRAME_BYTES: Final = 384 * 1024
"""Below the largest datagram that Linux's default ``wmem_max`` allows once ``SO_SNDBUF`` is raised to it."""

MAX_TOGETHER: Final = 64
"""Messages of one frame, so that a peer's frame is no more than a moment's work."""

TOGETHER_BYTES: Final = 3
"""What a frame of several messages takes besides them."""

_MAX_QUOTE: Final = 200
_ENCODER = msgspec.msgpack.Encoder(enc_hook=enc_hook)

MessageT = TypeVar("MessageT")


class FrameError(Exception):
    """The bytes are not one message of the expected kind."""


def encode(message: msgspec.Struct) -> bytes:
    """Message -> bytes. Raises ``FrameError`` when it would not fit one datagram."""
    data = _ENCODER.encode(message)
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(data)} bytes is larger than {MAX_FRAME_BYTES}")
    return data


def join(messages: Sequence[bytes]) -> bytes:
    """At most ``MAX_TOGETHER`` encoded messages -> one frame: a msgpack array ("array 16"), unless there is but one."""
    return messages[0] if len(messages) == 1 else b"\xdc" + len(messages).to_bytes(2, "big") + b"".join(messages)


def encoded_bytes(part: msgspec.Struct) -> int:
    """What a part of a message takes in its frame."""
    return len(_ENCODER.encode(part))


class FrameDecoder(Generic[MessageT]):
    """Decodes one union of messages, for example ``FrameDecoder[ToNotary](ToNotary)``."""

    def __init__(self, union: Any) -> None:
        several = Annotated[tuple[union, ...], Meta(min_length=1, max_length=MAX_TOGETHER)]
        self._one: msgspec.msgpack.Decoder[MessageT] = msgspec.msgpack.Decoder(union, dec_hook=dec_hook)
        self._any: msgspec.msgpack.Decoder[MessageT | tuple[MessageT, ...]] = msgspec.msgpack.Decoder(
            Union[union, several],  # noqa: UP007 - the union is a value here
            dec_hook=dec_hook,
        )

    def decode(self, data: bytes | memoryview) -> MessageT:
        """Bytes of a frame of one message -> it, which shares none of them. Raises ``FrameError`` for anything else,
        deep nesting included."""
        return _decoded(self._one, data)

    def decode_all(self, data: bytes | memoryview) -> tuple[MessageT, ...]:
        """Bytes of any frame -> its messages, in order. Raises ``FrameError`` as ``decode``."""
        found = _decoded(self._any, data)
        return found if isinstance(found, tuple) else (found,)


DecodedT = TypeVar("DecodedT")


def _decoded(decoder: "msgspec.msgpack.Decoder[DecodedT]", data: bytes | memoryview) -> DecodedT:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"not a valid frame: {printable(str(error)[:_MAX_QUOTE])}") from None
