"""The engine for a model: which one is a fact of its file.

Trusts: ``Load``, from the warden.
Promises: a model is served by the engine for what it offers and with all that ``Load`` names, or refused.
Not here: how each serves (``engine.engine``, ``engine.embedding``).
"""

from collections.abc import Sequence

from appliance.ipc.messages import Load, LoadedWith
from appliance.runner.engine.adapters import add_adapters
from appliance.runner.engine.embedding import Embedder
from appliance.runner.engine.engine import Engine
from appliance.runner.engine.model import LoadError, Model


def load_engine(files: Sequence[int], load: Load) -> Engine | Embedder:
    """Parses the GGUF at the first descriptor's present offset, and at the others' the companions that ``load`` names.
    The descriptors stay the caller's to close.

    Raises ``LoadError``, or ``OSError`` when a descriptor cannot be read.
    """
    base, *others = files
    companions = list(zip(others, load.companions, strict=True))
    model = Model.load(base)
    if model.offers != "generate":
        if companions:
            raise LoadError("model-unsupported", "a model that is not for text has no companions")
        return Embedder(model, load)
    drafts = [file for file, one in companions if one.kind == "draft"]
    if len(drafts) > 1:
        raise LoadError("draft-unfit", "there are two draft models")
    add_adapters(model, base, [(file, _scale(one)) for file, one in companions if one.kind == "adapter"])
    return Engine.of(model, load, draft=Model.load(drafts[0]) if drafts else None)


def _scale(adapter: LoadedWith) -> float:
    if adapter.scale_thousandths is None:
        raise LoadError("adapter-invalid", "an adapter has no scale")
    return adapter.scale_thousandths / 1000
