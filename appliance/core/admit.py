"""Request + catalogue + limits -> Admission: does it fit the model, and what may it cost at worst?

A token never encodes less than one byte, so a prompt's UTF-8 length bounds its token count; the template adds its own
text, for which an allowance is paid, and may write the JSON of tools and calls with more space than it came in. The
runner is told the bound and refuses a prompt that exceeds it, so the reservation holds even for a template that adds
more than the allowance.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Admission,
    Asked,
    Conversation,
    Detokenisation,
    Generation,
    Message,
    Obligations,
    Principal,
    Prompt,
    TextPrompt,
    Tokenisation,
    TokenPrompt,
    Tool,
    Value,
    Vectors,
    VerifiedModel,
)

TEMPLATE_TOKENS: Final = 256
TEMPLATE_TOKENS_PER_MESSAGE: Final = 32
TEMPLATE_TOKENS_FOR_TOOLS: Final = 512
TEMPLATE_TOKENS_PER_TOOL: Final = 64
"""Of a definition, and of a call in the conversation."""
JSON_SPREAD: Final = 2
"""Each bracket, comma and colon of compact JSON may bring a line's end and its indentation, a token at most."""
TEXT_TOKENS: Final = 8
"""What a vocabulary puts around any text: its first token, a space before the first word."""
PROMPT_BYTES_PER_TOKEN: Final = 16
"""Far above what any language or program needs on average; a longer prompt is refused without asking the runner."""


class AdmitLimits(Value, frozen=True, kw_only=True):
    """The operator's limits that admission needs. ``named_context_tokens`` are those of models with their own."""

    context_tokens: int
    default_max_tokens: int
    named_context_tokens: dict[str, int] = msgspec.field(default_factory=dict)


def admit(request: Asked, principal: Principal, catalogue: Iterable[VerifiedModel], limits: AdmitLimits) -> Admission:
    """Raises ``Refused(MODEL_NOT_FOUND | OPERATION_UNSUPPORTED | PROMPT_TOO_LONG)``.

    A model outside the token's own list looks exactly like one that does not exist.
    """
    model = find_model(request.model, principal, catalogue)
    _require_offered(request, model)
    allowed = limits.named_context_tokens.get(model.name, limits.context_tokens)
    context = min(allowed, model.facts.context_tokens)
    if not isinstance(request, Generation):
        return Admission(
            model=model,
            request=request,
            context_tokens=context,
            max_prompt_tokens=_most_input_tokens(request, context),
            max_completion_tokens=0,
        )
    _require_plausible(request.prompt, context)
    each = min(request.max_tokens or limits.default_max_tokens, context)
    return Admission(
        model=model,
        request=request,
        context_tokens=context,
        max_prompt_tokens=min(_most_tokens(request.prompt), context - 1),
        max_completion_tokens=request.choices * each,
        echo_bytes=_echo_bytes(request),
    )


def _require_offered(request: Asked, model: VerifiedModel) -> None:
    """Raises ``Refused(OPERATION_UNSUPPORTED)`` before anything is loaded. Which of vectors and scores a model that
    pools gives, its runner says."""
    pools = isinstance(request, Vectors)
    if isinstance(request, Generation | Vectors) and model.facts.pools != pools:
        detail = f"{model.name} is {'' if model.facts.pools else 'not '}for vectors or scores"
        raise Refused(Reason.OPERATION_UNSUPPORTED, detail, param="model")


def _most_input_tokens(request: Vectors | Tokenisation | Detokenisation, context: int) -> int:
    """What all inputs together may have. Raises ``Refused(PROMPT_TOO_LONG)`` for one that cannot fit."""
    match request:
        case Tokenisation():
            _require_plausible(TextPrompt(text=request.text), context)
            return _bytes(request.text) + TEXT_TOKENS
        case Detokenisation():
            return max(1, len(request.ids))
        case Vectors():
            if not request.truncate:
                for given in request.inputs:
                    _require_plausible(given, context, param="input")
            query = _bytes(request.query)
            return sum(min(query + _most_tokens(given) + TEXT_TOKENS, context) for given in request.inputs)


def asked_bytes(request: Asked) -> int:
    """All that the caller wrote, as ``prompt_bytes``."""
    match request:
        case Generation():
            return prompt_bytes(request.prompt)
        case Vectors():
            return _bytes(request.query) + sum(map(prompt_bytes, request.inputs))
        case Tokenisation():
            return _bytes(request.text)
        case Detokenisation():
            return len(request.ids) * MAX_TOKEN_BYTES


def _require_plausible(prompt: Prompt, context: int, *, param: str = "prompt") -> None:
    if isinstance(prompt, TokenPrompt):
        if len(prompt.ids) >= context:
            raise Refused(Reason.PROMPT_TOO_LONG, f"{len(prompt.ids)} tokens of {context}", param=param)
    elif (n_bytes := prompt_bytes(prompt)) > context * PROMPT_BYTES_PER_TOKEN:
        param = "messages" if isinstance(prompt, Conversation) else param
        raise Refused(Reason.PROMPT_TOO_LONG, f"{n_bytes} bytes cannot fit {context} tokens", param=param)


def prompt_bytes(prompt: Prompt) -> int:
    """All that the caller wrote, in bytes; at most as many for a prompt of tokens, whose text only the model knows."""
    match prompt:
        case Conversation():
            return sum(map(_message_bytes, prompt.messages)) + sum(map(_tool_bytes, prompt.tools))
        case TextPrompt():
            return _bytes(prompt.text)
        case TokenPrompt():
            return len(prompt.ids) * MAX_TOKEN_BYTES


def _most_tokens(prompt: Prompt) -> int:
    match prompt:
        case Conversation():
            calls = [call for message in prompt.messages for call in message.tool_calls]
            spread = sum(len(call.arguments) for call in calls) + sum(len(tool.parameters) for tool in prompt.tools)
            return (
                prompt_bytes(prompt)
                + (JSON_SPREAD - 1) * spread
                + TEMPLATE_TOKENS_PER_MESSAGE * len(prompt.messages)
                + TEMPLATE_TOKENS_PER_TOOL * (len(calls) + len(prompt.tools))
                + TEMPLATE_TOKENS_FOR_TOOLS * bool(prompt.tools)
                + TEMPLATE_TOKENS
            )
        case TextPrompt():
            return prompt_bytes(prompt) + TEXT_TOKENS
        case TokenPrompt():
            return len(prompt.ids)


def _message_bytes(message: Message) -> int:
    n_bytes = _bytes(message.content) + _bytes(message.tool_call_id)
    for call in message.tool_calls:
        n_bytes += _bytes(call.id) + _bytes(call.name) + _bytes(call.arguments)
    return n_bytes


def _tool_bytes(tool: Tool) -> int:
    return _bytes(tool.name) + _bytes(tool.description) + _bytes(tool.parameters)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _echo_bytes(request: Generation) -> int:
    """With a token to spare for each choice, as for the vocabulary's first one."""
    return request.choices * (prompt_bytes(request.prompt) + MAX_TOKEN_BYTES) if request.echo else 0


def find_model(name: str, principal: Principal, catalogue: Iterable[VerifiedModel]) -> VerifiedModel:
    """The verified model of that name, if the token may name it. Raises ``Refused(MODEL_NOT_FOUND)``."""
    for model in catalogue:
        if model.name == name and may_name(principal, name):
            return model
    raise Refused(Reason.MODEL_NOT_FOUND, f"no model {name!r} for {principal.subject!r}", param="model")


def may_name(principal: Principal, model_name: str) -> bool:
    """Whether the token's own list covers the model. An empty list covers nothing."""
    return "*" in principal.models or model_name in principal.models


def constrain(admission: Admission, obligations: Obligations) -> Admission:
    """The admission under what policy demands; obligations only ever lower a bound.

    Raises ``Refused(POLICY_DENIED)`` when less than a token is left for each choice.
    """
    if obligations.max_tokens is None or not isinstance(admission.request, Generation):
        return admission
    choices = admission.request.choices
    each = min(admission.max_completion_tokens, obligations.max_tokens) // choices
    if each < 1:
        raise Refused(Reason.POLICY_DENIED, f"{obligations.max_tokens} tokens are permitted for {choices} choices")
    return msgspec.structs.replace(admission, max_completion_tokens=each * choices)
