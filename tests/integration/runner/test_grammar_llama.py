"""What the grammar room lets through, given to llama.cpp itself in a process that may die of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.runner.grammar.ambiguity import MAX_PIECE_CHARACTERS, MAX_UNDECIDED
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.notation import MAX_CLASS_RANGES, MAX_NESTING, MAX_REPETITIONS
from appliance.runner.grammar.schema import json_object_gbnf, to_gbnf
from tests.support.chain_model import chain_model
from tests.support.grammar_texts import TAKEN, damaged

ROOT = Path(__file__).parents[3]
CASES = json.loads((ROOT / "tests/vectors/json-schema/schemas.json").read_text(encoding="utf-8"))
SCRIPT = "a" * (MAX_PIECE_CHARACTERS - 1) + '- {"b": 1, ["c" null}, true "d": [] {}'
"""A vocabulary with tokens that cross the borders of JSON's own, and one that is refused only at its very end, as often
as there are ways to read what comes before."""
STEP_SECONDS = 0.1


def child(what: str, given: list[Any], *, model: Path | None = None) -> list[Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.grammar_child", str(model or chain_model(SCRIPT, dim=32)), what],
        input=json.dumps(given),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, f"{result.returncode} {result.stderr[-2000:]}"
    found: list[Any] = json.loads(result.stdout)
    return found


def test_model_writes_a_valid_answer_for_every_schema() -> None:
    texts = child("answers", [to_gbnf(json.dumps(case["schema"])) for case in CASES])
    for case, text in zip(CASES, texts, strict=True):
        assert text, f"{case['name']}: no answer came to its end"
        kind = jsonschema.validators.validator_for(case["schema"], default=jsonschema.Draft202012Validator)
        kind(case["schema"]).validate(json.loads(text))


def test_model_writes_objects_in_json_mode() -> None:
    for text in child("answers", [json_object_gbnf()] * 3):
        assert isinstance(json.loads(text), dict)


def nested(depth: int) -> str:
    return "(" * depth + '"a"' + ")" * depth


UNDECIDED = MAX_UNDECIDED - 10
BORDER = {
    "groups": (f"root ::= {nested(MAX_NESTING)}", "a"),
    "chain": ("root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(240)) + 'r240 ::= "a"', "a"),
    "class": ("root ::= [" + "".join(chr(0x100 + 2 * n) for n in range(MAX_CLASS_RANGES - 1)) + "a]*", "a" * 50),
    "repetition": (f'root ::= "a"{{{MAX_REPETITIONS}}}', "a" * 100),
    "optional repetition": (f"root ::= [a]{{0,{MAX_REPETITIONS}}}", "a" * 100),
    "elements": (f'root ::= "{"a" * 32}"{{{MAX_REPETITIONS}}}', "a" * 100),
    "alternatives": ("root ::= (" + " | ".join(f'"a{n:04}"' for n in range(120)) + ")*", "a0001" * 5),
    "undecided": (f"root ::= [a]{{0,{UNDECIDED}}} [a]{{0,{UNDECIDED // 2}}}", "a" * UNDECIDED),
    "undecided literals": ("root ::= (" + " | ".join(f'"{"a" * n}"' for n in range(1, 13)) + ') [a]* "!"', "a" * 60),
    "undecided words": ('root ::= [a-z]+ [a-z0-9]* [a-f]* "!"', "a" * 60),
    "deep stack": ('root ::= "[" root "]" | "a"', "[" * 400 + "a" + "]" * 400),
    "deep json": (json_object_gbnf(), '{"a":' * 150 + "1" + "}" * 150),
    "wide rules": (
        "root ::= r0\n" + "".join(f'r{n} ::= "a" r{n + 1} | "b"\n' for n in range(550)) + 'r550 ::= "c"',
        "a" * 99,
    ),
}


@pytest.fixture(scope="module")
def border() -> dict[str, dict[str, float]]:
    """One process for all: a slow one would stop them all, and each is told from the others by name."""
    for grammar, _text in BORDER.values():
        check(grammar)
    return dict(zip(BORDER, child("steps", list(BORDER.values())), strict=True))


@pytest.mark.parametrize("name", BORDER)
def test_grammar_at_the_bounds_costs_no_long_step_and_little_memory(
    border: dict[str, dict[str, float]], name: str
) -> None:
    assert border[name]["slowest"] < STEP_SECONDS
    assert border[name]["grown"] < 32 * 2**20


def test_what_is_let_through_is_never_refused_by_llama_cpp() -> None:
    """Grammars as people write them, and damaged ones that pass for all that."""
    taken = list(TAKEN.values())
    for text in damaged(150):
        try:
            check(text)
        except GrammarInvalid:
            continue
        taken.append(text)
    assert len(taken) > 100
    child("steps", [(text, "") for text in taken])


def test_grammar_just_beyond_the_bounds_is_refused() -> None:
    for beyond in (
        f"root ::= {nested(MAX_NESTING + 1)}",
        f'root ::= "a"{{{MAX_REPETITIONS + 1}}}',
        f"root ::= [a]{{0,{MAX_UNDECIDED}}} [a]{{0,{MAX_UNDECIDED}}}",
    ):
        with pytest.raises(GrammarInvalid):
            check(beyond)
