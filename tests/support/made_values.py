"""Plausible values of every stage of a request. Tests may make what only one maker makes in the product."""

from typing import Any

import msgspec

from appliance.core.admit import AdmitLimits, admit
from appliance.core.claims import principal
from appliance.core.values import (
    AdapterFacts,
    Admission,
    Conversation,
    Digest,
    Generation,
    GgufFacts,
    Message,
    Peer,
    RunnerFacts,
    SealMode,
    Signer,
    VerifiedClaims,
    VerifiedModel,
)

CLAIMS = VerifiedClaims(
    issuer="https://issuer.example",
    subject="alice",
    client_id="notebook",
    audience="paddock",
    token_id="0001",
    issued_at_seconds=1_790_000_000,
    expires_at_seconds=1_790_000_600,
    groups=("staff",),
    models=("demo",),
    token_sha256=Digest.of(b"token"),
)
ALICE = principal(CLAIMS)
PEER = Peer(address="192.0.2.7", port=4711)
LIMITS = AdmitLimits(context_tokens=1024, default_max_tokens=64)


def model(
    name: str = "demo", *, context_tokens: int = 2048, digest: Digest | None = None, pools: bool = False
) -> VerifiedModel:
    return VerifiedModel(
        name=name,
        digest=digest or Digest.of(name.encode()),
        size_bytes=1,
        signer=Signer(name="release", fingerprint=Digest.of(b"key")),
        bundle_digest=Digest.of(b"bundle"),
        facts=GgufFacts(
            architecture="llama",
            name=name,
            context_tokens=context_tokens,
            vocabulary_tokens=1,
            block_count=1,
            embedding_length=64,
            parameter_count=1,
            tensor_count=1,
            has_chat_template=True,
            header_bytes=1,
            file_bytes=1,
            pools=pools,
        ),
    )


def adapter(name: str = "style", *, architecture: str = "llama", file_bytes: int = 1) -> VerifiedModel:
    """A LoRA adapter, as a file of the store."""
    facts = GgufFacts(
        architecture=architecture,
        name=name,
        context_tokens=0,
        vocabulary_tokens=0,
        block_count=0,
        embedding_length=0,
        parameter_count=1,
        tensor_count=2,
        has_chat_template=False,
        header_bytes=1,
        file_bytes=file_bytes,
        adapter=AdapterFacts(pairs=1, rank=8),
    )
    return msgspec.structs.replace(model(name), facts=facts)


def runner_facts(of: VerifiedModel, runner_id: str = "runner-1", seal_mode: SealMode = "sealed-memfd") -> RunnerFacts:
    return RunnerFacts(
        runner_id=runner_id,
        model_digest=of.digest,
        seal_mode=seal_mode,
        layers=("landlock",),
        degraded=(),
        filter_digest=Digest.of(b"filter"),
        context_tokens=1024,
        slots=4,
    )


def talk(*messages: Message, **changes: Any) -> Conversation:
    return Conversation(messages=messages or (Message(role="user", content="hello"),), **changes)


def chat_request(text: str = "hello", **changes: Any) -> Generation:
    request = Generation(model="demo", prompt=talk(Message(role="user", content=text)))
    return msgspec.structs.replace(request, **changes)


def admission(**changes: Any) -> Admission:
    return msgspec.structs.replace(admit(chat_request(), ALICE, [model()], LIMITS), **changes)
