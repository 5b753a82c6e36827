"""Grammars that end llama.cpp: by its stack, its memory or its time. Each is refused before llama.cpp sees it.

The first three are those that were found to kill a process when the engine was measured; the others were found in
llama.cpp's source. The issue names the time: a refusal within 100 ms, here as processor time.
"""

import json
import time

import pytest

from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.notation import MAX_ITEMS, MAX_RULES
from appliance.runner.grammar.schema import SchemaInvalid, to_gbnf

LIMIT_SECONDS = 0.1


def chain(rules: int, body: str) -> str:
    """``body`` speaks of the next rule as ``%s``."""
    return "".join(f"r{n} ::= {body.replace('%s', f'r{n + 1}')}\n" for n in range(rules)) + f'r{rules} ::= "z"\n'


KILLERS = {
    "100,000 nested brackets": ("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "more than 131072 bytes"),
    "nested brackets within the size": ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested deeper than 32"),
    "100,000 chained rules": ("root ::= r0\n" + chain(100_000, "%s"), "more than 131072 bytes"),
    "chained rules within the size": ("root ::= r0\n" + chain(5000, "%s"), f"more than {MAX_RULES} rules"),
    "chain of rules that are walked at once": ("root ::= r0\n" + chain(500, "%s"), "leaves more than 256 ways open"),
    "character class of 100 kB": ("root ::= [" + "ab" * 50_000 + "]", "more than 64 ranges"),
    "classes side by side": ("root ::= " + " | ".join(["[" + "ab" * 32 + "]"] * 20), "ways open after the same text"),
    "repetition times repetition": ('root ::= ("a"{1,1900}){1,1900}', "more than 2000 rules"),
    "repetition of a large literal": ('root ::= "' + "a" * 60_000 + '"{2000}', "more than 65536 elements"),
    "repetition that ends before it starts": ('root ::= "a"{5,3}', "a repetition that can never be"),
    "repetition made endless in silence": ('root ::= "a"{0,3000}', "a repetition of more than 2000"),
    "stacks that double with every letter": (
        'root ::= "a" root "x" | "a" root "y" | "b"',
        "its alternatives begin alike",
    ),
    "the same through other rules": (
        'root ::= s\ns ::= t s u | "b"\nt ::= "a" | "aa" | "ac"\nu ::= "a" s "x" | "c" s "y"',
        "refers back to itself",
    ),
    "a pile of what may be empty": ('root ::= "a" root? "b"?', "one part may begin as the part before it goes on"),
    "a pile of what is empty": ('e ::= ""\nroot ::= "a" root e | "b"', "nothing but the empty text"),
    "left recursion": ('root ::= root "a" | "b"', "rule root can begin with itself"),
    "left recursion through rules": ('root ::= a "x"\na ::= b | "y"\nb ::= root', "can begin with itself"),
    "left recursion that llama.cpp does not see": (
        'root ::= e root "x" | "y"\ne ::= f\nf ::= "z"?',
        "rule root can begin with itself",
    ),
    "repetition of what may be empty": ('root ::= a*\na ::= b\nb ::= "x"?', "repeats what may be empty"),
    "diamonds that are walked twice at each level": (
        "root ::= r0\n" + chain(40, "%s | %s"),
        "leaves more than|ways open after the same text",
    ),
    "diamonds with different ends": (
        "root ::= r0\n" + chain(40, '%s "x" | %s "y"'),
        "leaves more than|ways open after the same text",
    ),
    "ways that double with every character of a token": (
        'root ::= ("a" | [a-z])* "!"',
        "ways through the same text|ways open after the same text",
    ),
    "ways that double with every few characters": (
        'root ::= ("=" | "=" "-"?)* "!"',
        "leaves more than 256 ways through the same text",
    ),
    "ways that double in a recursion": (
        'root ::= "(" s ")"\ns ::= t s | "x"\nt ::= "a" | "a" "b"?',
        "refers back to itself, and leaves",
    ),
    "blanks beside blanks, four times": ("root ::= [ ]* [ ]* [ ]* [ ]* [a]", "ways through the same text"),
    "places that stay open": ("root ::= [a]{0,2000} [a]{0,2000}", "ways open after the same text"),
    "alternatives without end": ("root ::= " + " | ".join(['"a"'] * 2300), "leaves more than|ways open after"),
    "a token by its number": ("root ::= <[1]>", "a token reference"),
    "a token by its name": ("root ::= <|im_end|>", "a token reference"),
    "any token but one": ("root ::= !<[1]>", "a token reference"),
    "names of 100 kB": ("root ::= " + "a" * 100_000, "a name of more than 64 characters"),
    "a zero byte": ('root ::= "a"\0(((', "a zero byte"),
    "nothing": ("", "there is no rule named root"),
    "no root": ('a ::= "x"', "there is no rule named root"),
    "a rule that is not there": ("root ::= other", "rule other is used and not given"),
    "a rule twice": ('root ::= "a"\nroot ::= root', "rule root is given twice"),
    "a literal without end": ('root ::= "' + "\\\\" * 30_000, "a literal that does not end"),
    "quotes without end": ("root ::= " + '"' * 65_001, f"more than {MAX_ITEMS} items"),
    "a lone surrogate": ('root ::= "\ud800"', "a lone surrogate"),
}


def processor_seconds(refuse: type[Exception], reason: str, call: object, text: str) -> float:
    start = time.thread_time()
    with pytest.raises(refuse, match=reason):
        call(text)  # type: ignore[operator]
    return time.thread_time() - start


@pytest.mark.parametrize("name", KILLERS)
def test_grammar_that_would_end_the_runner_is_refused_at_once(name: str) -> None:
    text, reason = KILLERS[name]
    seconds = min(processor_seconds(GrammarInvalid, reason, check, text) for _attempt in range(3))
    assert seconds < LIMIT_SECONDS


LARGE = {
    "rules": "root ::= r0\n" + "".join(f'r{n} ::= "a"\n' for n in range(MAX_RULES - 1)),
    "items": "root ::= " + "r " * (MAX_ITEMS - 1) + '\nr ::= "a"',
    "alternatives": "root ::= " + " | ".join(f'"{n:05}"' for n in range(240)),
    "comments": 'root ::= "a"\n' + "# x\n" * 30_000,
    "chain": "root ::= r0\n" + chain(550, '"a" %s | "b" %s'),
    "tangle": "root ::= r0\n"
    + "".join(f'r{n} ::= "a" r{(7 * n + 1) % 350} | "b" r{(3 * n + 2) % 350} | "c"\n' for n in range(350)),
}


@pytest.mark.parametrize("name", LARGE)
def test_largest_grammar_is_judged_within_the_time(name: str) -> None:
    seconds = []
    for _attempt in range(3):
        start = time.thread_time()
        check(LARGE[name])
        seconds.append(time.thread_time() - start)
    assert min(seconds) < LIMIT_SECONDS


SCHEMAS = {
    "too large": ('"' + "a" * 70_000 + '"', "more than 65536 bytes"),
    "nested arrays": ("[" * 60_000, "nested deeper than 40"),
    "nested properties": ('{"properties":{"a":' * 30 + "{}" + "}}" * 30, "nested deeper than 40"),
    "a reference to itself": ('{"$ref":"#"}', "can begin with itself"),
    "references in a ring": (
        '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
        "can begin with itself",
    ),
    "a ring of allOf": (
        '{"$defs":{"a":{"allOf":[{"$ref":"#/$defs/b"}]},"b":{"allOf":[{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}',
        "leads to itself",
    ),
    "schemas that double with each reference": (
        json.dumps(
            {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(25)} | {"d25": {}},
                "$ref": "#/$defs/d0",
            }
        ),
        "leads to itself|too many|more than",
    ),
    "arrays of arrays of counts": (
        json.dumps({"type": "array", "maxItems": 2000, "items": {"type": "string", "maxLength": 2001}}),
        "maxLength over 2000",
    ),
    "a pattern that grows": (json.dumps({"pattern": f"^{'(' * 12}a{'{1,1900})' * 12}$"}), "repetition|quantifier"),
    "a pattern without end": (json.dumps({"pattern": f"^{'a' * 60_000}$"}), "more than 1000 characters"),
    "names without end beside others": (
        json.dumps({"properties": {"a" * 5000: {}}, "additionalProperties": True}),
        "a long property name",
    ),
    "too many properties": (
        json.dumps({"properties": {f"p{n}": {"maxLength": n + 1} for n in range(1900)}}),
        "its grammar",
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_that_would_burst_is_refused_at_once(name: str) -> None:
    text, reason = SCHEMAS[name]
    seconds = min(processor_seconds(SchemaInvalid, reason, to_gbnf, text) for _attempt in range(3))
    assert seconds < LIMIT_SECONDS
