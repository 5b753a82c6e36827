"""``core.ports.AuditLog`` in memory."""

from appliance.core.records import Closed, Opened, Record, RefusedRequest
from appliance.core.values import Digest, Receipt
from tests.fakes.steps import Steps


class FakeAuditLog:
    def __init__(self, steps: Steps) -> None:
        self.records: list[Record] = []
        self._steps = steps

    async def open(self, record: Record) -> Receipt:
        await self._steps.reach(f"record {_event(record)}")
        self.records.append(record)
        return Receipt(index=len(self.records) - 1, leaf_hash=Digest.of(b"leaf"))

    def close(self, record: Record) -> None:
        self._steps.note(f"record {_event(record)}")
        self.records.append(record)

    def of(self, kind: type[Record]) -> list[Record]:
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def opened(self) -> list[Opened]:
        return [record for record in self.records if isinstance(record, Opened)]

    @property
    def closed(self) -> list[Closed]:
        return [record for record in self.records if isinstance(record, Closed)]

    @property
    def refused(self) -> list[RefusedRequest]:
        return [record for record in self.records if isinstance(record, RefusedRequest)]


def _event(record: Record) -> str:
    return str(record.__struct_config__.tag)
