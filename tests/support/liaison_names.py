"""Behind the liaison's fence, in a network namespace of its own: are names resolved, and which ports can be reached?

``python -I -B liaison_names.py``, with ``/etc/resolv.conf`` naming 127.0.0.1. Prints what came of each attempt.
"""

import asyncio
import ctypes
import errno
import json
import os
import socket
import struct
from collections.abc import Callable

from appliance import assemble, issuers, settings

ISSUER = {
    "issuer": "https://idp.example",
    "audiences": ["llm"],
    "ca_file": "/nonexistent",
    "jwks_uri": "https://idp.example:8443/keys",
    "algorithms": ["ES256"],
}
CONFIG = settings.parse({"state_dir": "/nonexistent", "issuer": {"idp": ISSUER}})
ADDRESS = "127.0.0.9"
IPPROTO_MPTCP = 262
LIBC = ctypes.CDLL(None, use_errno=True)


def answer_questions(server: socket.socket) -> None:
    """A name server that knows one address for every name (RFC 1035 section 4)."""
    while True:
        question, client = server.recvfrom(512)
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack_from("!H", question, end - 4)
        found = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(ADDRESS) if kind == 1 else b""
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(found), 0, 0)
        server.sendto(head + question[12:end] + found, client)


async def attempts() -> dict[str, object]:
    issuers.load_resolver(CONFIG)
    assemble.fence("liaison", CONFIG)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo("another.example", 443, type=socket.SOCK_STREAM)
    outcomes: dict[str, object] = {"address": found[0][4][0]}
    for port in (8443, 443, 80):
        with socket.socket() as sock:
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, (ADDRESS, port))
            except OSError as error:
                outcomes[str(port)] = errno.errorcode[error.errno or 0]
    outcomes["80 by another protocol"] = outcome(connect_by_multipath)
    outcomes["80 without a connect"] = outcome(send_with_fast_open)
    return outcomes


def outcome(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "came through"


def connect_by_multipath() -> None:
    """Landlock knows the ports of TCP, and MPTCP is another protocol."""
    with socket.socket(proto=IPPROTO_MPTCP) as sock:
        sock.connect((ADDRESS, 80))


def send_with_fast_open() -> None:
    """It connects without ``connect``, which is where Landlock looks at the port."""
    address = ctypes.create_string_buffer(struct.pack("=HH4s8x", 2, socket.htons(80), socket.inet_aton(ADDRESS)))
    data = ctypes.create_string_buffer(b"x")
    piece = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(data), 1))
    header = struct.pack("@PI4xPNPNiI4x", ctypes.addressof(address), 16, ctypes.addressof(piece), 1, 0, 0, 0, 0)
    headers = ctypes.create_string_buffer(header)
    with socket.socket() as sock:
        if LIBC.sendmmsg(sock.fileno(), headers, 1, socket.MSG_FASTOPEN) < 0:
            raise OSError(ctypes.get_errno(), "sendmmsg")


server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
if os.fork() == 0:  # it ends with the namespace's first process, which this one is
    answer_questions(server)
print(json.dumps(asyncio.run(attempts())))
