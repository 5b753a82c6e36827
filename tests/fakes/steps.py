"""One account of what every fake was asked, in order, and the places where a test may fail or hold it."""

import asyncio
from collections.abc import Callable


class Steps:
    """``fail["reserve"] = Fault(...)`` makes that step raise; ``hold = "reserve"`` makes it wait for ``go``.

    A step has taken no effect yet when it waits or fails here.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.hold: str | None = None
        self.held = asyncio.Event()
        self.go = asyncio.Event()
        self.watch: Callable[[str], None] = lambda _name: None

    async def reach(self, name: str) -> None:
        self.note(name)
        if name == self.hold:
            self.held.set()
            await self.go.wait()
        await asyncio.sleep(0)  # as a socket would

    def note(self, name: str) -> None:
        """A step that does not wait."""
        self.seen.append(name)
        self.watch(name)
        if name in self.fail:
            raise self.fail[name]
