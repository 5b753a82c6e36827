"""GBNF as llama.cpp reads it: what is taken, what is refused, and where the text of a refusal points."""

import pytest

from appliance.runner.grammar.gbnf import GrammarInvalid, check
from appliance.runner.grammar.notation import Class, Group, Literal, Reference, Repeat, parse
from tests.support.grammar_texts import JSON, TAKEN, damaged
from tests.support.grammar_walk import Walk


@pytest.mark.parametrize("name", TAKEN)
def test_grammar_of_every_day_is_taken(name: str) -> None:
    check(TAKEN[name])


REFUSED = {
    "alternative on a line of its own": ('root ::= "a"\n | "b"', "line 2: expected a name"),
    "underscore in a name": ('root ::= a_b\na ::= "x"', "expected a name"),
    "unknown escape": (r'root ::= "\d"', "unknown escape"),
    "short escape": (r'root ::= "\x4"', "unknown escape"),
    "beyond unicode": (r'root ::= "\UFFFFFFFF"', "beyond Unicode"),
    "empty class": ("root ::= []", "a character class that is empty"),
    "empty negated class": ("root ::= [^]", "a character class that is empty"),
    "class without end": ("root ::= [a", "does not end"),
    "range backwards": ("root ::= [z-a]", "a range that runs backwards"),
    "nothing to repeat": ("root ::= *", "nothing to repeat"),
    "nothing to repeat in a group": ('root ::= ("a" | +)', "nothing to repeat"),
    "an empty literal repeated": ('root ::= ""+', "nothing to repeat"),
    "repeated repetition": ('root ::= "a"**', "repeats what may be empty"),
    "zero times": ('root ::= "a"{0}', "can never be, or is of nothing"),
    "no number": ('root ::= "a"{,3}', "expected a number"),
    "braces without end": ('root ::= "a"{3', "does not end"),
    "group without end": ('root ::= ("a"', "a group that does not end"),
    "group that was not begun": ('root ::= "a")', "expected the end of the line"),
    "empty group": ('root ::= "a" ()', "nothing but the empty text"),
    "no definition": ('root "a"', "expected ::="),
    "no name": ('::= "a"', "expected a name"),
    "two rules in a line": ('root ::= a b ::= "x"', "expected a name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_grammar_that_is_none_is_refused_with_its_place(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(GrammarInvalid, match=reason) as refused:
        check(text)
    assert refused.value.detail.isprintable()


def test_parts_of_a_rule_are_read_as_llama_cpp_reads_them() -> None:
    rules = parse('root ::= "ab"{2,3} [^a-c\\]x] (a | .)?\na ::= "" "\\u00e9"\n')
    assert list(rules) == ["root", "a"]
    repeat, klass, optional = rules["root"][0]
    assert repeat == Repeat(Literal("ab"), 2, 3)
    assert klass == Class(((97, 99), (93, 93), (120, 120)), True)
    assert optional == Repeat(Group(((Reference("a"),), (Class(((0, 0x10FFFF),), False),))), 0, 1)
    assert rules["a"] == ((Literal("\u00e9"),),)


def test_refusal_quotes_nothing_but_the_names_of_rules() -> None:
    with pytest.raises(GrammarInvalid) as refused:
        check('root ::= secret\nsecret ::= "\x1b[2J private text')
    assert "private" not in refused.value.detail
    assert refused.value.detail == "rule secret, line 2: a literal that does not end, or an unknown escape"


def test_json_example_accepts_json() -> None:
    walk = Walk(JSON)
    assert walk.accepts('{"a": [1, -2.5e+7, {"b": null}], "c": "\\u00e9"}')
    assert not walk.accepts('{"a": }')


def test_damaged_grammar_is_taken_or_refused_and_nothing_else() -> None:
    refused = 0
    for text in damaged(60):
        try:
            check(text)
        except GrammarInvalid as error:
            refused += 1
            assert error.detail.isprintable()
    assert 400 < refused < 1250
