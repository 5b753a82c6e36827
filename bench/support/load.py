"""The load process: callers in a process of their own, so that what they cost is on nobody's account.

Started as ``python -m bench.support.load``; speaks ``exchange``'s messages as JSON lines on stdin and stdout.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

from bench.support.channel_caller import ChannelCaller, RunnerChannel, runner
from bench.support.exchange import Caller, FromLoad, Go, Hello, Outcome, Prepared, Reply, Setup, ToLoad, Window
from bench.support.http_caller import HttpCaller

_DECODER: msgspec.json.Decoder[ToLoad] = msgspec.json.Decoder(ToLoad)


async def _heard() -> ToLoad | None:
    """The next message; None when the benchmark has ended."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return _DECODER.decode(line) if line else None


def _say(message: FromLoad) -> None:
    print(msgspec.json.encode(message).decode(), flush=True)


async def main() -> None:
    setup = await _heard()
    if not isinstance(setup, Setup):
        raise TypeError("expected Setup first")
    async with AsyncExitStack() as stack:
        channels = {name: await stack.enter_async_context(runner(setup, file)) for name, file in setup.models.items()}
        _say(Hello(runner_pids=[channel.pid for channel in channels.values()]))
        while isinstance(window := await _heard(), Window):
            callers = [await _caller(setup, window, channels[window.model]) for _ in range(window.callers)]
            try:
                await asyncio.gather(*(caller.ask() for caller in callers))
                _say(Prepared())
                if not isinstance(await _heard(), Go):
                    return
                _say(await _measured(callers, window))
            finally:
                for caller in callers:
                    caller.close()


async def _caller(setup: Setup, window: Window, channel: RunnerChannel) -> Caller:
    if window.side == "straight":
        return ChannelCaller(channel, max_tokens=window.max_tokens)
    port, token = setup.doors[window.side]
    return await HttpCaller.connect(port=port, token=token, window=window)


async def _measured(callers: Sequence[Caller], window: Window) -> Outcome:
    """An answer that has begun when the time is over still counts, whole."""
    replies: list[Reply] = []
    milliseconds: list[float] = []
    first_milliseconds: list[float] = []
    tokens = iter(window.fresh_tokens)
    started = time.perf_counter()

    async def ask(caller: Caller, token: str | None) -> None:
        asked = time.perf_counter()
        reply = await caller.ask(token)
        milliseconds.append((time.perf_counter() - asked) * 1000)
        first_milliseconds.append((reply.first_at - asked) * 1000)
        if reply.tokens != window.max_tokens:
            raise RuntimeError(f"{reply.tokens} tokens in place of {window.max_tokens}")
        replies.append(reply)

    async def keep_asking(caller: Caller) -> None:
        if window.fresh_tokens:
            for token in tokens:
                await ask(caller, token)
            return
        await ask(caller, None)
        while time.perf_counter() < started + window.seconds:
            await ask(caller, None)

    await asyncio.gather(*(keep_asking(caller) for caller in callers))
    milliseconds.sort()
    return Outcome(
        requests=len(replies),
        tokens=sum(reply.tokens for reply in replies),
        pieces=sum(reply.pieces for reply in replies),
        wall_seconds=time.perf_counter() - started,
        p50_ms=statistics.median(milliseconds),
        p99_ms=milliseconds[int(len(milliseconds) * 0.99)],
        first_p50_ms=statistics.median(first_milliseconds),
    )


if __name__ == "__main__":
    asyncio.run(main())
