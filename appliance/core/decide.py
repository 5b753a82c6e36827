"""Stage 4, the pure part: what policy is asked, and what its answer is worth.

The policy engine is asked one question about one document. Whatever comes back is judged here, and only an answer
that says exactly ``true``, gives reasons from the closed list and contradicts itself nowhere is an allow. Everything
else, an undefined answer included, is a ``Decision`` that denies; nothing here raises because of what policy said.
"""

from typing import Any, Final, Literal, get_args

from appliance.core.admit import asked_bytes
from appliance.core.codec import canonical_json
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import (
    Admission,
    Conversation,
    Decision,
    Digest,
    Generation,
    Obligations,
    Peer,
    Principal,
    SealMode,
    Vectors,
    VerifiedModel,
    seals_at_least,
)

# The closed list of reasons. Those marked * are not used by the default policy: they are there for an operator's own.
ALLOW_REASONS: Final = frozenset(
    {
        "group-permits-model",
        "group-permits-metrics",
        "group-permits-description",
        "subject-permitted",  # *
    }
)
DENY_REASONS: Final = frozenset(
    {
        "input-incomplete",
        "operation-unknown",
        "subject-closed",
        "model-closed",
        "model-outside-token",
        "no-group-permits-model",
        "no-group-permits-metrics",
        "no-group-permits-description",
        "delegation-not-permitted",
        "outside-hours",  # *
        "peer-not-permitted",  # *
        "request-too-large",  # *
        "signer-not-permitted",  # *
    }
)
DELEGATION_DENIED: Final[dict[str, Any]] = {"allow": False, "reasons": ["delegation-not-permitted"], "obligations": {}}
"""The raw answer for rules that do not know of delegation."""
# Ours alone: a policy that says it is malformed too.
MALFORMED: Final = "policy-answer-malformed"

Asked = Admission | VerifiedModel | Literal["metrics", "describe"]
"""What was admitted; a model that a list might show; numbers about the whole appliance; or what its API is."""

_MAX_TOKENS: Final = 2**31 - 1
_MINUTE_SECONDS: Final = 60
_DAY_SECONDS: Final = 86_400
_EPOCH_WEEKDAY: Final = 3  # 1 January 1970 was a Thursday; Monday is 0


def policy_input(
    asked: Asked, *, principal: Principal, peer: Peer, method: str, route: str, now_seconds: int
) -> dict[str, Any]:
    """The input document: may this principal have what was admitted, see a bare model in a list, or read the metrics or
    the description of the API?

    Integers, strings and booleans only, and null for the model of the last two, which are of none; ``weekday`` (Monday
    is 0) and ``minute_of_day`` are in UTC. ``route`` is the template of the route, never the caller's path. No text of
    a prompt is in it, only counts; ``max_tokens`` are those of all choices together. ``acting`` are those who act for
    the principal, the nearest first; of all but one with a token of its own, ``client_id`` and ``groups`` are empty.
    """
    return {
        "principal": {
            "subject": principal.subject,
            "client_id": principal.client_id,
            "issuer": principal.issuer,
            "groups": list(principal.groups),
            "models": list(principal.models),
            "acting": [
                {"issuer": one.issuer, "subject": one.subject, "client_id": one.client_id, "groups": list(one.groups)}
                for one in principal.acting
            ],
        },
        "action": {"operation": _operation(asked), "method": method, "route": route},
        "model": _model(asked),
        "request": _request(asked),
        "peer": {"address": peer.address},
        "time": {
            "unix_seconds": now_seconds,
            "weekday": (now_seconds // _DAY_SECONDS + _EPOCH_WEEKDAY) % 7,
            "minute_of_day": now_seconds % _DAY_SECONDS // _MINUTE_SECONDS,
        },
    }


def _model(asked: Asked) -> dict[str, Any] | None:
    if isinstance(asked, str):
        return None
    model = asked.model if isinstance(asked, Admission) else asked
    companions = [
        {"kind": one.kind, "name": one.name, "digest": str(one.digest), "signer": one.signer.name}
        for one in model.companions
    ]
    return {
        "name": model.name,
        "digest": str(model.digest),
        "signer": model.signer.name,
        "base": model.base or model.name,
        "companions": companions,
    }


def _operation(
    asked: Asked,
) -> Literal["chat", "complete", "embed", "rerank", "tokenise", "list", "metrics", "describe"]:
    if not isinstance(asked, Admission):
        return asked if isinstance(asked, str) else "list"
    match asked.request:
        case Generation():
            return "chat" if isinstance(asked.request.prompt, Conversation) else "complete"
        case Vectors():
            return asked.request.kind
        case _:
            return "tokenise"


def _request(asked: Asked) -> dict[str, Any]:
    if not isinstance(asked, Admission):
        return {
            "max_tokens": None,
            "messages": 0,
            "prompt_bytes": 0,
            "stream": False,
            "tools": 0,
            "constraint": "none",
            "choices": 0,
        }
    request = asked.request
    if not isinstance(request, Generation):
        return {
            "max_tokens": 0,
            "messages": 0,
            "prompt_bytes": asked_bytes(request),
            "stream": False,
            "tools": 0,
            "constraint": "none",
            "choices": 1,
        }
    talk = request.prompt if isinstance(request.prompt, Conversation) else None
    return {
        "max_tokens": asked.max_completion_tokens,
        "messages": len(talk.messages) if talk else 0,
        "prompt_bytes": asked_bytes(request),
        "stream": request.stream,
        "tools": len(talk.tools) if talk else 0,
        "constraint": str(request.constraint.__struct_config__.tag) if request.constraint else "none",
        "choices": request.choices,
    }


def input_document(policy_input: dict[str, Any]) -> bytes:
    """Canonical JSON: what the policy engine reads and ``Decision.input_digest`` is of. Raises ``Fault``."""
    try:
        return canonical_json(policy_input)
    except (TypeError, ValueError, NotImplementedError, RecursionError) as problem:
        raise Fault(f"the policy input cannot be written as JSON: {problem}") from None


def judge(raw_answer: Any, *, policy_digest: Digest, input_digest: Digest) -> Decision:
    """The decision rule's raw value -> Decision. Only a well-formed answer whose ``allow`` is ``True`` allows.

    A well-formed answer is an object of exactly ``allow`` (a boolean), ``reasons`` (one or more words, each once, all
    from the list that fits ``allow``) and ``obligations`` (an object of at most ``max_tokens``, an integer of 1 to
    2**31 - 1, and ``minimum_seal``, a seal mode; a refusal obliges to nothing). Anything else denies with the one
    reason ``policy-answer-malformed``.
    """
    match raw_answer:
        case {"allow": bool(allow), "reasons": list(reasons), "obligations": dict(duties), **unknown} if not unknown:
            obligations = _obligations(duties) if allow or not duties else None
            if obligations is not None and _reasons_fit(reasons, ALLOW_REASONS if allow else DENY_REASONS):
                return Decision(
                    allow=allow,
                    reasons=tuple(sorted(reasons)),
                    obligations=obligations,
                    policy_digest=policy_digest,
                    input_digest=input_digest,
                )
    return Decision(
        allow=False,
        reasons=(MALFORMED,),
        obligations=Obligations(),
        policy_digest=policy_digest,
        input_digest=input_digest,
    )


def _reasons_fit(reasons: list[Any], known: frozenset[str]) -> bool:
    return (
        0 < len(reasons) <= len(known)
        and all(type(reason) is str and reason in known for reason in reasons)
        and len(set(reasons)) == len(reasons)
    )


def _obligations(duties: dict[Any, Any]) -> Obligations | None:
    """The obligations, or None when they are not exactly what we know how to keep: an unkept duty is no allow."""
    if not duties.keys() <= {"max_tokens", "minimum_seal"}:
        return None
    tokens, seal = duties.get("max_tokens"), duties.get("minimum_seal")
    if "max_tokens" in duties and not (type(tokens) is int and 1 <= tokens <= _MAX_TOKENS):
        return None
    if "minimum_seal" in duties and seal not in get_args(SealMode):
        return None
    return Obligations(max_tokens=tokens, minimum_seal=seal)


def require_allowed(decision: Decision) -> None:
    """Raises ``Refused(POLICY_DENIED)`` unless the decision allows. Its reasons are for the operator only."""
    if decision.allow is not True:
        raise Refused(Reason.POLICY_DENIED, ", ".join(decision.reasons))


def require_sealed(obligations: Obligations, seal_mode: SealMode) -> None:
    """Raises ``Refused(POLICY_DENIED)`` unless the runner's model is sealed at least as well as policy demands."""
    minimum = obligations.minimum_seal
    if minimum is not None and not seals_at_least(seal_mode, minimum):
        raise Refused(Reason.POLICY_DENIED, f"the model is loaded as {seal_mode} and policy demands {minimum}")
