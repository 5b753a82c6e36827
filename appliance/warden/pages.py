"""Lists of models in pages, since a frame holds some hundreds of them and a store any number.

A page goes on after a name, in order of names: what changes between two pages is in one of them or in the next look.

Trusts: whoever verified the models, for names and signers short enough that any one model fits a frame.
Promises: a page fits a frame, and holds something while there is something after the name.
Not here: what is known of the models (``pool``).
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from appliance.core.values import VerifiedModel
from appliance.ipc.frames import encoded_bytes
from appliance.ipc.messages import (
    AskStatus,
    FailedModel,
    ListModels,
    LoadedModel,
    MemoryBudget,
    ModelList,
    PlannedModel,
    WardenStatus,
)

PAGE_BYTES: Final = 256 * 1024


def model_list(question: ListModels, models: tuple[VerifiedModel, ...], pending: tuple[str, ...]) -> ModelList:
    items = [*((model.name, encoded_bytes(model)) for model in models), *((name, len(name) + 5) for name in pending)]
    names, more = _page(question.after, items)
    return ModelList(
        call=question.call,
        models=tuple(model for model in models if model.name in names),
        pending=tuple(name for name in pending if name in names),
        more=more,
    )


def status(
    question: AskStatus,
    models: tuple[VerifiedModel, ...],
    loaded: tuple[LoadedModel, ...],
    failed: tuple[FailedModel, ...],
    planned: tuple[PlannedModel, ...] = (),
    memory: MemoryBudget | None = None,
) -> WardenStatus:
    items: list[tuple[str, msgspec.Struct]] = [(model.name, model) for model in models]
    items += [(one.model.name, one) for one in loaded]
    items += [(one.name, one) for one in failed]
    items += [(one.name, one) for one in planned]
    names, more = _page(question.after, ((name, encoded_bytes(item)) for name, item in items))
    return WardenStatus(
        call=question.call,
        models=tuple(model for model in models if model.name in names),
        loaded=tuple(one for one in loaded if one.model.name in names),
        failed=tuple(one for one in failed if one.name in names),
        planned=tuple(one for one in planned if one.name in names),
        memory=memory,
        more=more,
    )


def _page(after: str, items: Iterable[tuple[str, int]]) -> tuple[frozenset[str], bool]:
    """The next names whose items fit, at least one; and whether there are more."""
    sizes: dict[str, int] = {}
    for name, n_bytes in items:
        if name > after:
            sizes[name] = sizes.get(name, 0) + n_bytes
    taken: list[str] = []
    room = PAGE_BYTES
    for name in sorted(sizes):
        room -= sizes[name]
        if room < 0 and taken:
            return frozenset(taken), True
        taken.append(name)
    return frozenset(taken), False
