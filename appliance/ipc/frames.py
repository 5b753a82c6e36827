"""Messages to and from the bytes of one datagram.

Trusts: nothing.
Promises: ``FrameDecoder.decode`` returns a message of the expected union or raises ``FrameError``; nothing else.
Not here: sockets (``ipc.connection``).
"""

from typing import Any, Final, Generic, TypeVar

import msgspec

from appliance.core.codec import dec_hook, enc_hook
from appliance.core.text import printable

MAX_FRAME_BYTES: Final = 384 * 1024
"""Below the largest datagram that Linux's default ``wmem_max`` allows once ``SO_SNDBUF`` is raised to it."""

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


def encoded_bytes(part: msgspec.Struct) -> int:
    """What a part of a message takes in its frame."""
    return len(_ENCODER.encode(part))


class FrameDecoder(Generic[MessageT]):
    """Decodes one union of messages, for example ``FrameDecoder[ToNotary](ToNotary)``."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[MessageT] = msgspec.msgpack.Decoder(union, dec_hook=dec_hook)

    def decode(self, data: bytes | memoryview) -> MessageT:
        """Bytes -> message, which shares none of them. Raises ``FrameError`` for anything else, deep nesting
        included."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(f"not a valid frame: {printable(str(error)[:_MAX_QUOTE])}") from None
