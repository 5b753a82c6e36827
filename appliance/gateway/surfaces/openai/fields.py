"""What the requests of OpenAI's surface share: their fields, and what becomes of them.

Every field is honoured, refused, or ignored on purpose; an unknown one is refused. Beside OpenAI's own there are the
sampling fields by which llama-server and vLLM extend them, under their names.

Trusts: nothing in the body.
Promises: every value that leaves here is in the range that ``core.values`` declares for it, since the runner ends
    itself over one that is not.
Not here: the fields of one route (``chat``, ``completions``).
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from appliance.core.refusals import Reason, Refused
from appliance.core.values import MAX_TOKEN_ID, GbnfGrammar, Sampling, Value
from appliance.gateway.surfaces.decoding import ModelName

MAX_JSON_CHARACTERS: Final = 65_536

MaxTokens = Annotated[int, Meta(ge=1, le=1_048_576)]
UserName = Annotated[str, Meta(max_length=256)]
_Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
_RepeatPenalty = Annotated[float, Meta(ge=0.1, le=2.0)]
_Stop = Annotated[str, Meta(min_length=1, max_length=256)]
_BiasKey = Annotated[str, Meta(pattern=r"\A(0|[1-9][0-9]{0,6})\Z")]
_Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]


class StreamOptions(Value, frozen=True, kw_only=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # ignored


class CommonFields(Value, frozen=True, kw_only=True):
    """The fields of every route that generates. All but the last are honoured."""

    model: ModelName
    max_tokens: MaxTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: _Stop | Annotated[tuple[_Stop, ...], Meta(max_length=8)] | None = None
    logit_bias: Annotated[dict[_BiasKey, _Bias], Meta(max_length=300)] | None = None
    # of llama-server and vLLM
    top_k: Annotated[int, Meta(ge=-1, le=1000)] | None = None  # -1 is vLLM's "all", ours is 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    typical_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    repeat_penalty: _RepeatPenalty | None = None
    repetition_penalty: _RepeatPenalty | None = None  # vLLM's name for the same
    repeat_last_n: Annotated[int, Meta(ge=0, le=1024)] | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Meta(gt=0.0, le=20.0)] | None = None
    mirostat_eta: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    ignore_eos: bool | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=65_536)] | None = None
    # ignored: Paddock knows its callers by their tokens
    user: UserName | None = None


def invalid(detail: str, param: str | None) -> Refused:
    return Refused(Reason.FIELD_INVALID, detail, param=param)


_SAME_NAME: Final = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "ignore_eos",
)


def sampling(wire: CommonFields, *, logprobs: int | None) -> Sampling:
    """What the fields say, and defaults for those that say nothing. Raises ``Refused(FIELD_INVALID)``."""
    given: dict[str, Any] = {name: value for name in _SAME_NAME if (value := getattr(wire, name)) is not None}
    if wire.top_k is not None:
        given["top_k"] = max(0, wire.top_k)
    penalties = {wire.repeat_penalty, wire.repetition_penalty} - {None}
    if len(penalties) > 1:
        raise invalid("two different penalties", "repetition_penalty")
    if penalties:
        (given["repeat_penalty"],) = penalties
    if wire.stop is not None:
        given["stop"] = (wire.stop,) if isinstance(wire.stop, str) else wire.stop
    if wire.logit_bias:
        given["logit_bias"] = tuple(_biases(wire.logit_bias))
    return Sampling(**given, logprobs=logprobs)


def _biases(asked: dict[str, float]) -> Iterable[tuple[int, float]]:
    for key, bias in asked.items():
        if (token := int(key)) > MAX_TOKEN_ID:
            raise invalid("a token id beyond any vocabulary", "logit_bias")
        yield token, bias


def grammar(wire: CommonFields) -> GbnfGrammar | None:
    return None if wire.grammar is None else GbnfGrammar(text=wire.grammar)


def includes_usage(wire: CommonFields) -> bool:
    return wire.stream_options is not None and wire.stream_options.include_usage


def json_text(document: dict[str, Any], param: str) -> str:
    """A JSON object as compact text, its keys in the caller's order. Raises ``Refused(FIELD_INVALID)``."""
    text = msgspec.json.encode(document).decode()
    if len(text) > MAX_JSON_CHARACTERS:
        raise invalid(f"a schema of {len(text)} characters", param)
    return text
