"""Which drafter an engine has: the operator's choice, as far as the model allows any.

Trusts: ``Load``, from the warden.
Promises: a draft model is used or refused, never ignored.
Not here: how each guesses (``speculation_lookup``, ``speculation_draft``).
"""

from appliance.ipc.messages import Load
from appliance.runner.engine.context import Context
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.speculation import Drafter
from appliance.runner.engine.speculation_draft import DraftModel
from appliance.runner.engine.speculation_lookup import Lookup


def drafter_for(model: Model, context: Context, load: Load, draft: Model | None) -> Drafter | None:
    """None where nothing is to be guessed, or nothing guessed wrongly could be taken back: the state of a recurrent
    model is one for the whole text. Raises ``LoadError``."""
    if (load.speculation == "draft") != (draft is not None):
        wrong = "was given and not asked for" if draft is not None else "was asked for and not given"
        raise LoadError("draft-unfit", f"a draft model {wrong}")
    if draft is not None:
        if not context.can_cut:
            raise LoadError("draft-unfit", "the model's memory cannot be cut, so nothing can be guessed for it")
        return DraftModel(draft, model, load)
    return Lookup() if load.speculation == "lookup" and context.can_cut else None
