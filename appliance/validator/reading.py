"""Reading the facts of a GGUF from a descriptor.

Trusts: nothing about the bytes or where they came from.
Promises: the descriptor is read from its start and never a path; no more is read than a header may have.
Not here: what a sound header is (``core.gguf``).
"""

import os
from typing import Final

from appliance.core.gguf import MAX_HEADER_BYTES, NeedMore, parse_header
from appliance.core.values import GgufFacts

_FIRST_READ_BYTES: Final = 256 * 1024


def read_facts(fd: int) -> GgufFacts:
    """The facts of a GGUF's header. Raises ``GgufInvalid`` or ``OSError``."""
    file_bytes = os.fstat(fd).st_size
    try:
        return parse_header(_head(fd, _FIRST_READ_BYTES), file_bytes)
    except NeedMore:
        pass  # all that a header may have, at once: what was parsed is parsed again, but only once
    try:
        return parse_header(_head(fd, MAX_HEADER_BYTES), file_bytes)
    except NeedMore:
        raise OSError(0, "the file became shorter while its header was read") from None


def _head(fd: int, n_bytes: int) -> bytes:
    """The first ``n_bytes``, or all there are."""
    pieces: list[bytes] = []
    position = 0
    while piece := os.pread(fd, n_bytes - position, position):
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)
