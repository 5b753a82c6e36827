"""The embedded engine gives the answers of the vectors, always the same ones, and refuses what it cannot use."""

import asyncio
import importlib.util
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance.core.decide import input_document, judge
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.policy.embedded import DEFAULT_DATA, DEFAULT_POLICY, EmbeddedPolicy, policy_digest
from appliance.policy.wasm import DATA_LIMIT_BYTES, EVALUATION_FUEL, INPUT_LIMIT_BYTES

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "policy"
CASES = json.loads((VECTORS / "decisions.json").read_text())
WASM = DEFAULT_POLICY.read_bytes()
DATA = json.dumps(CASES[0]["data"]).encode()
PERMITTED = CASES[0]["input"]


def decide_anew(policy: EmbeddedPolicy, document: dict) -> Any:
    policy._kept_answer.cache_clear()
    return policy.decide(document)


def at(second: int) -> dict:
    return {**PERMITTED, "time": {**PERMITTED["time"], "unix_seconds": second}}


@pytest.fixture(scope="module")
def engines():
    """One engine for each data document of the vectors."""
    documents = {json.dumps(case["data"]).encode() for case in CASES}
    return {document: EmbeddedPolicy.load(WASM, document) for document in documents}


@pytest.fixture(scope="module")
def policy(engines):
    return engines[DATA]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_no_vector_is_answered_otherwise(engines, case):
    engine = engines[json.dumps(case["data"]).encode()]
    answer = asyncio.run(engine.evaluate(input_document(case["input"])))
    assert answer == case["answer"]
    decision = judge(answer, policy_digest=engine.policy_digest, input_digest=Digest.of(b""))
    assert decision.allow is case["answer"]["allow"]
    assert list(decision.reasons) == case["answer"]["reasons"]


def test_the_vectors_are_what_their_generator_writes():
    spec = importlib.util.spec_from_file_location("policy_vectors", VECTORS / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.document() == (VECTORS / "decisions.json").read_text()


def test_the_default_data_permits_nothing():
    policy = EmbeddedPolicy.load_files(DEFAULT_POLICY, DEFAULT_DATA)
    for case in CASES:
        assert policy.decide(case["input"])["allow"] is False


def test_nothing_of_one_evaluation_is_left_for_the_next(policy):
    same_data = [case for case in CASES if json.dumps(case["data"]).encode() == DATA] * 20
    random.shuffle(same_data)
    for case in same_data:
        assert decide_anew(policy, case["input"]) == case["answer"], case["name"]
    memory_before = policy._instance._memory.data_len(policy._instance._store)
    for case in same_data:
        decide_anew(policy, case["input"])
    assert policy._instance._memory.data_len(policy._instance._store) == memory_before


def test_threads_at_once_never_get_each_others_answer(policy):
    wrong = []
    denied = next(case for case in CASES if case["name"] == "no-groups")

    def ask(case):
        wrong.extend(answer for _ in range(150) if (answer := decide_anew(policy, case["input"])) != case["answer"])

    threads = [threading.Thread(target=ask, args=(case,)) for case in (CASES[0], denied) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


def test_an_ordinary_decision_needs_a_small_part_of_its_fuel(policy):
    decide_anew(policy, PERMITTED)
    assert policy._instance.fuel_left > EVALUATION_FUEL * 0.9


def test_a_caller_with_very_many_groups_is_still_answered(policy):
    groups = [f"group-{number}" for number in range(500)]
    answer = policy.decide({**PERMITTED, "principal": {**PERMITTED["principal"], "groups": [*groups, "staff"]}})
    assert answer["allow"] is True


def test_text_of_a_caller_is_only_text(policy):
    for text in ('x"}, "allow": true, {"', "\0", "\\", "\x7f", "\U0001f40e", "]" * 5000, "null", "data.groups"):
        principal = {**PERMITTED["principal"], "groups": [text]}
        assert policy.decide({**PERMITTED, "principal": principal})["reasons"] == ["no-group-permits-model"]


def test_an_input_that_is_too_large_or_no_json_is_a_fault_and_harms_nothing(policy):
    for document in ({"x": "y" * INPUT_LIMIT_BYTES}, {"x": object()}, {"x": "\ud800"}):
        with pytest.raises(Fault, match="policy input"):
            policy.decide(document)
    assert policy.decide(PERMITTED) == CASES[0]["answer"]


def test_an_input_that_fuel_does_not_suffice_for_is_a_fault_and_the_next_is_answered(policy):
    principal = {**PERMITTED["principal"], "groups": ["g"] * 40_000}
    with pytest.raises(Fault, match="fuel"):
        policy.decide({**PERMITTED, "principal": principal})
    assert policy.decide(PERMITTED) == CASES[0]["answer"]


def test_changed_data_keeps_the_compiled_rules_and_nothing_else_of_the_former_policy(policy):
    other = b'{"groups": {}, "closed": {"models": [], "subjects": []}}'
    fresh = EmbeddedPolicy.load(WASM, other, known=policy)
    assert fresh._module is policy._module
    assert fresh.policy_digest == policy_digest(WASM, other) != policy.policy_digest
    assert fresh.decide(PERMITTED)["allow"] is False
    assert policy.decide(PERMITTED)["allow"] is True


def test_changed_rules_are_never_taken_for_the_former_ones(policy):
    renamed = WASM + b"\x00\x05\x04note"
    assert EmbeddedPolicy.load(renamed, DATA, known=policy)._module is not policy._module
    with pytest.raises(Fault, match="not WebAssembly"):
        EmbeddedPolicy.load(WASM[1:], DATA, known=policy)


def test_the_digest_covers_module_and_data_and_their_boundary():
    assert policy_digest(b"ab", b"c") != policy_digest(b"a", b"bc")
    assert policy_digest(b"a", b"b") != policy_digest(b"b", b"a")
    expected = Digest.of(b"paddock policy v1\n" + len(WASM).to_bytes(8, "big") + WASM + DATA)
    policy = EmbeddedPolicy.load(WASM, DATA)
    assert policy.policy_digest == policy_digest(WASM, DATA) == expected
    assert policy.data_digest == Digest.of(DATA)


NO_EXECUTABLE_MEMORY = """
import ctypes, json, sys, time
import wasmtime
from appliance.core.refusals import Fault
from appliance.policy.embedded import DEFAULT_POLICY, EmbeddedPolicy

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
case = json.load(sys.stdin)
policy = EmbeddedPolicy.load(DEFAULT_POLICY.read_bytes(), json.dumps(case["data"]).encode())
assert policy.decide(case["input"]) == case["answer"]
principal = {**case["input"]["principal"], "groups": ["g"] * 40_000}
start = time.perf_counter()
try:
    policy.decide({**case["input"], "principal": principal})
except Fault as fault:
    assert "fuel" in fault.detail, fault
    print(time.perf_counter() - start)
"""


def test_a_process_that_may_not_make_memory_executable_decides_all_the_same():
    """What systemd's MemoryDenyWriteExecute does to the gateway, by the kernel's own switch for it."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_EXECUTABLE_MEMORY],
        input=json.dumps(CASES[0]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (it came with Linux 6.3)")
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not strict JSON"),
        (b"{", "not strict JSON"),
        (b'{"groups": {}, "groups": {}}', "a key occurs twice"),
        (b'{"groups": {"a": {"models": [], "models": ["*"]}}}', "a key occurs twice"),
        (b'{"x": NaN}', "NaN and Infinity are not JSON"),
        (b'{"x": -Infinity}', "NaN and Infinity are not JSON"),
        (b'{"x": "\xff"}', "not strict JSON"),
        (b"\xef\xbb\xbf{}", "not strict JSON"),
        (b'{"x": "\\ud800"}', "not strict JSON"),
        (b"[" * 100_000, "not strict JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"paddock": {"decision": {"allow": true}}}', "must not define paddock"),
        (b" " * (DATA_LIMIT_BYTES + 1), "more than"),
    ],
)
def test_data_that_could_mean_two_things_or_nothing_is_refused(data, problem):
    with pytest.raises(Fault, match=problem):
        EmbeddedPolicy.load(WASM, data)


def test_a_missing_policy_is_a_fault_that_names_the_file(tmp_path):
    with pytest.raises(Fault, match=r"no-such\.wasm"):
        EmbeddedPolicy.load_files(tmp_path / "no-such.wasm", DEFAULT_DATA)
    with pytest.raises(Fault, match=r"no-such\.json"):
        EmbeddedPolicy.load_files(DEFAULT_POLICY, tmp_path / "no-such.json")


@pytest.mark.parametrize(
    "wasm",
    [
        b"",
        b"package paddock",
        b"(module)",
        b"\0asm",
        WASM[:-1],
        WASM[: len(WASM) // 2],
        WASM + b"\0",
        b"\0asm" * 2_000_000,
    ],
)
def test_bytes_that_are_no_policy_are_refused(wasm):
    with pytest.raises(Fault, match="the policy module"):
        EmbeddedPolicy.load(wasm, DATA)


def test_a_kept_answer_is_given_to_no_other_input_not_even_a_second_later(monkeypatch):
    policy = EmbeddedPolicy.load(WASM, DATA)
    asked = []
    evaluate = policy._instance.evaluate
    monkeypatch.setattr(policy._instance, "evaluate", lambda document: asked.append(document) or evaluate(document))
    assert policy.decide(at(1)) == policy.decide(at(1)) == CASES[0]["answer"]
    assert len(asked) == 1
    policy.decide(at(2))
    stranger = {**at(1), "principal": {**PERMITTED["principal"], "groups": []}}
    assert policy.decide(stranger)["allow"] is False
    assert len(asked) == len(set(asked)) == 3


def test_what_a_caller_does_to_its_answer_changes_no_later_one(policy):
    answer = policy.decide(at(3))
    answer["allow"] = False
    answer["reasons"].append("more")
    assert policy.decide(at(3)) == CASES[0]["answer"]


def test_a_failure_is_not_kept(monkeypatch):
    policy = EmbeddedPolicy.load(WASM, DATA)
    monkeypatch.setattr("appliance.policy.wasm.EVALUATION_FUEL", 10)
    with pytest.raises(Fault, match="fuel"):
        policy.decide(at(1))
    monkeypatch.undo()
    assert policy.decide(at(1)) == CASES[0]["answer"]


def test_kept_answers_have_a_bound_and_large_inputs_are_not_kept(policy):
    for second in range(400):
        policy.decide(at(second))
    before = policy._kept_answer.cache_info()
    assert before.currsize == before.maxsize == 256
    for _ in range(2):
        policy.decide({**at(1), "more": "x" * 10_000})
    assert policy._kept_answer.cache_info() == before
