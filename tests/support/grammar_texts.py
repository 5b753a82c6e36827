"""Grammars as people write them, and the same with something wrong."""

import random
from collections.abc import Iterator

JSON = r"""# JSON, as most examples have it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

TAKEN = {
    "json": JSON,
    "list": 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"',
    "expression": 'root ::= term ([-+*/] term)*\nterm ::= [0-9]+ | "(" root ")"',
    "yes or no": 'root ::= "yes" | "no"',
    "alike at first": 'root ::= "true" | "tree" | "two"',
    "optional parts": 'root ::= "a" ("b" "c"?)? "d"',
    "windows lines": 'root ::= a\r\na ::= "x"\r\n',
    "old mac lines": 'root ::= a\ra ::= "x"',
    "comments": '# before\nroot ::= # after\n "a" # at the end\n# last',
    "group over lines": 'root ::= (\n "a"\n | "b" # why\n )',
    "alternative on the next line after the bar": 'root ::= "a" |\n "b"',
    "any character": 'root ::= .{1,5} "\\n"',
    "escapes": r'root ::= "\t\r\n\\\"\[\]\-\x41\u00e9\U0001F600"',
    "class with a dash at its end": "root ::= [a-]",
    "class with brackets": r"root ::= [\[\]]",
    "names": "root ::= -a-1\n-a-1 ::= 0\n0 ::= [x]",
    "empty alternative": 'root ::= "a" (| "b")',
    "bounded blanks": 'root ::= "a"{2} "b"{2,} "c"{ 2 , 4 }',
    "unused rule": 'root ::= "a"\nother ::= "b"',
    "tail recursion": 'root ::= "a" root | "b"',
    "words": 'root ::= word (" " word)* "."\nword ::= [A-Za-z]+',
}


def damaged(times: int, seed: int = 7) -> Iterator[str]:
    """Each of them so often with up to four characters replaced."""
    chance = random.Random(seed)
    for text in list(TAKEN.values()) * times:
        characters = list(text)
        for _damage in range(chance.randint(1, 4)):
            place = chance.randrange(len(characters))
            characters[place] = chance.choice(["", characters[place] * 2, *'()[]{}"\\|*+?.,1a-\n', "::="])
        yield "".join(characters)


def drawn_grammar(chance: random.Random) -> str:
    """One at random, of few characters: many are too ambiguous to be let in."""
    classes = (".", r"[^\n]", "[a-z]", "[a]", "[a-z0-9]", "[^a]", '"a"', '" "', "[ a=]")

    def item(depth: int) -> str:
        if depth and chance.random() < 0.5:
            group = " | ".join(sequence(depth - 1) for _ in range(chance.randint(1, 3)))
            return f"({group})" + chance.choice(["", "?", "*", "+", "{0,8}", "{0,40}"])
        return chance.choice(classes) + chance.choice(["", "", "?", "*", "{0,5}", "{0,30}", "{3,20}"])

    def sequence(depth: int) -> str:
        return " ".join(item(depth) for _ in range(chance.randint(1, 4)))

    return "root ::= " + " | ".join(sequence(3) for _ in range(chance.randint(1, 3)))
