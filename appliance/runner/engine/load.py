"""The engine for a model: which one is a fact of its file.

Trusts: ``Load``, from the warden.
Promises: a model is served by the engine for what it offers and with all its adapters, or refused.
Not here: how each serves (``engine.engine``, ``engine.embedding``).
"""

from collections.abc import Sequence

from appliance.ipc.messages import Load
from appliance.runner.engine.adapters import add_adapters
from appliance.runner.engine.embedding import Embedder
from appliance.runner.engine.engine import Engine
from appliance.runner.engine.model import LoadError, Model


def load_engine(files: Sequence[int], load: Load) -> Engine | Embedder:
    """Parses the GGUF at the first descriptor's present offset, and at the others' the companions that ``load`` names.
    The descriptors stay the caller's to close.

    Raises ``LoadError``, or ``OSError`` when a descriptor cannot be read.
    """
    base, *companions = files
    model = Model.load(base)
    if model.offers != "generate":
        if companions:
            raise LoadError("adapter-unsupported", "the model is not for text")
        return Embedder(model, load)
    scales = [one.scale_thousandths / 1000 for one in load.companions]
    add_adapters(model, base, list(zip(companions, scales, strict=True)))
    return Engine.of(model, load)
