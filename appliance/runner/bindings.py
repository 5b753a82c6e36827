"""Everything the runner will ever import. After this module the process may lose its file system.

Importing it has these effects, all of them before the sandbox: llama.cpp's libraries and numpy are loaded, the counter
and the epoll of the channel exist (``channel.prepare``), and the interpreter offers the GIL every half millisecond, so
that the engine thread never waits long for the thread that writes answers.

The launcher sets ``OMP_WAIT_POLICY=passive`` and ``OPENBLAS_NUM_THREADS=1`` before: both libraries read them when
they are loaded.

Trusts: the installed packages.
Promises: rendering, tokenising, decoding, sampling and framing need no further import.
Not here: the sandbox (``sandbox``), the order of start (``runner.main``).
"""

import codecs
import sys
from typing import Final

import jinja2.debug  # noqa: F401  imported by Jinja at its first error
import numpy.ma  # noqa: F401  imported by numpy at the first call of unique

from appliance.runner import channel
from appliance.runner.engine.engine import Engine, LoadError
from appliance.runner.engine.load import load_engine

__all__ = ["Engine", "LoadError", "load_engine"]

SWITCH_INTERVAL_SECONDS: Final = 0.0005

sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
for _name in ("utf-8", "ascii", "latin-1", "unicode-escape"):
    codecs.lookup(_name)
channel.prepare()
