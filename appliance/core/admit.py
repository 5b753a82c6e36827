"""Request + catalogue + limits -> Admission: does it fit the model, and what may it cost at worst?

A token never encodes less than one byte, so a prompt's UTF-8 length bounds its token count; the template adds its own
text, for which an allowance is paid. The runner is told the bound and refuses a prompt that exceeds it, so the
reservation holds even for a template that adds more than the allowance.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Admission, ChatRequest, Obligations, Principal, Value, VerifiedModel

TEMPLATE_TOKENS: Final = 256
TEMPLATE_TOKENS_PER_MESSAGE: Final = 32
PROMPT_BYTES_PER_TOKEN: Final = 16
"""Far above what any language or program needs on average; a longer prompt is refused without asking the runner."""


class AdmitLimits(Value, frozen=True, kw_only=True):
    """The operator's limits that admission needs. ``named_context_tokens`` are those of models with their own."""

    context_tokens: int
    default_max_tokens: int
    named_context_tokens: dict[str, int] = msgspec.field(default_factory=dict)


def admit(
    request: ChatRequest, principal: Principal, catalogue: Iterable[VerifiedModel], limits: AdmitLimits
) -> Admission:
    """Raises ``Refused(MODEL_NOT_FOUND | PROMPT_TOO_LONG)``.

    A model outside the token's own list looks exactly like one that does not exist.
    """
    model = find_model(request.model, principal, catalogue)
    allowed = limits.named_context_tokens.get(model.name, limits.context_tokens)
    context = min(allowed, model.facts.context_tokens)
    prompt_bytes = sum(len(message.content.encode()) for message in request.messages)
    bound = prompt_bytes + TEMPLATE_TOKENS_PER_MESSAGE * len(request.messages) + TEMPLATE_TOKENS
    if prompt_bytes > context * PROMPT_BYTES_PER_TOKEN:
        raise Refused(Reason.PROMPT_TOO_LONG, f"{prompt_bytes} bytes cannot fit {context} tokens", param="messages")
    return Admission(
        model=model,
        request=request,
        context_tokens=context,
        max_prompt_tokens=min(bound, context - 1),
        max_completion_tokens=min(request.max_tokens or limits.default_max_tokens, context),
    )


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
    """The admission under what policy demands; obligations only ever lower a bound."""
    if obligations.max_tokens is None:
        return admission
    cap = min(admission.max_completion_tokens, obligations.max_tokens)
    return msgspec.structs.replace(admission, max_completion_tokens=cap)
