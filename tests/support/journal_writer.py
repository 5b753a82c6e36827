"""Run as a process: appends records for ever and prints the number of each once it is acknowledged, to be killed."""

import asyncio
import sys
from pathlib import Path

from appliance.notary import journal as journal_module
from appliance.notary.clock import SystemClock
from appliance.notary.journal import Written
from tests.support.audit_log import LOG_OPENED, append_all, open_journal
from tests.support.audit_records import small


async def main(state: Path, first: int) -> None:
    journal_module._COMPACT_ENTRIES = 256
    journal = open_journal(state, clock=SystemClock())
    await append_all(journal, [LOG_OPENED])
    publishing = asyncio.create_task(journal.publish_forever(0.005))
    number = first
    while not publishing.done():
        outcomes = await append_all(journal, [small(number + n) for n in range(20)])
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, Written):
                print(number + position, flush=True)
        number += 20


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
