"""The engine for a model: which one is a fact of its file.

Trusts: ``Load``, from the warden.
Promises: a model is served by the engine for what it offers, or refused.
Not here: how each serves (``engine.engine``, ``engine.embedding``).
"""

from appliance.ipc.messages import Load
from appliance.runner.engine.embedding import Embedder
from appliance.runner.engine.engine import Engine
from appliance.runner.engine.model import Model


def load_engine(model_file: int, load: Load) -> Engine | Embedder:
    """Parses the GGUF at the descriptor's present offset. The descriptor stays the caller's to close.

    Raises ``LoadError``, or ``OSError`` when the descriptor cannot be read.
    """
    model = Model.load(model_file)
    return Engine.of(model, load) if model.offers == "generate" else Embedder(model, load)
