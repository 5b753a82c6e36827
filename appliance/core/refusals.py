"""Every way in which Paddock says no.

::

    PaddockError
    ├── Refused(reason, detail)   an expected no: the caller gets the reason's public text, the operator the detail
    └── Fault(detail)             ours: something we depend on failed, so the answer is 503; nothing is let through
        └── Misconfigured(detail) the operator has to change something before this process can work

``detail`` is for the operator's log only; no public text contains a path, an address, a token or a caller's bytes.
"""

from enum import Enum


class Reason(Enum):
    """The closed list: kebab-case code, HTTP status, public text."""

    # the wire (stage 0)
    CONNECTION_REFUSED = ("connection-refused", 400, "The connection is not one that this server takes.")
    REQUEST_MALFORMED = ("request-malformed", 400, "The request is not well-formed HTTP.")
    HOST_INVALID = ("host-invalid", 400, "The request needs exactly one valid Host header.")
    HOST_FOREIGN = ("host-foreign", 421, "This server does not answer for that host.")
    PATH_INVALID = ("path-invalid", 400, "The request path is not in canonical form.")
    HEADER_INVALID = ("header-invalid", 400, "A header is not allowed or occurs more than once.")
    HEADERS_TOO_LARGE = ("headers-too-large", 431, "The request headers are too large.")
    URI_TOO_LONG = ("uri-too-long", 414, "The request target is too long.")
    BODY_TOO_LARGE = ("body-too-large", 413, "The request body is too large.")
    BODY_TIMEOUT = ("body-timeout", 408, "The request body did not arrive in time.")
    MEDIA_TYPE_UNSUPPORTED = (
        "media-type-unsupported",
        415,
        "Send the body in the media type that the route takes, not compressed.",
    )
    JSON_INVALID = ("json-invalid", 400, "The body is not valid JSON, or a key occurs twice.")
    FIELD_INVALID = (
        "field-invalid",
        400,
        "A field is missing, has the wrong type, is out of range, or asks for what the model's engine does not offer.",
    )
    FIELD_UNKNOWN = ("field-unknown", 400, "The body has a field that this server does not know.")
    NOT_FOUND = ("not-found", 404, "There is nothing here.")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "This method is not allowed here.")
    # identity (stages 1 and 2)
    TOKEN_MISSING = ("token-missing", 401, "A bearer token is required.")
    TOKEN_INVALID = ("token-invalid", 401, "The bearer token is not valid.")
    TOKEN_MISPLACED = ("token-misplaced", 400, "Send one token, in one Authorization header and nowhere else.")
    PROOF_INVALID = ("proof-invalid", 401, "The DPoP proof is missing or not valid.")
    ISSUER_UNAVAILABLE = ("issuer-unavailable", 503, "The issuer of the token cannot be asked at the moment.")
    SCOPE_MISSING = ("scope-missing", 403, "The token lacks a scope that is required here.")
    CLAIM_MISSING = ("claim-missing", 403, "The token lacks a claim that is required here.")
    DELEGATION_REFUSED = ("delegation-refused", 403, "What was said about the user is not accepted from this caller.")
    # our own authorization server (RFC 6749 section 5.2, RFC 8693 section 2.2.2)
    OAUTH_REQUEST_INVALID = (
        "oauth-request-invalid",
        400,
        "The request lacks a parameter, repeats one, or is malformed.",
    )
    CLIENT_INVALID = ("client-invalid", 401, "The client is not known, or did not prove that it is the one.")
    CLIENT_UNAUTHORISED = ("client-unauthorised", 400, "The client may not use this kind of grant.")
    GRANT_TYPE_UNSUPPORTED = ("grant-type-unsupported", 400, "This kind of grant is not offered.")
    GRANT_INVALID = ("grant-invalid", 400, "The grant is not valid, has expired, or has been used before.")
    SCOPE_INVALID = ("scope-invalid", 400, "The scope is not one that this client may have.")
    TARGET_INVALID = ("target-invalid", 400, "Tokens for that resource or audience are not issued here.")
    # admission (stage 3)
    MODEL_NOT_FOUND = ("model-not-found", 404, "The model does not exist or you do not have access to it.")
    MODEL_NOT_VERIFIED = ("model-not-verified", 503, "The model failed verification and will not be loaded.")
    OPERATION_UNSUPPORTED = ("operation-unsupported", 400, "The model is not for this kind of request.")
    PROMPT_TOO_LONG = ("prompt-too-long", 400, "The prompt does not fit the model's context.")
    # policy (stage 4)
    POLICY_DENIED = ("policy-denied", 403, "Policy does not allow this request.")
    POLICY_UNAVAILABLE = ("policy-unavailable", 503, "Policy could not be evaluated.")
    # limits (stage 5)
    ADDRESS_RATE_LIMITED = ("address-rate-limited", 429, "Too many requests from this address.")
    RATE_LIMITED = ("rate-limited", 429, "Too many requests.")
    TOO_MANY_STREAMS = ("too-many-streams", 429, "Too many requests at the same time.")
    BUDGET_EXHAUSTED = ("budget-exhausted", 429, "The token budget is used up.")
    BUDGET_TOO_SMALL = ("budget-too-small", 400, "The request is larger than the whole token budget.")
    # audit (stage 6)
    AUDIT_UNAVAILABLE = ("audit-unavailable", 503, "The audit log cannot be written.")
    # the runner (stage 7)
    RUNNER_UNAVAILABLE = ("runner-unavailable", 503, "No runner is available for this model.")
    RUNNER_LOST = ("runner-lost", 502, "The runner failed while answering.")
    RUNNER_ERROR = ("runner-error", 502, "The runner could not complete the answer.")
    REQUEST_TIMEOUT = ("request-timeout", 504, "The answer took too long and was stopped.")
    READER_TOO_SLOW = ("reader-too-slow", 408, "The answer was not read as fast as it came, and was stopped.")
    ANSWER_TOO_LARGE = ("answer-too-large", 400, "The answer is too large for anything but a stream.")
    OVERLOADED = ("overloaded", 503, "The server is busy.")
    INTERNAL = ("internal", 503, "The request could not be completed.")

    def __init__(self, code: str, status: int, text: str) -> None:
        self.code = code
        self.status = status
        self.text = text


class PaddockError(Exception):
    """Base of both families."""


class Refused(PaddockError):
    """An expected no. ``retry_after_seconds`` is set where waiting helps, ``ahead`` where others are before the caller:
    how many. ``param`` names the field at fault."""

    def __init__(
        self,
        reason: Reason,
        detail: str = "",
        *,
        retry_after_seconds: int | None = None,
        ahead: int | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(f"{reason.code}: {detail}" if detail else reason.code)
        self.reason = reason
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.ahead = ahead
        self.param = param


class Fault(PaddockError):
    """Something of ours failed. The caller gets 503 and no more."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Misconfigured(Fault):
    """What the operator configured cannot work: trying again without a change is of no use."""
