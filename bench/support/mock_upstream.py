"""The upstream of a peer that proxies: a tiny server of OpenAI's chat route that says as many tokens as are asked for.

Started as ``python -m bench.support.mock_upstream``; says its port on stdout and ends with its stdin. A streamed token
comes every ``PACE_SECONDS``, whole answers come at once.
"""

import asyncio
import json
import sys
from typing import Any, Final

import httptools

PACE_SECONDS: Final = 0.005


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._body:  # the proxy looks for other routes when it starts
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        request = json.loads(self._body)
        if request.get("stream"):
            self._streaming = asyncio.get_running_loop().create_task(self._stream(request))
        else:
            self._transport.write(_whole(request))

    async def _stream(self, request: dict[str, Any]) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head + _event(_object(request, "chunk", [_choice("delta", {"role": "assistant"}, None)])))
        for number in range(request["max_tokens"]):
            await asyncio.sleep(PACE_SECONDS)
            self._transport.write(
                _event(_object(request, "chunk", [_choice("delta", {"content": f"w{number} "}, None)]))
            )
        last = _event(_object(request, "chunk", [_choice("delta", {}, "length")]))
        usage = _event({**_object(request, "chunk", []), "usage": _usage(request)})
        self._transport.write(last + usage + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _whole(request: dict[str, Any]) -> bytes:
    text = " ".join(f"w{number}" for number in range(request["max_tokens"]))
    message = _choice("message", {"role": "assistant", "content": text}, "length")
    body = json.dumps({**_object(request, "completion", [message]), "usage": _usage(request)}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _object(request: dict[str, Any], kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    name = "chat.completion" if kind == "completion" else "chat.completion.chunk"
    return {"id": "chatcmpl-1", "object": name, "created": 1, "model": request["model"], "choices": choices}


def _choice(field: str, said: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, field: said, "finish_reason": reason}


def _usage(request: dict[str, Any]) -> dict[str, int]:
    tokens = request["max_tokens"]
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}


def _event(document: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(document).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
