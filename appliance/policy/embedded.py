"""The policy engine that needs nothing else running: Rego, compiled to WebAssembly, evaluated in this process.

A decision takes about a tenth of a millisecond and is bounded in time and memory (``wasm.py``), so it runs on the
caller's thread. One instance serves one thread at a time, behind a lock. An instance that failed is thrown away with
all its memory and the next request gets a fresh one; nothing of a failure outlives it.

A module without built-ins has no clock, no chance and no state of its own between evaluations, so that the same input
bytes, which name the second, always get the same answer. The last answers are therefore kept with the policy that gave
them, by the whole input.

Trusts: the caller for bytes that the operator meant; ``wasm.py`` for isolation.
Promises: the raw answer of the policy whose digest it names, or ``Fault``; without a usable policy it does not exist.
Not here: judging the answer (``core.decide``); where the bytes come from (``assemble``).
"""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.core.codec import canonical_json
from appliance.core.decide import input_document
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.policy.documents import strict_json
from appliance.policy.wasm import ANSWER_LIMIT_BYTES, DATA_LIMIT_BYTES, PolicyModule

ENTRYPOINT: Final = "paddock/decision"
DEFAULT_POLICY: Final = Path(__file__).resolve().parent.parent / "data" / "policy" / "policy.wasm"
DEFAULT_DATA: Final = DEFAULT_POLICY.with_name("data.json")

_KEPT_ANSWERS: Final = 256
_KEPT_INPUT_BYTES: Final = 8 * 1024
"""Of an input whose answer is kept: far more than most are, and the memory for all has a bound."""

# The package that holds the rules: data of that name would stand where a rule's answer belongs.
_RULES_PACKAGE: Final = "paddock"


class EmbeddedPolicy:
    """``core.ports.PolicyEngine`` over one module and one data document. Make one with ``load``."""

    def __init__(self, module: PolicyModule, data: bytes, *, wasm: bytes) -> None:
        self._module = module
        self._wasm = wasm
        self._data = data
        self._digest = policy_digest(wasm, data)
        self._data_digest = Digest.of(data)
        self._lock = threading.Lock()
        self._instance = module.instantiate(data)
        self._kept_answer = lru_cache(_KEPT_ANSWERS)(self._evaluate)  # an exception is not kept

    @classmethod
    def load(cls, wasm: bytes, data: bytes, known: "EmbeddedPolicy | None" = None) -> "EmbeddedPolicy":
        """Module bytes and data bytes (a JSON object) -> a policy that is ready to decide.

        When ``known`` has the same rules, its compiled module serves again: a process that may no longer make machine
        code keeps what it has for a change of the data, which is the common one.

        Raises ``Fault`` when either cannot be used completely; the gateway then does not start.
        """
        document = strict_json(data, what="the policy data", limit_bytes=DATA_LIMIT_BYTES)
        if not isinstance(document, dict):
            raise Fault("the policy data is not a JSON object")
        if _RULES_PACKAGE in document:
            raise Fault(f"the policy data must not define {_RULES_PACKAGE}, where the rules are")
        module = known._module if known and known._wasm == wasm else PolicyModule(wasm, ENTRYPOINT)
        return cls(module, data, wasm=wasm)

    @classmethod
    def load_files(
        cls, wasm_path: Path = DEFAULT_POLICY, data_path: Path = DEFAULT_DATA, known: "EmbeddedPolicy | None" = None
    ) -> "EmbeddedPolicy":
        """``load`` from files. Raises ``Fault`` when one cannot be read."""
        try:
            wasm, data = wasm_path.read_bytes(), data_path.read_bytes()
        except OSError as problem:
            raise Fault(f"the policy cannot be read: {problem}") from None
        return cls.load(wasm, data, known)

    @property
    def data(self) -> bytes:
        """The data document in use, as it was loaded."""
        return self._data

    @property
    def policy_digest(self) -> Digest:
        """``policy_digest`` of the module and data in use."""
        return self._digest

    @property
    def data_digest(self) -> Digest:
        """SHA-256 of the data document alone, so that a log tells a changed list from a changed rule."""
        return self._data_digest

    async def evaluate(self, document: bytes) -> Any:
        """Input as JSON -> the value of the decision rule, unjudged; None when undefined. Raises ``Fault``."""
        return self._answer(document)

    def decide(self, policy_input: dict[str, Any]) -> Any:
        """``evaluate`` for callers without an event loop, of a document that is not written yet."""
        return self._answer(input_document(policy_input))

    def _answer(self, document: bytes) -> Any:
        kept = len(document) <= _KEPT_INPUT_BYTES
        answer = self._kept_answer(document) if kept else self._evaluate(document)
        return None if answer is None else msgspec.json.decode(answer)

    def _evaluate(self, document: bytes) -> bytes | None:
        """The value of the decision rule as JSON; None when undefined. Raises ``Fault``."""
        with self._lock:
            if self._instance.broken:
                self._instance = self._module.instantiate(self._data)
            answer = self._instance.evaluate(document)
        return _only_result(answer)


def policy_digest(wasm: bytes, data: bytes) -> Digest:
    """What a decision is recorded against: SHA-256 over a label, the module's length, the module and the data.

    ``"paddock policy v1\\n" || length of module, 8 bytes big-endian || module || data``. The label keeps this digest
    apart from every other use of SHA-256, the length keeps the boundary between the two files in its place.
    """
    return Digest.of(b"paddock policy v1\n" + len(wasm).to_bytes(8, "big") + wasm + data)


def _only_result(answer: bytes) -> bytes | None:
    """OPA's result set, ``[{"result": value}]``, or ``[]`` when undefined -> value, as JSON, or None. Raises
    ``Fault``."""
    results = strict_json(answer, what="the policy's answer", limit_bytes=ANSWER_LIMIT_BYTES)
    if results == []:
        return None
    match results:
        case [{"result": value, **rest}] if not rest:
            return canonical_json(value)
    raise Fault("the policy's answer is not a result set")


__all__ = ["DEFAULT_DATA", "DEFAULT_POLICY", "ENTRYPOINT", "EmbeddedPolicy", "policy_digest"]
