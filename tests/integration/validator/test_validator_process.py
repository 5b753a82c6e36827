"""The validator's process: shut in, bounded, and nothing that it does or fails to do gets a model in."""

import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import appliance
from appliance.core.gguf import GgufInvalid
from appliance.core.refusals import Fault
from appliance.core.values import GgufFacts
from appliance.ipc.validation import MAX_ANSWER_BYTES, decode_answer
from appliance.models.store import ModelStore
from appliance.validator.reading import read_facts
from appliance.warden import validate
from appliance.warden.starter_client import Starter
from appliance.warden.validate import WALL_SECONDS, SandboxedValidator
from tests.support.gguf_files import small_model, small_model_bytes
from tests.support.live_runner import children, starter_of
from tests.support.signed_models import TRUSTED, memory_file, signed

DEMO = Path(appliance.__file__).parent / "data" / "paddock-demo.gguf"
LIMIT_SECONDS = 30.0


@contextmanager
def opened(data: bytes) -> Iterator[int]:
    fd = memory_file(data)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def validator() -> Iterator[SandboxedValidator]:
    """The real one; skips where this host lacks a layer."""
    with Starter() as starter:
        one = SandboxedValidator(starter)
        try:
            with opened(small_model_bytes()) as fd:
                one(fd)
        except Fault as fault:
            if "cannot judge on this host" not in str(fault):
                raise
            pytest.skip(str(fault))
        yield one


def standing_in(program: str, wall_seconds: float = WALL_SECONDS) -> Callable[[int], GgufFacts]:
    """Another program where the validator should be."""
    return started_as((sys.executable, "-I", "-B", "-c", program), wall_seconds)


def started_as(command: tuple[str, ...], wall_seconds: float = WALL_SECONDS) -> Callable[[int], GgufFacts]:
    def judge(fd: int) -> GgufFacts:
        with starter_of(validator=command) as starter:
            return SandboxedValidator(starter, wall_seconds=wall_seconds)(fd)

    return judge


def reason_of(one: Callable[[int], GgufFacts], data: bytes = b"GGUF") -> str:
    with opened(data) as fd, pytest.raises(GgufInvalid) as caught:
        one(fd)
    return caught.value.reason


# --- the real one -----------------------------------------------------------------------------------------------------


def test_facts_are_those_that_are_read_here(validator: SandboxedValidator) -> None:
    with DEMO.open("rb") as file:
        assert validator(file.fileno()) == read_facts(file.fileno())


def test_malformed_header_is_refused_with_its_reason(validator: SandboxedValidator) -> None:
    assert reason_of(validator, b"") == "gguf-truncated"
    assert reason_of(validator, small_model_bytes() + b"\0") == "gguf-trailing-bytes"


def test_descriptor_stays_where_it_was(validator: SandboxedValidator) -> None:
    with opened(small_model_bytes()) as fd:
        os.lseek(fd, 7, os.SEEK_SET)
        validator(fd)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_largest_header_fits_its_memory(validator: SandboxedValidator) -> None:
    gguf = small_model()
    gguf.put("x", 9, (8).to_bytes(4, "little") + (800_000).to_bytes(8, "little") + b"\3\0\0\0\0\0\0\0abc" * 800_000)
    with opened(gguf.build()) as fd:
        assert validator(fd).header_bytes > 8_000_000


def test_nothing_is_left_open_or_running(validator: SandboxedValidator) -> None:
    with opened(small_model_bytes()) as fd:
        before = os.listdir("/proc/self/fd")
        validator(fd)
        reason_of(validator)
        assert os.listdir("/proc/self/fd") == before
    assert children(validator._starter.pid) == []


def test_cost_of_a_process_is_small(validator: SandboxedValidator) -> None:
    took = []
    with opened(small_model_bytes()) as fd:
        for _ in range(5):
            start = time.perf_counter()
            validator(fd)
            took.append(1000 * (time.perf_counter() - start))
    print(f"the validator's process adds {statistics.median(took):.0f} ms to an import or a load")
    assert statistics.median(took) < 3000


def test_store_asks_it_at_import_and_at_every_opening(validator: SandboxedValidator, tmp_path: Path) -> None:
    data = small_model_bytes()
    asked = []

    def counting(fd: int) -> object:
        asked.append(fd)
        return validator(fd)

    with ModelStore.open(tmp_path / "store", facts_of=counting) as store, opened(data) as fd:  # type: ignore[arg-type]
        assert store.import_model(fd, "demo", signed(data), TRUSTED).facts.name == "small"
        assert len(asked) == 1
        store.open_verified("demo", TRUSTED).close()
        assert len(asked) == 2


def test_process_that_opens_a_store_gives_it_this_validator() -> None:
    """The default reads headers in place; only tests may use it."""
    sources = {path: path.read_text() for path in Path(appliance.__file__).parent.rglob("*.py")}
    opening = [path.name for path, source in sources.items() if "ModelStore.open(" in source]
    assert opening == ["model_store.py"]


# --- what a file could make of it -------------------------------------------------------------------------------------

SHUT_IN = """
import os, sys
from appliance.validator import main, reading
def taken_over(fd):
    {payload}
main.read_facts = taken_over
main.main([])
"""
ATTEMPTS = {
    "open a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "open its own memory": "os.open('/proc/self/mem', os.O_RDWR)",
    "write to the model": "os.write(0, b'x')",
    "write at a place of the model": "os.pwrite(0, b'x', 0)",
    "cut the model": "os.ftruncate(0, 0)",
    "write to stderr": "os.write(2, b'x')",
    "start a process": "os.fork()",
    "become another program": "os.execv('/bin/true', ['true'])",
    "make a memory file": "os.memfd_create('x')",
    "kill its parent": "os.kill(os.getppid(), 9)",
    "duplicate the pipe": "os.dup(1)",
    "make a pipe": "os.pipe()",
    "read what is not the model": "os.pread(1, 1, 0)",
    "read its folder": "os.listdir('.')",
    "make executable memory": "__import__('mmap').mmap(-1, 4096, prot=7)",
    "listen": "__import__('_socket').socket()",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_validator_that_was_taken_over_dies_at_once(validator: SandboxedValidator, attempt: str) -> None:
    del validator  # skips where a layer is missing
    program = "import mmap, _socket\n" + SHUT_IN.format(payload=ATTEMPTS[attempt])
    with opened(small_model_bytes()) as fd, pytest.raises(GgufInvalid) as caught:
        standing_in(program)(fd)
    assert caught.value.reason == "gguf-validator-died"
    assert "SIGSYS" in caught.value.detail


def test_validator_that_takes_much_memory_refuses(validator: SandboxedValidator) -> None:
    del validator
    assert reason_of(standing_in(SHUT_IN.format(payload="bytes(2**30)"))) == "gguf-memory"


def test_missing_layer_is_a_fault_and_not_a_verdict() -> None:
    """The filter's file is gone: the file must not be judged without it."""
    program = "from appliance.sandbox import seccomp\nfrom pathlib import Path\nseccomp._FOLDER = Path('/nowhere')\n"
    program += "from appliance.validator.main import main\nmain([])"
    with opened(small_model_bytes()) as fd, pytest.raises(Fault, match="cannot judge"):
        standing_in(program)(fd)


# --- what the warden makes of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV", "SIGXCPU"])
def test_validator_that_dies_refuses_the_file(number: str) -> None:
    program = f"import os, resource, signal; resource.setrlimit(4, (0, 0)); os.kill(os.getpid(), signal.{number})"
    assert reason_of(standing_in(program)) == "gguf-validator-died"


def test_validator_that_answers_and_then_dies_refuses_the_file() -> None:
    program = "import os; os.write(1, b'{}'); os.kill(os.getpid(), 9)"
    assert reason_of(standing_in(program)) == "gguf-validator-died"


def test_validator_that_the_host_ends_says_nothing_of_the_file() -> None:
    """systemd stops a unit by SIGTERM to all of its processes."""
    with opened(b"GGUF") as fd, pytest.raises(Fault, match="told to end"):
        standing_in("import os; os.kill(os.getpid(), 15)")(fd)


def test_starter_that_is_stopped_says_nothing_of_the_file() -> None:
    with starter_of() as starter, opened(b"GGUF") as fd:
        os.kill(starter.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Fault, match="the starter does not answer"):
                SandboxedValidator(starter, wall_seconds=0.2)(fd)
        finally:
            os.kill(starter.pid, signal.SIGCONT)


@pytest.mark.parametrize("then", ["", "; time.sleep(600)"], ids=["and it ends", "and it hangs"])
def test_starter_that_is_stopped_later_says_nothing_of_the_file(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_KILLED_SECONDS", 0.2)
    program = f"import os, time; os.kill(os.getppid(), {int(signal.SIGSTOP)}){then}"
    with starter_of(validator=(sys.executable, "-I", "-B", "-c", program)) as starter, opened(b"GGUF") as fd:
        try:
            with pytest.raises(Fault, match="the starter does not"):
                SandboxedValidator(starter, wall_seconds=1.0)(fd)
        finally:
            os.kill(starter.pid, signal.SIGCONT)


def test_validator_that_hangs_is_killed() -> None:
    start = time.monotonic()
    assert reason_of(standing_in("import time; time.sleep(600)", wall_seconds=0.5)) == "gguf-validator-overrun"
    assert time.monotonic() - start < LIMIT_SECONDS


def test_validator_that_closes_its_pipe_and_stays_is_killed() -> None:
    program = "import os, time; os.write(1, b'{}'); os.close(1); time.sleep(600)"
    assert reason_of(standing_in(program, wall_seconds=0.5)) == "gguf-validator-overrun"


def test_validator_that_trickles_is_killed() -> None:
    program = "import os, time\nwhile True: os.write(1, b' '); time.sleep(0.01)"
    assert reason_of(standing_in(program, wall_seconds=0.5)) == "gguf-validator-overrun"


def test_validator_that_babbles_is_killed() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason_of(standing_in("import os\nwhile True: os.write(1, bytes(65536))")) == "gguf-validator-overrun"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"type":"facts"}',
        b'{"type":"facts","facts":{}}',
        b'{"type":"invalid","reason":"x\\u001b[2J","detail":""}',
        b'{"type":"invalid","reason":"gguf-x","detail":""} ',
        b'{"type":"invalid","reason":"gguf-x","detail":"","detail":"again","more":1}',
    ],
)
def test_answer_that_is_not_one_is_a_fault(said: bytes) -> None:
    with opened(b"GGUF") as fd:
        try:
            standing_in(f"import os; os.write(1, {said!r})")(fd)
        except GgufInvalid as error:
            assert said.endswith(b" ") and error.reason == "gguf-x"  # JSON may end in space; it is still a refusal
        except Fault:
            pass
        else:
            raise AssertionError("accepted")


def test_answer_that_is_too_long_is_no_answer() -> None:
    with pytest.raises(ValueError, match="too long"):
        decode_answer(json.dumps({"type": "incapable", "detail": "x"}).encode() + b" " * MAX_ANSWER_BYTES)


def test_validator_that_cannot_be_started_is_a_fault() -> None:
    with opened(b"GGUF") as fd, pytest.raises(Fault, match="cannot be started"):
        started_as(("/nowhere/python",))(fd)
    with opened(b"GGUF") as fd, pytest.raises(Fault, match="status 3"):
        standing_in("import os; os._exit(3)")(fd)
