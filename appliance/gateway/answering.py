"""What all routes that answer have in common: a body comes in, the caller may leave, and the answer has headers.

Trusts: ``pipeline.Answer``.
Promises: when the caller leaves, the work is cancelled and the runner's last word, with the exact cost, is still heard.
Not here: what a body or an answer says (``surfaces``).
"""

from contextlib import AbstractContextManager

from appliance.core.codec import canonical_json
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, Value
from appliance.gateway.asgi import DEPARTURE, Departure, Receive, Scope, read_body
from appliance.gateway.pipeline import Answer, Exchange
from appliance.gateway.problems import SECURE_HEADERS


class BodyLimits(Value, frozen=True, kw_only=True):
    """What a request body may be: its size, and how long it may take to arrive."""

    max_bytes: int
    timeout_seconds: float


async def posted_body(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    """The body of a POST. Raises ``Refused`` for another method, and as ``asgi.read_body``."""
    if scope["method"] != "POST":
        raise Refused(Reason.METHOD_NOT_ALLOWED, param="POST")
    return await read_body(scope, receive, max_bytes=limits.max_bytes, timeout_seconds=limits.timeout_seconds)


def cancelled_when_left(scope: Scope, answer: Answer) -> AbstractContextManager[None]:
    """Watches the caller while the answer is read."""
    departure: Departure = scope[DEPARTURE]
    return departure.told(answer.cancel)


def answer_headers(exchange: Exchange) -> dict[bytes, bytes]:
    return {**SECURE_HEADERS, b"x-request-id": exchange.request_id.encode()}


def fingerprint(answer: Answer) -> str:
    """OpenAI's ``system_fingerprint``: here the verified model's digest, shortened; with companions, a digest of all
    theirs and of how strongly each counts."""
    model = answer.admission.model
    beside = [(one.kind, str(one.digest), one.scale_thousandths) for one in model.companions]
    digest = Digest.of(canonical_json([str(model.digest), *beside])) if beside else model.digest
    return f"sha256-{digest.hex[:16]}"
