"""A process of its own that a notary hears: ``python -I notary_peer.py``, one order a line on stdin.

``hello SOCKET ROLE`` greets over a new connection and prints "heard" once the notary has written a record for it, or
"refused"; ``token SOCKET`` prints "token" or "refused"; ``open SOCKET`` connects without a word, and ``use`` asks for a
token over that connection.
"""

import socket
import sys

from appliance.core.records import ModelRefused, PolicyLoaded, encode_record
from appliance.core.values import Digest
from appliance.ipc.frames import FrameDecoder, encode
from appliance.ipc.messages import (
    Append,
    Appended,
    FromNotary,
    FromNotaryAdmin,
    Hello,
    IssueToken,
    Revoked,
    TokenSigned,
)

LIMIT_SECONDS = 30
QUESTION = IssueToken(call=1, subject="root-of-all", client_id="c", groups=("staff",), models=("*",), ttl_seconds=60)
RECORDS = {
    "gateway": PolicyLoaded(policy_digest=Digest.of(b"p"), data_digest=Digest.of(b"d")),
    "warden": ModelRefused(name="m", digest=None, reason="unsigned", detail=""),
}
kept: list[socket.socket] = []


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(LIMIT_SECONDS)
    sock.connect(path)
    kept.append(sock)
    return sock


def token(sock: socket.socket) -> str:
    sock.send(encode(QUESTION))
    data = sock.recv(65536)
    answer = FrameDecoder[FromNotaryAdmin](FromNotaryAdmin).decode(data) if data else None
    return "token" if isinstance(answer, TokenSigned) else "refused"


def hello(sock: socket.socket, role: str) -> str:
    try:
        sock.send(encode(Hello(role=role, open_requests=())))  # type: ignore[arg-type]
        sock.send(encode(Append(call=1, record=encode_record(RECORDS[role]), durable=True)))
        answers = heard(sock)
        while answers and isinstance(answers[-1], Revoked):
            answers = heard(sock)
    except (BrokenPipeError, ConnectionResetError):
        return "refused"
    return "heard" if answers and isinstance(answers[-1], Appended) else "refused"


def heard(sock: socket.socket) -> tuple[FromNotary, ...]:
    """Of one frame; nothing when the notary has closed."""
    data = sock.recv(65536)
    return FrameDecoder[FromNotary](FromNotary).decode_all(data) if data else ()


for line in sys.stdin:
    order, *words = line.split()
    if order == "hello":
        said = hello(connected(words[0]), words[1])
    elif order == "token":
        said = token(connected(words[0]))
    elif order == "open":
        connected(words[0])
        said = "open"
    else:
        said = token(kept[-1] if not words else kept[int(words[0])])
    print(said, flush=True)
