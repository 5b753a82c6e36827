"""LoRA adapters: whether each fits its model, judged before llama.cpp is given both.

llama.cpp throws exceptions at a misfit while it loads one, which end in a null pointer, and asserts at others while it
decodes, which ends the process. So the headers of both files are read here first. The validator has judged each by
itself; only here are both at hand.

Trusts: nothing in the files. Which adapters, and how strongly, ``Load`` says.
Promises: a model has all of its adapters, or ``LoadError`` is raised.
Not here: whether they may be loaded (the warden).
"""

import os
from collections.abc import Sequence

from appliance.core.gguf import GgufInvalid, NeedMore, parse_header, tensor_shapes
from appliance.core.gguf_adapter import require_fit
from appliance.runner.engine.model import LoadError, Model, first_bytes

Shapes = dict[str, tuple[int, ...]]


def add_adapters(model: Model, model_file: int, adapters: Sequence[tuple[int, float]]) -> None:
    """Each a descriptor, at whose present offset the file begins, and a scale. To be called before there is a context.

    Raises ``LoadError("adapter-invalid")``, or ``OSError`` when a descriptor cannot be read.
    """
    if not adapters:
        return
    base = _shapes(model_file)
    for file, scale in adapters:
        _require_fit(file, base)
        model.add_adapter(file, scale)


def _require_fit(file: int, base: Shapes) -> None:
    try:
        if parse_header(bytes(first_bytes(file)), _size_bytes(file)).adapter is None:
            raise LoadError("adapter-invalid", "a file that should be an adapter is none")
        require_fit(_shapes(file), base)
    except (GgufInvalid, NeedMore) as error:
        raise LoadError("adapter-invalid", str(error)) from None


def _shapes(file: int) -> Shapes:
    try:
        return tensor_shapes(bytes(first_bytes(file)), _size_bytes(file))
    except (GgufInvalid, NeedMore) as error:
        raise LoadError("adapter-invalid", f"a header cannot be read: {error}") from None


def _size_bytes(file: int) -> int:
    """From where the descriptor stands."""
    return os.fstat(file).st_size - os.lseek(file, 0, os.SEEK_CUR)
