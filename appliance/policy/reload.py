"""A policy that follows its files: what an operator writes is in force within seconds, without a restart.

New files come into force only if they load completely and the log has a record of them; otherwise the policy that was
good goes on deciding and the operator's log says why.

Rules that were written before anybody could act for another never look at who does, and would permit whatever they
permit to the user. An upgrade leaves them where they are, so each is asked about a stranger once, when it is loaded.

The process has put a fence around the directory that it found. Another one in its place, or a link that leads elsewhere
now, cannot be followed from within: it takes another process.

Trusts: the operator who can write the files.
Promises: every decision is made by one whole policy, whose digest is on record; nobody acts for another by rules that
    do not say no to a stranger.
Not here: what a policy is (``embedded``).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from appliance.core.decide import DELEGATION_DENIED
from appliance.core.records import PolicyLoaded
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.policy.documents import check_data
from appliance.policy.embedded import EmbeddedPolicy

CHECK_SECONDS: Final = 1.0
_A_STRANGER_ACTS: Final = {"principal": {"acting": [{"issuer": "", "subject": "", "client_id": "", "groups": []}]}}

log = logging.getLogger(__name__)


class _Loaded(NamedTuple):
    policy: EmbeddedPolicy
    judges_who_acts: bool


class ReloadingPolicy:
    """Implements ``core.ports.PolicyEngine``. ``run`` must be running for changes to be noticed."""

    def __init__(self, wasm_path: Path, data_path: Path) -> None:
        """Raises ``Fault`` when the files cannot be used: there is no policy to fall back to yet."""
        self._paths = (wasm_path, data_path)
        self._directory = _identity(wasm_path.parent)
        self._seen = self._stamp()
        self._current = _load(wasm_path, data_path)

    @property
    def policy_digest(self) -> Digest:
        return self._current.policy.policy_digest

    @property
    def record(self) -> PolicyLoaded:
        """What the log must hold before this policy decides anything."""
        return _record(self._current.policy)

    async def evaluate(self, document: bytes) -> Any:
        if not self._current.judges_who_acts and msgspec.json.decode(document)["principal"]["acting"]:
            return DELEGATION_DENIED
        return await self._current.policy.evaluate(document)

    async def run(self, put_on_record: Callable[[PolicyLoaded], Awaitable[object]]) -> None:
        """Looks at the files. ``put_on_record`` returns when the record is durable, or raises. Returns when another
        directory stands where the files were; while none does, the policy that was good goes on."""
        while _identity(self._paths[0].parent) in (self._directory, None):
            await asyncio.sleep(CHECK_SECONDS)
            stamp = self._stamp()
            if stamp != self._seen:
                try:
                    await self._replace(put_on_record)
                    self._seen = stamp
                except Fault as fault:
                    self._seen = stamp  # until the files change again
                    log.warning("the changed policy is not used, the former one goes on: %s", fault.detail)
                except Refused as refusal:
                    log.warning("the changed policy waits for the log: %s", refusal)
        log.warning("another directory has become %s, which a new gateway must read", self._paths[0].parent)

    async def _replace(self, put_on_record: Callable[[PolicyLoaded], Awaitable[object]]) -> None:
        fresh = await asyncio.to_thread(_load, *self._paths, self._current.policy)
        if fresh.policy.policy_digest == self.policy_digest:
            return
        await put_on_record(_record(fresh.policy))
        self._current = fresh
        log.info("policy %s is in force", self.policy_digest)

    def _stamp(self) -> tuple[tuple[int, int, int], ...] | None:
        """What changes when a file is written or replaced; None while one is missing."""
        try:
            stats = [path.stat() for path in self._paths]
        except OSError:
            return None
        return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in stats)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _load(wasm_path: Path, data_path: Path, known: EmbeddedPolicy | None = None) -> _Loaded:
    policy = EmbeddedPolicy.load_files(wasm_path, data_path, known)
    check_data(policy.data)
    judges_who_acts = _judges_who_acts(policy)
    if not judges_who_acts:
        log.warning("the policy's rules do not judge who acts for others, so nobody may (policies/README.md)")
    return _Loaded(policy, judges_who_acts)


def _judges_who_acts(policy: EmbeddedPolicy) -> bool:
    try:
        answer = policy.decide(_A_STRANGER_ACTS)
    except Fault:
        return False
    match answer:
        case {"allow": False, "reasons": list(reasons)}:
            return set(DELEGATION_DENIED["reasons"]) <= set(map(str, reasons))
    return False


def _record(policy: EmbeddedPolicy) -> PolicyLoaded:
    return PolicyLoaded(policy_digest=policy.policy_digest, data_digest=policy.data_digest)
