"""The host of a policy compiled by OPA to WebAssembly: OPA's documented Wasm ABI, version 1.2 and later, on wasmtime.

https://www.openpolicyagent.org/docs/wasm describes the ABI. The module gets a memory and two kinds of function: one
to abort with and five through which it could ask the host for built-ins. We offer no built-in, so a module that names
one is refused when it is loaded; OPA's own answer, "undefined when it is called", would turn ``not`` into an allow.

A module can neither hang nor grow:

* *fuel* bounds the instructions of each call, and hence its time, because instructions whose cost depends on an
  operand (bulk memory) are switched off and a module that uses them does not compile;
* *memory*, tables and stack are capped, and growing beyond the cap fails inside the module;
* every other WebAssembly proposal that OPA's compiler does not use is off.

Trusts: wasmtime's isolation; that the operator meant these bytes (their digest is in every decision).
Promises: each call ends, with the answer's text or with ``Fault``; an instance that failed is marked ``broken``.
Not here: what the answer means (``core.decide``); signatures of policies (``policy.bundle``).
"""

import logging
from typing import Any, Final

import wasmtime

from appliance.core.refusals import Fault
from appliance.policy.documents import strict_json

log = logging.getLogger(__name__)

MODULE_LIMIT_BYTES: Final = 4 * 1024 * 1024
DATA_LIMIT_BYTES: Final = 1024 * 1024
INPUT_LIMIT_BYTES: Final = 256 * 1024
ANSWER_LIMIT_BYTES: Final = 64 * 1024

_PAGE_BYTES: Final = 64 * 1024
_MEMORY_PAGES: Final = 512
_MEMORY_BYTES: Final = _MEMORY_PAGES * _PAGE_BYTES
_STACK_BYTES: Final = 512 * 1024
_TABLE_ELEMENTS: Final = 10_000
# The default policy takes about 0.1 million units to decide; ten million are over in some tens of milliseconds.
EVALUATION_FUEL: Final = 10_000_000
# Loading parses up to DATA_LIMIT_BYTES of data, once, before anything is served.
LOADING_FUEL: Final = 1_000_000_000

_BUILTIN_CALLS: Final = ("opa_builtin0", "opa_builtin1", "opa_builtin2", "opa_builtin3", "opa_builtin4")

_i32: Final = wasmtime.Val.i32
"""wasmtime asks an argument that says its type one question, and a bare integer one for each type that it could be:
two thirds of what a call costs."""
_ADDRESS_OF_NOTHING: Final = _i32(0)
_JSON_FORMAT: Final = _i32(0)


class PolicyModule:
    """A compiled and checked module; the immutable half, from which instances are made."""

    def __init__(self, wasm: bytes, entrypoint: str) -> None:
        """Raises ``Fault`` when the bytes are not a policy that this host can run completely."""
        if len(wasm) > MODULE_LIMIT_BYTES:
            raise Fault(f"the policy module is {len(wasm)} bytes long, more than {MODULE_LIMIT_BYTES}")
        if not wasm.startswith(b"\0asm"):  # wasmtime would compile the text format too
            raise Fault("the policy module is not WebAssembly")
        self._engine = _engine()
        try:
            self._module = wasmtime.Module(self._engine, wasm)
        except wasmtime.WasmtimeError as problem:
            raise Fault(f"the policy module does not compile: {_first_line(problem)}") from None
        probe = Instance(self._engine, self._module)
        probe.check_abi()
        needed = probe.table("builtins")
        if needed:
            raise Fault(f"the policy needs built-ins that are not provided: {', '.join(sorted(needed))}")
        entrypoints = probe.table("entrypoints")
        if entrypoint not in entrypoints:
            raise Fault(f"the policy has no entrypoint {entrypoint}")
        self._entrypoint = entrypoints[entrypoint]

    def instantiate(self, data: bytes) -> "Instance":
        """A fresh instance that has parsed the data document. Raises ``Fault``."""
        instance = Instance(self._engine, self._module)
        instance.load_data(data, self._entrypoint)
        return instance


class Instance:
    """One instance and its memory. Not for two threads at once; useless after a ``Fault`` (``broken``)."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module) -> None:
        self.broken = False
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=_MEMORY_BYTES, table_elements=_TABLE_ELEMENTS, instances=1, tables=4, memories=1
        )
        self._store.set_fuel(LOADING_FUEL)
        try:
            self._memory = _memory(self._store, module)
            imports = [_import(self._store, wanted, self._memory) for wanted in module.imports]
            exports = wasmtime.Instance(self._store, module, imports).exports(self._store)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as problem:
            raise Fault(f"the policy module cannot be instantiated: {_first_line(problem)}") from None
        self._exports = {name: exports[name] for name in _EXPORTS if name in exports}
        missing = [name for name in _EXPORTS if name not in self._exports]
        if missing:
            raise Fault(f"the policy module lacks {', '.join(missing)}")
        self._entrypoint = self._data_address = self._heap_start = _i32(0)
        self._heap = 0

    def check_abi(self) -> None:
        """Raises ``Fault`` unless the module speaks ABI 1.2 or a later 1.x, the first with ``opa_eval``."""
        major, minor = (self._exports[name] for name in ("opa_wasm_abi_version", "opa_wasm_abi_minor_version"))
        if not isinstance(major, wasmtime.Global) or not isinstance(minor, wasmtime.Global):
            raise Fault("the policy module does not state its ABI version")
        version = (major.value(self._store), minor.value(self._store))
        if version[0] != 1 or version[1] < 2:
            raise Fault(f"the policy module speaks ABI {version[0]}.{version[1]}, not 1.2 or later")

    def table(self, export: str) -> dict[str, int]:
        """The module's ``builtins`` or ``entrypoints``: names -> numbers. Raises ``Fault``."""
        address = self._call("opa_json_dump", _i32(self._call(export)))
        table = strict_json(self._text(address, ANSWER_LIMIT_BYTES), what=export, limit_bytes=ANSWER_LIMIT_BYTES)
        if not isinstance(table, dict) or not all(type(number) is int for number in table.values()):
            raise Fault(f"the policy module's {export} are not a table")
        return table

    def load_data(self, data: bytes, entrypoint: int) -> None:
        """Parses the data document into the module's memory, where it stays. Raises ``Fault``."""
        self._store.set_fuel(LOADING_FUEL)
        address = self._call("opa_malloc", _i32(len(data)))
        self._write(address, data)
        data_address = self._call("opa_json_parse", _i32(address), _i32(len(data)))
        if data_address == 0:
            raise self._failed("the policy module cannot parse its data")
        self._data_address, self._entrypoint = _i32(data_address), _i32(entrypoint)
        self._heap = _aligned(self._call("opa_heap_ptr_get"))
        self._heap_start = _i32(self._heap)

    def evaluate(self, input_document: bytes) -> bytes:
        """Input JSON -> the result set as JSON text. Raises ``Fault``.

        The input is written where the heap ended after loading and the heap starts again behind it, so that nothing of
        one evaluation is left for the next.
        """
        if self.broken:
            raise Fault("the policy instance has failed before")
        if len(input_document) > INPUT_LIMIT_BYTES:
            raise Fault(f"the policy input is {len(input_document)} bytes long, more than {INPUT_LIMIT_BYTES}")
        self._store.set_fuel(EVALUATION_FUEL)
        heap = _aligned(self._heap + len(input_document))
        self._make_room(heap)
        self._write(self._heap, input_document)
        address = self._call(
            "opa_eval",
            _ADDRESS_OF_NOTHING,
            self._entrypoint,
            self._data_address,
            self._heap_start,
            _i32(len(input_document)),
            _i32(heap),
            _JSON_FORMAT,
        )
        return self._text(address, ANSWER_LIMIT_BYTES)

    @property
    def fuel_left(self) -> int:
        """Fuel that the last call did not use."""
        return self._store.get_fuel()

    def _call(self, export: str, *arguments: wasmtime.Val) -> int:
        function = self._exports[export]
        if not isinstance(function, wasmtime.Func):
            raise self._failed(f"the policy module's {export} is not a function")
        try:
            result = function(self._store, *arguments)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as problem:
            raise self._failed(f"the policy failed in {export}: {_first_line(problem)}") from None
        except Fault as aborted:
            raise self._failed(aborted.detail) from None
        if type(result) is not int:
            raise self._failed(f"the policy module's {export} gave no number")
        return result & 0xFFFFFFFF  # i32 arrives signed, addresses are not

    def _make_room(self, end: int) -> None:
        missing = end - self._memory.data_len(self._store)
        if missing <= 0:
            return
        try:
            self._memory.grow(self._store, -(-missing // _PAGE_BYTES))
        except wasmtime.WasmtimeError:
            raise self._failed("the policy has no memory left for its input") from None

    def _write(self, address: int, document: bytes) -> None:
        if address == 0 or address + len(document) > self._memory.data_len(self._store):
            raise self._failed("the policy module gave an address outside its memory")
        self._memory.write(self._store, bytearray(document), address)

    def _text(self, address: int, limit_bytes: int) -> bytes:
        """The zero-terminated text at an address, which the module chose: wherever it points, it is bounded."""
        for length in (min(1024, limit_bytes), limit_bytes):
            text = self._memory.read(self._store, address, address + length + 1)
            end = text.find(0)
            if end >= 0:
                return bytes(text[:end])
        raise self._failed(f"the policy's answer is longer than {limit_bytes} bytes or outside its memory")

    def _failed(self, detail: str) -> Fault:
        self.broken = True
        return Fault(detail)


_EXPORTS: Final = (
    "opa_wasm_abi_version",
    "opa_wasm_abi_minor_version",
    "builtins",
    "entrypoints",
    "opa_json_dump",
    "opa_json_parse",
    "opa_malloc",
    "opa_heap_ptr_get",
    "opa_eval",
)


# (module (func)): the least that has machine code.
_SMALLEST_FUNCTION: Final = bytes.fromhex("0061736d 01000000 010401600000 03020100 0a040102000b")


def _engine() -> wasmtime.Engine:
    """Machine code where the process may make memory executable, wasmtime's interpreter where it may not.

    A unit with ``MemoryDenyWriteExecute=yes`` is such a place, and a gateway that has fenced itself in. The limits and
    the answers are the same, the interpreter takes about six times as long (0.6 ms for the default policy).
    """
    native = wasmtime.Engine(_config())
    try:
        wasmtime.Module(native, _SMALLEST_FUNCTION)
    except wasmtime.WasmtimeError:
        interpreted = _config()
        interpreted.target = "pulley64"
        log.info("these rules are interpreted, since this process may not make machine code")
        return wasmtime.Engine(interpreted)
    return native


def _config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.max_wasm_stack = _STACK_BYTES
    config.parallel_compilation = False  # a pool of idle threads is a high price for a tenth of a second
    config.memory_reservation = _MEMORY_BYTES
    config.memory_reservation_for_growth = 0
    config.memory_guard_size = _PAGE_BYTES
    config.memory_may_move = False
    config.wasm_bulk_memory = False
    config.wasm_simd = False
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.wasm_tail_call = False
    config.wasm_exceptions = False
    config.wasm_gc = False
    config.wasm_function_references = False
    return config


def _memory(store: wasmtime.Store, module: wasmtime.Module) -> wasmtime.Memory:
    """The memory that the module imports, at its own smallest size and our largest."""
    for wanted in module.imports:
        kind = wanted.type
        if isinstance(kind, wasmtime.MemoryType):
            smallest = kind.limits.min
            if smallest > _MEMORY_PAGES:
                raise Fault(f"the policy module wants {smallest} pages of memory, more than {_MEMORY_PAGES}")
            return wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(smallest, _MEMORY_PAGES)))
    raise Fault("the policy module imports no memory, so it was not made by OPA")


def _import(store: wasmtime.Store, wanted: wasmtime.ImportType, memory: wasmtime.Memory) -> Any:
    kind = wanted.type
    if wanted.module == "env" and wanted.name == "memory" and isinstance(kind, wasmtime.MemoryType):
        return memory
    if wanted.module == "env" and isinstance(kind, wasmtime.FuncType):
        if wanted.name == "opa_abort":
            return wasmtime.Func(store, kind, _abort, access_caller=True)
        if wanted.name == "opa_println":
            return wasmtime.Func(store, kind, _discard)
        if wanted.name in _BUILTIN_CALLS:
            return wasmtime.Func(store, kind, _no_builtin)
    raise Fault(f"the policy module imports {wanted.module}.{wanted.name}, which is not provided")


# These functions hold no reference to a store: wasmtime keeps them until the store dies, which it then never would.


def _abort(caller: wasmtime.Caller, address: int) -> None:
    memory = caller.get("memory")
    text = b""
    if isinstance(memory, wasmtime.Memory):
        start = address & 0xFFFFFFFF
        text = bytes(memory.read(caller, start, start + 200)).split(b"\0", 1)[0]
    raise Fault(f"the policy aborted: {text.decode('utf-8', 'replace')!a}")


def _discard(*_: int) -> None:
    """``opa_println``: a policy does not write to our output."""


def _no_builtin(*_: int) -> int:
    raise Fault("the policy called a built-in that is not provided")


def _aligned(address: int) -> int:
    return (address + 7) & ~7


def _first_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__
