"""The list of models, as OpenAI's clients read it.

Trusts: ``core.manifest``, which made each model.
Promises: what was verified is told beside what clients expect.
Not here: which models a caller may see (``pipeline``).
"""

from typing import Any

from appliance.core.values import VerifiedModel


def model_object(model: VerifiedModel) -> dict[str, Any]:
    """One entry of the model list. ``created`` is a constant: when a model was made is not something we verify. The
    names of companions are nobody's here: they cannot be asked for."""
    companions = [
        {"kind": one.kind, "digest": str(one.digest), "signer": str(one.signer.fingerprint)} for one in model.companions
    ]
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.signer.name,
        "paddock": {
            "digest": str(model.digest),
            "signer": str(model.signer.fingerprint),
            "context_length": model.facts.context_tokens,
            **({"companions": companions} if companions else {}),
        },
    }
