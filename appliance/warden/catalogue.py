"""Which models there are, and which of them failed: what the store holds and the trusted keys make of it.

A look at the store is cheap: files' stamps, and the signature of what has changed. Bytes are hashed in the background,
one model after the other, and once more at every load (``pool``).

Trusts: the store to verify.
Promises: a model is listed only while its entry and its signature mean what was verified. Every refusal is recorded;
    one that was found out is not found out again before its back-off is over or something has changed.
Not here: the runners of these models (``pool``).
"""

import asyncio
import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from appliance.core.ports import AuditLog
from appliance.core.records import ModelRef, ModelRefused, RunnerNotStarted, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.text import printable
from appliance.core.values import Digest, VerifiedModel
from appliance.ipc.messages import FailedModel
from appliance.warden.ports import VerifiedStore

log = logging.getLogger(__name__)

BACK_OFF_SECONDS: Final = 1.0
MAX_BACK_OFF_SECONDS: Final = 60.0

Meaning = ModelRef | Refused | Fault
"""What an entry of the store means to the keys that are trusted now."""


@dataclass(frozen=True)
class _Failure:
    stamp: Hashable
    error: Refused | Fault
    times: int
    retry_at: float


class Catalogue:
    """Belongs to the event loop's thread; the store is called in worker threads."""

    def __init__(self, store: VerifiedStore, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit
        self._models: dict[str, VerifiedModel] = {}
        self._seen: dict[str, Hashable] = {}
        self._pending: dict[str, Hashable] = {}
        self._failures: dict[str, _Failure] = {}
        self._verifying: asyncio.Task[None] | None = None

    def models(self) -> tuple[VerifiedModel, ...]:
        return tuple(sorted(self._models.values(), key=lambda model: model.name))

    def known(self, wanted: ModelRef) -> VerifiedModel | None:
        """The model that this means, if it has been verified."""
        model = self._models.get(wanted.name)
        return model if model is not None and reference(model) == wanted else None

    def names(self) -> frozenset[str]:
        """All that the store had when it was looked at last."""
        return frozenset(self._seen)

    def pending(self) -> tuple[str, ...]:
        return tuple(self._pending)

    def failures(self) -> tuple[FailedModel, ...]:
        return tuple(
            FailedModel(
                name=printable(name)[:128], reason=_code(failure.error), detail=printable(failure.error.detail)[:500]
            )
            for name, failure in sorted(self._failures.items())
        )

    async def settled(self) -> None:
        if self._verifying is not None:
            await asyncio.wait({self._verifying})

    def stop(self) -> None:
        """Verifies nothing more. A hash that is being computed goes on in its thread and is of no consequence."""
        if self._verifying is not None:
            self._verifying.cancel()

    # --- looking ----------------------------------------------------------------------------------------------------

    async def rescan(self) -> dict[str, Meaning | None]:
        """What every entry that changed since the last look means now; None for one that is gone."""
        try:
            changed = await asyncio.to_thread(self._look, dict(self._seen))
        except Fault as fault:  # nothing is known to have changed; what is loaded again is verified again
            log.error("the model store cannot be listed: %s", fault)  # noqa: TRY400
            return {}
        meanings: dict[str, Meaning | None] = {}
        for name, (stamp, meaning) in changed.items():
            meanings[name] = meaning
            self._take_note(name, stamp, meaning)
        self._verify_faults_again()
        if self._pending and self._verifying is None:
            self._verifying = asyncio.create_task(self._verify_pending())
        return meanings

    def _look(self, seen: dict[str, Hashable]) -> dict[str, tuple[Hashable, Meaning | None]]:
        """In a thread: the entries whose stamp is another than was seen, and those that are gone."""
        changed: dict[str, tuple[Hashable, Meaning | None]] = {}
        names = self._store.names()
        for name in names:
            stamp, meaning = self._look_at(name, seen.get(name))
            if meaning is not None:
                changed[name] = stamp, meaning
        return changed | dict.fromkeys(seen.keys() - set(names), (None, None))

    def _look_at(self, name: str, seen: Hashable = None) -> tuple[Hashable, Meaning | None]:
        """In a thread. No meaning if the stamp is the one that was seen. What cannot be read is not trusted."""
        stamp: Hashable = None
        try:
            stamp = self._store.stamp(name)
            if stamp == seen and stamp is not None:
                return stamp, None
            return stamp, self._store.reference(name)
        except (Refused, Fault) as error:
            return stamp, error

    async def require(self, wanted: ModelRef) -> Hashable:
        """The stamp of an entry that means exactly this, and is worth hashing now.

        Raises ``Refused(MODEL_NOT_VERIFIED)``, or what it failed with when it was tried last.
        """
        stamp, meaning = await asyncio.to_thread(self._look_at, wanted.name)
        self._refuse_what_failed(wanted.name, stamp)
        if isinstance(meaning, Refused | Fault):
            if wanted.name in self._seen:  # else nobody but the asker has ever heard of it
                self.failed(wanted.name, wanted.digest, stamp, meaning)
            raise Refused(Reason.MODEL_NOT_VERIFIED, meaning.detail)
        if meaning != wanted:
            raise replaced(wanted)
        return stamp

    def _take_note(self, name: str, stamp: Hashable, meaning: Meaning | None) -> None:
        known = self._models.get(name)
        if meaning is None:
            for account in (self._models, self._seen, self._pending, self._failures):
                account.pop(name, None)
            return
        self._seen[name] = stamp
        if isinstance(meaning, Refused | Fault):
            self._models.pop(name, None)
            self._pending.pop(name, None)
            if not self._has_failed(name, stamp):
                self.failed(name, known.digest if known else None, stamp, meaning)
        elif known is None or reference(known) != meaning:
            self._models.pop(name, None)
            self._pending[name] = stamp

    def _verify_faults_again(self) -> None:
        """A disk may recover; a wrong signature does not."""
        for name, failure in self._failures.items():
            due = isinstance(failure.error, Fault) and time.monotonic() >= failure.retry_at
            if due and name not in self._models and name not in self._pending:
                self._pending[name] = failure.stamp

    # --- verifying --------------------------------------------------------------------------------------------------

    async def _verify_pending(self) -> None:
        try:
            while self._pending:
                name, stamp = next(iter(self._pending.items()))
                outcome = await asyncio.to_thread(self._verify, name)
                if self._pending.get(name, _GONE) != stamp:
                    continue  # something changed while it was hashed: once more, or not at all
                del self._pending[name]
                if isinstance(outcome, VerifiedModel):
                    self.know(outcome, stamp)
                    self.recovered(name)
                else:
                    self.failed(name, None, stamp, outcome)
        finally:
            self._verifying = None

    def _verify(self, name: str) -> VerifiedModel | Refused | Fault:
        """In a thread. One model whose verification fails in an unforeseen way must not stop that of the others."""
        try:
            return self._store.verify(name)
        except (Refused, Fault) as error:
            return error
        except Exception as error:
            log.exception("verifying %s failed", name)
            return Fault(f"verifying failed: {type(error).__name__}")

    def know(self, model: VerifiedModel, stamp: Hashable) -> None:
        """This model has just been verified, by whomever. Its failures stay: one that verifies may still not load, and
        finding that out again costs no less."""
        if self._models.get(model.name) != model or model.name in self._failures:
            log.info("model %s is verified", printable(model.name))
        self._models[model.name] = model
        self._seen[model.name] = stamp

    def recovered(self, name: str) -> None:
        """What this model failed with is over."""
        self._failures.pop(name, None)

    # --- failures ---------------------------------------------------------------------------------------------------

    def failed(
        self,
        name: str,
        digest: Digest | None,
        stamp: Hashable,
        error: Refused | Fault,
        record: RunnerNotStarted | None = None,
    ) -> None:
        """Records a failure, as the model's own unless ``record`` says otherwise, and remembers it for a while that
        doubles each time."""
        before = self._failures.get(name)
        times = before.times + 1 if before is not None and before.stamp == stamp else 1
        wait = min(BACK_OFF_SECONDS * 2 ** (times - 1), MAX_BACK_OFF_SECONDS)
        self._failures[name] = _Failure(stamp, error, times, time.monotonic() + wait)
        if record is None:
            self._record_refused(name, digest, error)
        else:
            log.error("model %s is not loaded: %s", printable(name), record.detail)
            self._audit.close(record)

    def _refuse_what_failed(self, name: str, stamp: Hashable) -> None:
        """Raises what this model failed with, as long as nothing has changed and its back-off is not over."""
        failure = self._failures.get(name)
        if failure is not None and failure.stamp == stamp and time.monotonic() < failure.retry_at:
            reason = failure.error.reason if isinstance(failure.error, Refused) else Reason.MODEL_NOT_VERIFIED
            raise Refused(reason, failure.error.detail)

    def _has_failed(self, name: str, stamp: Hashable) -> bool:
        failure = self._failures.get(name)
        return failure is not None and failure.stamp == stamp

    def _record_refused(self, name: str, digest: Digest | None, error: Refused | Fault) -> None:
        detail = printable(error.detail)
        log.error("model %s refused: %s", printable(name), detail)
        self._audit.close(ModelRefused(name=name[:128], digest=digest, reason=_code(error), detail=detail[:500]))


_GONE: Final = object()


def _code(error: Refused | Fault) -> str:
    return error.reason.code if isinstance(error, Refused) else "fault"


def replaced(wanted: ModelRef) -> Refused:
    """Whoever asks has an old list; nothing is wrong with the model."""
    return Refused(
        Reason.MODEL_NOT_VERIFIED, f"the model was replaced: {wanted.digest} is not what {wanted.name} means"
    )
