"""The validator's process: builds the sandbox around itself, reads one header, answers once, ends.

The parser is Python and pure; this is for the day when that is not enough. Between the file's first byte and the answer
the process can read descriptor 0, write to descriptor 1, get memory and end; 30 s of CPU and 512 MiB are its most.

Trusts: the installed package until the first byte is read; afterwards nothing.
Promises: one answer, of ``ipc.validation``, or none; it never outlives its parent.
Not here: starting it, the wall clock and what a missing answer means (``warden.validate``).
"""

import argparse
import os
import resource
import sys
from typing import Final, Never

from appliance.core.gguf import GgufInvalid
from appliance.ipc.validation import Answer, Facts, Incapable, Invalid, encode_answer
from appliance.sandbox import layers, seccomp
from appliance.sandbox.bpf import PolicyError
from appliance.validator.reading import read_facts

CPU_SECONDS: Final = 30
MEMORY_BYTES: Final = 512 * 1024 * 1024

_MODEL_FD: Final = 0
_ANSWER_FD: Final = 1


def main(arguments: list[str]) -> Never:
    """Never returns and never runs Python's shutdown, which would make calls that the filter kills for."""
    status = 1
    try:
        _tell(_answer(arguments))
        status = 0
    finally:
        os._exit(status)


def _answer(arguments: list[str]) -> Answer:
    parser = argparse.ArgumentParser(prog="appliance.validator", allow_abbrev=False)
    parser.add_argument("--degraded", default="")
    stack = layers.Stack(frozenset(filter(None, parser.parse_args(arguments).degraded.split(","))))
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    try:
        program = seccomp.prepare_validator()
        layers.leave_host(stack)  # its pid namespace is for children, of which the filter allows none
        layers.die_with_parent()
        sys.meta_path.clear()
        layers.shut_in(stack)
        stack.require()
    except (PolicyError, layers.LayerMissing) as error:
        return Incapable(detail=str(error)[:2000])
    seccomp.install(program)
    try:
        return Facts(facts=read_facts(_MODEL_FD))
    except GgufInvalid as error:
        return Invalid(reason=error.reason, detail=error.detail[:2000])
    except MemoryError:
        return Invalid(reason="gguf-memory", detail="judging the header takes too much memory")
    except OSError as error:
        return Incapable(detail=f"the file cannot be read: {error}")


def _limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, value))


def _tell(answer: Answer) -> None:
    data = encode_answer(answer)
    while data:
        data = data[os.write(_ANSWER_FD, data) :]
