"""A model's vocabulary: the tokens of a text, and the text of tokens, in llama-server's words and in vLLM's.

The names of control tokens in a text are text; nobody gets a control token by writing it.

Trusts: nothing in the body.
Promises: what ``decode`` returns has every value in range.
Not here: whether the caller may have the answer (``pipeline``); what a runner may say (``core.input_check``).
"""

from collections.abc import Sequence
from struct import unpack
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.core.refusals import Reason, Refused
from appliance.core.values import AnswerEvent, Asked, Detokenisation, Ids, TokenId, Tokenisation, Usage, Value, Written
from appliance.gateway.surfaces.decoding import BodyDecoder, ModelName, Text
from appliance.ipc.messages import MAX_DETOKENISE

_ENCODER = msgspec.json.Encoder()


class _Tokenize(Value, frozen=True, kw_only=True):
    model: ModelName
    content: Text | None = None  # llama-server's
    prompt: Text | None = None  # vLLM's
    add_special: bool = False


class TokenizeSurface:
    """``POST /tokenize``."""

    wire = _Tokenize

    _decoder = BodyDecoder(_Tokenize)

    def decode(self, body: bytes) -> _Tokenize:
        wire = self._decoder.decode(body)
        if (wire.content is None) == (wire.prompt is None):
            raise Refused(Reason.FIELD_INVALID, "either content or prompt", param="content")
        return wire

    def asked(self, wire: _Tokenize) -> Asked:
        text = wire.content if wire.content is not None else wire.prompt or ""
        return Tokenisation(model=wire.model, text=text, add_special=wire.add_special)

    def body(self, wire: _Tokenize, events: Sequence[AnswerEvent], usage: Usage) -> bytes:
        del wire, usage
        data = b"".join(event.data for event in events if isinstance(event, Ids))
        tokens = unpack(f"<{len(data) // 4}I", data)
        return _ENCODER.encode({"tokens": tokens, "count": len(tokens)})


class _Detokenize(Value, frozen=True, kw_only=True):
    model: ModelName
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_DETOKENISE)]


class DetokenizeSurface:
    """``POST /detokenize``."""

    wire = _Detokenize

    _decoder = BodyDecoder(_Detokenize, max_items=MAX_DETOKENISE)

    def decode(self, body: bytes) -> _Detokenize:
        return self._decoder.decode(body)

    def asked(self, wire: _Detokenize) -> Asked:
        return Detokenisation(model=wire.model, ids=wire.tokens)

    def body(self, wire: _Detokenize, events: Sequence[AnswerEvent], usage: Usage) -> bytes:
        del wire, usage
        text = "".join(event.text for event in events if isinstance(event, Written))
        return _ENCODER.encode({"content": text, "prompt": text})
