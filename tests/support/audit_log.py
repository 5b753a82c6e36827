"""A log in a temporary directory, written by the real journal."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.core.records import LogOpened, Record
from appliance.core.values import Digest
from appliance.notary.checkpoint import Checkpointer, verifier_key
from appliance.notary.clock import Clock
from appliance.notary.files import Files
from appliance.notary.journal import Journal, NotWritten, Outcome, Written
from tests.support.audit_records import FakeClock

ORIGIN = "paddock.test/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
VKEY = str(verifier_key(ORIGIN, KEY))

LOG_OPENED = LogOpened(version="test", settings_digest=Digest.of(b"settings"), recovered_bytes=0)


def checkpointer(state: Path, *, files: Files | None = None, key: Ed25519PrivateKey = KEY) -> Checkpointer:
    return Checkpointer(
        files or Files(),
        head_path=state / "head",
        checkpoint_path=state / "log" / "checkpoint",
        origin=ORIGIN,
        key=key,
    )


def open_journal(
    state: Path, *, files: Files | None = None, key: Ed25519PrivateKey = KEY, clock: Clock | None = None
) -> Journal:
    """A journal in ``state/log``; ``state`` must exist. Belongs inside a running loop."""
    files = files or Files()
    return Journal(files, state / "log", checkpointer(state, files=files, key=key), clock or FakeClock())


def run(scenario: Callable[[], Awaitable[None]], *, timeout_seconds: float = 30) -> None:
    """An async test with a time limit."""

    async def limited() -> None:
        async with asyncio.timeout(timeout_seconds):
            await scenario()

    asyncio.run(limited())


async def append_all(journal: Journal, records: Sequence[Record]) -> list[Outcome]:
    """Submits all at once and waits for every answer."""
    outcomes: list[Outcome | None] = [None] * len(records)
    left = len(records)
    finished = asyncio.Event()

    def done(position: int, outcome: Outcome) -> None:
        nonlocal left
        assert outcomes[position] is None, "answered twice"
        outcomes[position] = outcome
        left -= 1
        if not left:
            finished.set()

    for position, record in enumerate(records):
        journal.submit(record, lambda outcome, p=position: done(p, outcome), urgent=True)
    if records:
        await finished.wait()
    return [outcome for outcome in outcomes if outcome is not None]


def written(outcomes: Sequence[Outcome]) -> list[Written]:
    for outcome in outcomes:
        assert isinstance(outcome, Written), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Written)]


def failed(outcomes: Sequence[Outcome]) -> list[NotWritten]:
    return [outcome for outcome in outcomes if isinstance(outcome, NotWritten)]


def make_log(state: Path, records: Sequence[Record], *, publish: bool = True, clock: Clock | None = None) -> Path:
    """Writes a log with these records after its ``log-opened``, and returns its directory."""

    async def write() -> None:
        journal = open_journal(state, clock=clock)
        written(await append_all(journal, [LOG_OPENED, *records]))
        if publish:
            await journal.publish()
        await journal.close()

    run(write)
    return state / "log"
