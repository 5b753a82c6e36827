"""Guesses of a second, smaller model with the same vocabulary: what it finds likeliest, one token after the other.

It has a context of its own with as many slots, in which each sequence's text is computed again; a prompt in pieces of
at most ``CATCH_UP_TOKENS`` in a step of the engine, so that nobody waits longer for another's. What it guessed wrongly
is cut off when the text is next looked at. Nothing is kept there from one answer to the next, so nothing is shared
either.

Trusts: nothing in the draft model's file but that llama.cpp could load it; its logits may be anything.
Promises: a guess is a token id of the common vocabulary. The draft's context is as large as ``core.memory.plan`` says
for its file and the same ``Load``.
Not here: whether a guess holds (``speculation``).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from appliance.ipc.messages import Load
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.context import Context
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.native import llama, short_call
from appliance.runner.engine.speculation import Text

CATCH_UP_TOKENS: Final = 256

_get_text = short_call("llama_vocab_get_text")
_get_attributes = short_call("llama_vocab_get_attr")
_is_eog = short_call("llama_vocab_is_eog")
_SPECIAL_IDS: Final = ("bos", "eos", "eot", "sep", "nl", "pad", "mask")


class _Cached:
    """Of one slot: ``known`` tokens of the text are computed, and behind them ``ahead``, which are a guess."""

    __slots__ = ("ahead", "known")

    def __init__(self) -> None:
        self.known = 0
        self.ahead: list[int] = []


class DraftModel:
    """A ``Drafter``. Owns ``draft`` from here on. Raises ``LoadError``."""

    def __init__(self, draft: Model, target: Model, load: Load) -> None:
        require_same_vocabulary(draft, target)
        self._model = draft
        self._context = Context(draft, load)
        if not self._context.can_cut:
            self._context.close()
            raise LoadError("draft-unfit", "the draft model has a memory that cannot be cut")
        self._batch = Batch(self._context.batch_tokens, self._context.slots)
        self._cached: dict[int, _Cached] = {}

    def begin(self, text: Text) -> None:
        self._cached[text.slot] = _Cached()

    def end(self, slot: int) -> None:
        del self._cached[slot]
        self._context.forget(slot)

    def propose(self, texts: Sequence[Text], length: int) -> list[list[int]]:
        """All of them or none: as long as the draft has to catch up with one, there is nothing to propose."""
        nothing: list[list[int]] = [[] for _ in texts]
        for text in texts:
            self._compare(text)
        if max(map(_written, texts)) + length > self._context.context_tokens or not self._catch_up(texts):
            return nothing
        proposals = nothing
        self._batch.clear()
        for text in texts:
            known = self._cached[text.slot].known
            self._batch.add(text.slot, _tokens(text, known), known, output=True)
        for place in range(length):
            if place:
                self._batch.clear()
                for text, proposal in zip(texts, proposals, strict=True):
                    self._batch.add_ahead(text.slot, proposal[-1:], _written(text) + place - 1)
            self._decode()
            best = self._context.logits(len(texts)).argmax(axis=1).tolist()
            for proposal, token in zip(proposals, best, strict=True):
                proposal.append(token)
        for text, proposal in zip(texts, proposals, strict=True):
            cached = self._cached[text.slot]
            cached.known, cached.ahead = _written(text), proposal[:-1]
        return proposals

    def _compare(self, text: Text) -> None:
        """Takes what was guessed rightly for known, and the rest off. The text's last token is always left to compute,
        since what comes behind it is asked for."""
        cached = self._cached[text.slot]
        if cached.known < len(text.prompt):
            return
        came = text.answer[cached.known - len(text.prompt) : -1]
        right = 0
        while right < min(len(came), len(cached.ahead)) and came[right] == cached.ahead[right]:
            right += 1
        known = min(cached.known + right, _written(text) - 1)
        if known < cached.known + len(cached.ahead):
            self._context.forget(text.slot, known)
        cached.known, cached.ahead = known, []

    def _catch_up(self, texts: Sequence[Text]) -> bool:
        """Computes of what is missing as much as a step may. True when only what fits the next batch is."""
        most = min(CATCH_UP_TOKENS, self._batch.capacity)
        missing = {text.slot: _written(text) - self._cached[text.slot].known for text in texts}
        if sum(missing.values()) <= most:
            return True
        self._batch.clear()
        for text in texts:
            cached = self._cached[text.slot]
            tokens = _tokens(text, cached.known)[: min(missing[text.slot] - 1, most - self._batch.size)]
            if len(tokens):
                self._batch.add(text.slot, tokens, cached.known, output=False)
                cached.known += len(tokens)
        self._decode()
        return False

    def _decode(self) -> None:
        status = self._context.decode(self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of the draft model returned {status}")

    def try_out(self) -> None:
        """Raises ``LoadError``."""
        slots = list(range(self._context.slots))
        length = min(self._batch.capacity // len(slots), self._context.context_tokens - 1)
        shapes = [np.zeros(length, np.int32), np.zeros(1, np.int32)]
        try:
            for tokens, position in zip(shapes, (0, length), strict=True):
                self._batch.clear()
                for slot in slots:
                    self._batch.add(slot, tokens, position, output=True)
                self._decode()
                self._context.logits(len(slots)).argmax(axis=1)
            self._batch.clear()
            self._batch.add(0, shapes[1], 1, output=True)
            self._context.forget(0, 1)
            self._decode()
        except RuntimeError as error:
            raise LoadError("decode-failed", str(error)) from error
        for slot in slots:
            self._context.forget(slot)

    def close(self) -> None:
        self._context.close()
        self._model.close()


def require_same_vocabulary(draft: Model, target: Model) -> None:
    """Raises ``LoadError`` unless each id is the same token of the same kind in both, and the special ones have the
    same ids: a proposal is ids."""
    if draft.offers != "generate":
        raise LoadError("draft-unfit", "the draft model is not for text")
    ours, theirs = (llama.llama_model_get_vocab(model.pointer) for model in (target, draft))
    if draft.vocabulary_tokens != target.vocabulary_tokens:
        counts = f"{draft.vocabulary_tokens} tokens, the model {target.vocabulary_tokens}"
        raise LoadError("draft-unfit", f"the draft model's vocabulary has {counts}")
    for name in _SPECIAL_IDS:
        of = getattr(llama, f"llama_vocab_{name}")
        if of(ours) != of(theirs):
            raise LoadError("draft-unfit", f"the draft model's vocabulary has another {name} token")
    for token in range(target.vocabulary_tokens):
        for of in (_get_text, _get_attributes, _is_eog):
            if of(ours, token) != of(theirs, token):
                raise LoadError("draft-unfit", f"token {token} of the draft model's vocabulary is another")


def _written(text: Text) -> int:
    return len(text.prompt) + len(text.answer)


def _tokens(text: Text, start: int) -> TokenIds:
    """From one place of a text on."""
    answer = np.array(text.answer[max(0, start - len(text.prompt)) :], np.int32)
    return np.concatenate([text.prompt[start:], answer])
