"""The policy held against OPA itself: its tests, its style, its compiled form, and the same answer to every vector."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from appliance.core.decide import ALLOW_REASONS, DENY_REASONS
from appliance.core.refusals import Fault
from appliance.policy.embedded import DEFAULT_POLICY, EmbeddedPolicy

ROOT = Path(__file__).resolve().parents[3]
POLICIES = ROOT / "policies"
CASES = json.loads((ROOT / "tests" / "vectors" / "policy" / "decisions.json").read_text())
TIME_LIMIT_SECONDS = 60

pytestmark = pytest.mark.opa


def run(*command, cwd=POLICIES):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False)


def compiled(build_policy, opa, directory, rego):
    (directory / "own.rego").write_text(rego)
    return build_policy.build(opa, directory)


def test_no_rule_is_untested(opa):
    result = run(opa, "test", "--coverage", "--format", "json", ".")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    uncovered = {name: lines["not_covered"] for name, lines in report["files"].items() if lines.get("not_covered")}
    assert uncovered == {}
    assert report["coverage"] == 100


def test_no_rule_fails_opas_strict_check(opa):
    result = run(opa, "check", "--strict", ".")
    assert (result.returncode, result.stderr) == (0, "")


def test_no_file_is_formatted_otherwise(opa):
    assert run(opa, "fmt", "--list", ".").stdout == ""


def test_the_committed_module_is_what_the_rules_compile_to(pinned_opa, build_policy):
    assert build_policy.build(pinned_opa) == DEFAULT_POLICY.read_bytes()


def test_the_module_does_not_depend_on_where_it_is_built(pinned_opa, build_policy, tmp_path):
    elsewhere = tmp_path / "some" / "where"
    shutil.copytree(POLICIES, elsewhere)
    assert build_policy.build(pinned_opa, elsewhere) == DEFAULT_POLICY.read_bytes()


def test_opa_gives_no_other_answer_to_any_vector(opa, tmp_path):
    rules = [name for name in sorted(POLICIES.glob("*.rego")) if not name.name.endswith("_test.rego")]
    by_data = {}
    for case in CASES:
        by_data.setdefault(json.dumps(case["data"]), []).append(case)
    for number, (data, cases) in enumerate(by_data.items()):
        # All inputs of one data document in one query: starting opa takes longer than all its answers.
        questions = tmp_path / f"{number}.json"
        questions.write_text(json.dumps({**json.loads(data), "questions": [case["input"] for case in cases]}))
        query = "[answer | some question in data.questions; answer := data.paddock.decision with input as question]"
        sources = [option for name in (*rules, questions) for option in ("--data", str(name))]
        result = run(opa, "eval", "--strict-builtin-errors", "--format", "json", *sources, query)
        assert result.returncode == 0, result.stdout + result.stderr
        answers = json.loads(result.stdout)["result"][0]["expressions"][0]["value"]
        assert answers == [case["answer"] for case in cases]


def test_no_rule_gives_a_reason_outside_the_closed_list():
    given = set()
    for source in POLICIES.glob("*.rego"):
        if not source.name.endswith("_test.rego"):
            given |= set(re.findall(r'deny contains "([^"]+)"', source.read_text()))
            given |= {
                word
                for words in re.findall(r'"reasons": \[([^\]]*)\]', source.read_text())
                for word in re.findall(r'"([^"]+)"', words)
            }
    assert len(given) == 12
    assert given <= ALLOW_REASONS | DENY_REASONS


def test_a_policy_that_would_reach_out_is_refused_at_load_and_not_at_night(opa, build_policy, tmp_path):
    rego = """package paddock
        default decision := {"allow": false}
        decision := {"allow": true} if not http.send({"method": "get", "url": "https://example.com"}).status_code == 403
    """
    with pytest.raises(Fault, match=r"built-ins that are not provided: http\.send"):
        EmbeddedPolicy.load(compiled(build_policy, opa, tmp_path, rego), b"{}")


def test_a_policy_without_the_rule_does_not_compile(opa, build_policy, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        compiled(build_policy, opa, tmp_path, "package paddock\nother := 1\n")


def test_a_rule_without_a_default_is_undefined_and_says_so(opa, build_policy, tmp_path):
    rego = 'package paddock\ndecision := {"allow": true} if input.magic == "word"\n'
    policy = EmbeddedPolicy.load(compiled(build_policy, opa, tmp_path, rego), b"{}")
    assert policy.decide({}) is None
    assert policy.decide({"magic": "word"}) == {"allow": True}


def test_a_conflict_between_rules_is_a_fault(opa, build_policy, tmp_path):
    rego = "package paddock\ndecision := 1 if input.a\ndecision := 2 if input.b\n"
    policy = EmbeddedPolicy.load(compiled(build_policy, opa, tmp_path, rego), b"{}")
    with pytest.raises(Fault, match="aborted"):
        policy.decide({"a": True, "b": True})
    assert policy.decide({"a": True}) == 1


@pytest.mark.parametrize(
    "decision",
    [
        "count(numbers.range(1, 100000000))",
        "count([x | a := numbers.range(1, 3000); some b in a; some c in a; x := b * c])",
        'count(concat("", [t | some i in numbers.range(1, 100000); t := input.text]))',
    ],
    ids=["one-huge-list", "product", "long-text"],
)
def test_a_bomb_in_rego_is_a_fault_in_a_moment(opa, build_policy, tmp_path, decision):
    wasm = compiled(build_policy, opa, tmp_path, f"package paddock\ndecision := {decision}\n")
    policy = EmbeddedPolicy.load(wasm, b"{}")
    start = time.perf_counter()
    with pytest.raises(Fault):
        policy.decide({"text": "x" * 1000})
    assert time.perf_counter() - start < 0.3
