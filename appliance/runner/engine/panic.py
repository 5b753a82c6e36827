"""The one way to give up: end the whole process at once, so that no half-dead runner keeps its channel open.

Trusts: nothing; it may be called from any thread, after the process has lost its file system.
Promises: never returns. One line on stderr names the kind of error and its place, never its text: a message could
quote a prompt.
Not here: what the gateway and the warden do when the channel breaks.
"""

import os
from typing import Final, NoReturn

EXIT_STATUS: Final = 73
_FRAMES: Final = 4


def end_process(error: BaseException) -> NoReturn:
    try:
        os.write(2, f"runner: {type(error).__name__} at {_place(error)}\n".encode())
    finally:
        os._exit(EXIT_STATUS)


def _place(error: BaseException) -> str:
    """The innermost calls, without the source lines that ``traceback`` would open files for."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-_FRAMES:])
