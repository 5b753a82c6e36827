"""A caller over one keep-alive HTTP/1.1 connection. It knows just enough HTTP to find the end of an answer."""

import asyncio
import json
import re
import time

from bench.support.exchange import ASK_SECONDS, PROMPT, Reply, Window

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_PIECE = b'"delta":{"content":'


class HttpCaller(asyncio.Protocol):
    """``ask`` sends the same request each time and returns when its answer is complete."""

    def __init__(self, *, port: int, token: str, window: Window) -> None:
        body: dict[str, object] = {
            "model": window.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": window.max_tokens,
        }
        if window.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        self._head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer "
        self._rest = f"\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        self._token = token
        self._first_at = 0.0
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def connect(cls, *, port: int, token: str, window: Window) -> "HttpCaller":
        loop = asyncio.get_running_loop()
        _transport, caller = await loop.create_connection(
            lambda: cls(port=port, token=token, window=window), "127.0.0.1", port
        )
        return caller

    async def ask(self, token: str | None = None) -> Reply:
        """With this token in place of its own. Raises ``RuntimeError`` for anything but a 200 with a usage,
        ``TimeoutError`` when it takes too long."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._first_at = 0.0
        self._transport.write((self._head + (token or self._token)).encode() + self._rest)
        async with asyncio.timeout(ASK_SECONDS):
            answer = await self._answer
        tokens = _TOKENS.search(answer)
        if not answer.startswith(b"HTTP/1.1 200 ") or tokens is None:
            raise RuntimeError(f"not the answer that was asked for: {answer[:600]!r}")
        return Reply(tokens=int(tokens[1]), pieces=answer.count(_PIECE), first_at=self._first_at)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RuntimeError(f"the connection ended in an answer: {error}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._first_at and _has_begun(self._received):
            self._first_at = time.perf_counter()
        if self._answer is not None and not self._answer.done() and self._complete():
            answer, self._received = bytes(self._received), bytearray()
            self._answer.set_result(answer)

    def _complete(self) -> bool:
        if self._received.endswith(_LAST_CHUNK):
            return True
        end = self._received.find(b"\r\n\r\n")
        length = _LENGTH.search(self._received, 0, end) if end >= 0 else None
        return length is not None and len(self._received) >= end + 4 + int(length[1])


def _has_begun(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    return 0 <= end < len(answer) - 4
