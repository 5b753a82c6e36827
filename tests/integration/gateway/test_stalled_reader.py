"""A caller who asks for much and reads nothing takes little memory of the gateway, and nothing of the others' time."""

import json
import socket
from pathlib import Path

from appliance.core.records import Closed
from tests.support.appliance import GROUP, TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model, long_script

MIB = 2**20
CHOICES, TOKENS = 16, 2000
CONFIG = """
[limits]
principal_requests_per_minute = 10000
address_requests_per_minute = 10000
[models]
threads = 1
[model.chain]
slots = 18
context_tokens = 4096
"""


def resident_bytes(pid: int) -> int:
    """Of a process and those that it has started."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(status[status.index("VmRSS:") :].split()[1]) + sum(map(resident_bytes, map(int, children)))


def ask_and_read_nothing(server: TestAppliance) -> socket.socket:
    asked = chat_body(
        stream=True, n=CHOICES, max_tokens=TOKENS, ignore_eos=True, logprobs=True, top_logprobs=20, temperature=0
    )
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Authorization: Bearer {server.token('stalled')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(head.encode() + body)
    return sock


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(MIB):
        data += piece
    return bytes(data)


def cut_short(server: TestAppliance) -> list[Closed]:
    return [record for record in server.records(Closed) if "reader-too-slow" in record.detail]


def test_stalled_reader_of_a_large_answer_is_cut_short_and_holds_nobody_up(tmp_path: Path) -> None:
    with appliance(tmp_path, {"chain": chain_model(long_script(300))}, CONFIG) as server:
        server.write_policy_data(
            {"groups": {GROUP: {"models": ["*"], "max_tokens": 100_000}}, "metrics": {"groups": ["watch"]}}
        )
        other = server.token("other")
        server.wait_until(lambda: server.chat(other, max_tokens=1).status == 200, "a loaded model")
        pid = server.pid_of("gateway")
        before = resident_bytes(pid)
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, resident_bytes(pid))
            assert server.chat(other, max_tokens=1).status == 200
            page = server.request("GET", "/metrics", token=server.token("prometheus", ("watch",))).body.decode()
            return any(line.endswith(f"}} {CHOICES}") for line in page.splitlines() if "_cancelled_total{" in line)

        with ask_and_read_nothing(server) as sock:
            server.wait_until(ended, "the answer was stopped")
            assert most - before < 48 * MIB
            said = read_all(sock)
        events = [line for line in said.split(b"\n") if line.startswith(b"data: ")]
        assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "reader-too-slow"
        assert b"[DONE]" not in said
        server.wait_until(lambda: cut_short(server) != [], "the record")
        [cut] = cut_short(server)
    assert cut.outcome == "cancelled"
    assert 0 < cut.completion_tokens < CHOICES * TOKENS, "paid for as far as it went"
