"""llama.cpp's C interface: the low-level ctypes module, its log, and a handle for short calls.

``llama_cpp/__init__`` imports the high-level package, which brings disk caches, HTTP and pickling into the process;
only ``llama_cpp.llama_cpp`` is loaded here, below a bare package module.

Trusts: the installed llama_cpp package.
Promises: ``llama`` is the low-level module with its back end initialised; nothing of llama.cpp writes to stderr
except an abort.
Not here: checks of arguments. llama.cpp aborts or worse on bad ones; each caller checks its own (``engine.model``).
"""

import ctypes
import importlib
import importlib.util
import os
import sys
from collections import deque
from typing import Any, Final

from appliance.core.text import printable

_LOG_LINES: Final = 12
_WARNING, _ERROR = 3, 4  # as in ggml.h; the binding's own logger has other numbers, which are wrong
_MAX_DETAIL: Final = 1000


def _load_low_level() -> Any:
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama_cpp is not installed")
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)  # made, not executed
    return importlib.import_module("llama_cpp.llama_cpp")


llama: Final = _load_low_level()
libc: Final = ctypes.CDLL(None, use_errno=True)
libc.fdopen.argtypes, libc.fdopen.restype = [ctypes.c_int, ctypes.c_char_p], ctypes.c_void_p
libc.fclose.argtypes, libc.fclose.restype = [ctypes.c_void_p], ctypes.c_int

_log: deque[str] = deque(maxlen=_LOG_LINES)
_short_calls: Final = ctypes.PyDLL(None, handle=llama._lib._handle)


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_line(level: int, text: bytes | None, _user_data: int | None) -> None:
    if text and level in {_WARNING, _ERROR}:
        _log.append(text[:400].decode("utf-8", "replace"))


llama.llama_log_set(_keep_line, None)
llama.llama_backend_init()


def recent_log() -> str:
    """llama.cpp's last warnings and errors on one line, at most 1,000 characters. It may quote the model: unprintable
    characters are replaced, since the text ends in an operator's terminal."""
    text = " ".join("".join(_log).split())
    return printable(text)[-_MAX_DETAIL:]


def short_call(name: str) -> Any:
    """A C function to be called with the GIL held: for calls of a few microseconds, which would otherwise hand the
    GIL to the other thread twice per token."""
    function = _short_calls[name]
    template = getattr(llama, name)
    function.argtypes, function.restype = template.argtypes, template.restype
    return function


def open_stream(descriptor: int) -> Any:
    """A ``FILE*`` over a duplicate of a descriptor, at its present offset. Raises ``OSError``."""
    duplicate = os.dup(descriptor)
    stream = libc.fdopen(duplicate, b"rb")
    if not stream:
        os.close(duplicate)
        raise OSError(ctypes.get_errno(), "fdopen failed")
    return stream
