"""What the validator's process says of one file: JSON, once, then the end of its pipe.

Trusts: nothing; the answer may come from a process that the file has taken over.
Promises: an answer that is decoded has the shape and the size that are written here.
Not here: whether the facts are true of the bytes: a compromised validator can lie about a header, not about a digest.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from appliance.core.codec import canonical_json, json_decoder
from appliance.core.values import GgufFacts, Value

MAX_ANSWER_BYTES: Final = 64 * 1024

Text = Annotated[str, Meta(max_length=2000)]


class Facts(Value, frozen=True, kw_only=True, tag="facts"):
    """The file has a sound header."""

    facts: GgufFacts


class Invalid(Value, frozen=True, kw_only=True, tag="invalid"):
    """The file has not. ``reason`` is a code of ``core.gguf.GgufInvalid``."""

    reason: Annotated[str, Meta(pattern=r"\Agguf(-[a-z0-9]+)+\Z", max_length=64)]
    detail: Text


class Incapable(Value, frozen=True, kw_only=True, tag="incapable"):
    """The file was not judged: a layer is missing or the descriptor cannot be read."""

    detail: Text


Answer = Facts | Invalid | Incapable

_DECODER: Final[msgspec.json.Decoder[Answer]] = json_decoder(Answer)


def encode_answer(answer: Answer) -> bytes:
    return canonical_json(answer)


def decode_answer(data: bytes) -> Answer:
    """Raises ``ValueError`` for anything that is not one answer of at most ``MAX_ANSWER_BYTES``."""
    if len(data) > MAX_ANSWER_BYTES:
        raise ValueError("the answer is too long")
    return _DECODER.decode(data)
