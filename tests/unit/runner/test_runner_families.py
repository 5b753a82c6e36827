"""What models write, read as it comes: vectors for each family, and the same pieces however the text is cut."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.values import MAX_TOOL_CALLS, Tool, ToolCallDelta
from appliance.runner.chat.answer import (
    MAX_HELD_CHARACTERS,
    MAX_PIECE_CHARACTERS,
    AnswerParser,
    Piece,
    Reasoning,
    Text,
    sealed,
)
from appliance.runner.chat.families import PLAIN, Family, family_of

VECTORS = Path(__file__).parents[2] / "vectors" / "families"
TOOLS = (
    Tool(name="f", parameters='{"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}'),
    Tool(name="g"),
)
TEMPLATES = {
    "hermes": "<tool_call> <think></think>",
    "coder": "<tool_call><function=x><parameter=y> <think></think>",
    "llama": '<|start_header_id|> "parameters" <|python_tag|>',
    "mistral": "[TOOL_CALLS] [THINK][/THINK]",
    "deepseek": "<｜tool▁call▁begin｜> <think></think>",  # noqa: RUF001  its marks
    "harmony": "<|channel|><|message|>",
    "granite": "<|start_of_role|> <|tool_call|> <think></think>",
    "thinker": "<think></think>",
}
LOADED = [(name, case) for name in TEMPLATES for case in json.loads((VECTORS / f"{name}.json").read_text())]


def cases(*, quotes: bool) -> list[Any]:
    """``quotes`` are those with a mark inside a string, where a token of its own never is."""
    return [
        pytest.param(name, case["text"], case["pieces"], id=f"{name}: {case['name']}")
        for name, case in LOADED
        if quotes or not case.get("quotes")
    ]


def family(name: str) -> Family:
    found = family_of(TEMPLATES[name])
    assert found.name == name
    return found


def parser(name: str, tools: tuple[Tool, ...] = TOOLS, **options: Any) -> AnswerParser:
    made = family(name).parser(tools, call_id="r", **options)
    assert made is not None
    return made


def read(one: AnswerParser, pieces: Iterable[str]) -> list[list[str]]:
    """All that comes out, joined: what an application has at the end."""
    out: list[Piece] = [piece for text in pieces for piece in one.feed(text)]
    joined: list[list[str]] = []
    for piece in (*out, *one.finish()):
        match piece:
            case Text() | Reasoning():
                kind = type(piece).__name__.lower()
                assert piece.text
                if joined and joined[-1][0] == kind:
                    joined[-1][1] += piece.text
                else:
                    joined.append([kind, piece.text])
            case ToolCallDelta(name=""):
                assert [entry[0] for entry in joined].count("call") == piece.index + 1
                assert joined[-1][0] == "call" and not piece.id
                joined[-1][2] += piece.arguments
            case ToolCallDelta():
                assert piece.id == f"call_{piece.index}_r"
                joined.append(["call", piece.name, piece.arguments])
    return joined


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(("name", "text", "pieces"), cases(quotes=True))
def test_vector(name: str, text: str, pieces: list[list[str]]) -> None:
    assert read(parser(name), [text]) == pieces
    assert read(parser(name), list(text)) == pieces


@pytest.mark.parametrize(("name", "text", "pieces"), cases(quotes=False))
def test_vector_with_markers_as_tokens(name: str, text: str, pieces: list[list[str]]) -> None:
    """Marks that come as tokens of their own say the same, wherever the pieces end."""
    markers = family(name).markers
    stream = text
    for number, marker in enumerate(markers):
        stream = stream.replace(marker, f"\0{number}\0")
    for number, marker in enumerate(markers):
        stream = stream.replace(f"\0{number}\0", sealed(marker))
    assert read(parser(name, tokens=frozenset(markers)), [stream]) == pieces
    assert read(parser(name, tokens=frozenset(markers)), list(stream)) == pieces


@pytest.mark.parametrize(("name", "text", "pieces"), cases(quotes=True))
def test_quoted_marker_is_text_where_markers_are_tokens(name: str, text: str, pieces: list[list[str]]) -> None:
    """A model that repeats a document of a stranger's calls nothing."""
    one = parser(name, tokens=frozenset(family(name).markers))
    assert read(one, [f"The document says: {text}"]) == [["text", f"The document says: {text}"]]


FRAGMENTS = st.sampled_from(
    [
        *sorted({marker for name in TEMPLATES for marker in family_of(TEMPLATES[name]).markers}),
        '{"name": "f", "arguments": {"s": "', '"}}', '{"name": "g", "parameters": {}}', "f", "g", "evil", "function",
        "<function=f>", "<parameter=s>", "s", "\n", " ", ">", "{", "}", "[", "]", '"', "\\", ",", ":", ";", "```",
        "```json\n", "assistant", "analysis", "final", "commentary", " to=functions.f", "true", "-1e5", "'", "\0",
        '{"arguments": {"n": 1}, "name": "f"}', "<", "<think", "\xe9\U0001f600", '"name"', '"arguments"', "\x02",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=150, deadline=None)
@given(
    fragments=st.lists(FRAGMENTS, max_size=25), places=st.lists(st.integers(0, 500), max_size=12), seal=st.booleans()
)
def test_pieces_do_not_depend_on_the_cuts(name: str, fragments: list[str], places: list[int], seal: bool) -> None:
    markers = family(name).markers
    text = "".join(sealed(part) if seal and part in markers else part for part in fragments)
    tokens = frozenset(markers) if seal else frozenset()
    whole = read(parser(name, tokens=tokens), [text])
    assert read(parser(name, tokens=tokens), cut(text, places)) == whole
    assert read(parser(name, tokens=tokens), list(text)) == whole
    assert {entry[1] for entry in whole if entry[0] == "call"} <= {"f", "g"}
    assert sealed("") not in str(whole)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(fragments=st.lists(FRAGMENTS, max_size=25))
def test_without_tools_there_are_no_calls(name: str, fragments: list[str]) -> None:
    one = family(name).parser((), call_id="r")
    if one is not None:
        assert not any(entry[0] == "call" for entry in read(one, fragments))


@pytest.mark.parametrize("name", ["hermes", "mistral", "granite", "llama", "coder", "deepseek", "harmony"])
def test_what_is_held_back_is_bounded(name: str) -> None:
    begin = {
        "hermes": '<tool_call>{"arguments": "', "granite": '<|tool_call|>[{"arguments": "', "llama": '{"parameters": "',
        "mistral": "[TOOL_CALLS]", "coder": "<tool_call><function=", "harmony": "<|channel|>",
        "deepseek": "<｜tool▁call▁begin｜>",  # noqa: RUF001  its mark
    }[name]  # fmt: skip
    one = parser(name)
    assert not one.feed(begin)
    pieces = [piece for _ in range(20) for piece in one.feed("x" * 10_000) if isinstance(piece, Text)]
    assert sum(len(piece.text) for piece in pieces) > 200_000 - MAX_HELD_CHARACTERS - 20_000
    assert max(len(piece.text) for piece in pieces) == MAX_PIECE_CHARACTERS


@pytest.mark.parametrize("name", ["hermes", "mistral", "granite", "llama"])
def test_arguments_are_not_held_back(name: str) -> None:
    begin = {"mistral": "[TOOL_CALLS]f[ARGS]{", "llama": '{"name": "f", "parameters": {', "hermes": "<tool_call>",
             "granite": "<|tool_call|>["}[name]  # fmt: skip
    one = parser(name)
    one.feed(begin + ('{"name": "f", "arguments": {' if name in ("hermes", "granite") else ""))
    for text in ('"', "a", '":', ' "', "x" * 1000, "y"):
        (piece,) = one.feed(text)
        assert isinstance(piece, ToolCallDelta) and piece.arguments == text


def test_arguments_that_were_held_back_come_in_pieces() -> None:
    pieces = parser("hermes").feed('<tool_call>{"arguments": "' + "x" * 50_000 + '", "name": "f"}')
    arguments = [piece.arguments for piece in pieces if isinstance(piece, ToolCallDelta)]
    assert max(map(len, arguments)) == MAX_PIECE_CHARACTERS
    assert "".join(arguments) == '"' + "x" * 50_000 + '"'


def test_call_too_many_is_text() -> None:
    one = '<tool_call>{"name": "g"}</tool_call>'
    out = read(parser("hermes"), [one * (MAX_TOOL_CALLS + 1)])
    assert len(out) == MAX_TOOL_CALLS + 1
    assert out[-1] == ["text", one]


def test_id_of_a_call_is_never_too_long() -> None:
    made = family("hermes").parser(TOOLS, call_id="r" * 64)
    assert made is not None
    (first, *_) = made.feed('<tool_call>{"name": "g"}')
    assert isinstance(first, ToolCallDelta) and len(first.id) == 64


@pytest.mark.parametrize(
    ("name", "opening", "text", "pieces"),
    [
        ("hermes", "assistant\n<think>\n", "hm</think>\nHi", [["reasoning", "hm"], ["text", "Hi"]]),
        ("hermes", "assistant\n<think>\n\n</think>\n\n", "Hi", [["text", "Hi"]]),
        ("mistral", "[/INST][THINK]", "hm[/THINK]Hi", [["reasoning", "hm"], ["text", "Hi"]]),
        ("thinker", "<think>", "hm", [["reasoning", "hm"]]),
    ],
)
def test_answer_that_begins_in_reasoning(name: str, opening: str, text: str, pieces: list[list[str]]) -> None:
    assert read(parser(name, opening=opening), [text]) == pieces
    tokens = frozenset(family(name).markers)
    for marker in tokens:
        text = text.replace(marker, sealed(marker))
    assert read(parser(name, opening=opening, tokens=tokens), [text]) == pieces


def test_marks_that_the_template_does_not_know_are_text() -> None:
    made = family_of("<tool_call>").parser(TOOLS, call_id="r")
    assert made is not None
    assert read(made, ["<think>a</think>"]) == [["text", "<think>a</think>"]]


def test_plain_answers_have_no_parser() -> None:
    assert family_of("{% for m in messages %}{{ m.content }}{% endfor %}") == PLAIN
    assert PLAIN.parser(TOOLS, call_id="r") is None
    assert family_of("<tool_call>").parser((), call_id="r") is None


CUT = {
    "coder": ("<tool_call><function=f><parameter=s>\nab", "</parameter>"),
    "harmony": ("<|channel|>commentary to=functions.f<|message|>{", "<|end|>"),
    "hermes": ('<tool_call>{"name": "f", "arguments": {"s": "ab', "</tool_call>"),
    "deepseek": ("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{", "<｜tool▁call▁end｜>"),  # noqa: RUF001  its marks
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("left", [0, 3])
def test_seal_is_not_shown_where_a_stop_string_cut_its_marker_off(name: str, left: int) -> None:
    text, marker = CUT[name]
    for each in family(name).markers:
        text = text.replace(each, sealed(each))
    one = parser(name, tokens=frozenset(family(name).markers))
    shown = json.dumps(read(one, [text, sealed(marker[:left])]), ensure_ascii=False)
    assert '"call", "f"' in shown
    assert not any(character in shown for character in sealed(""))


def test_seal_is_not_shown_where_a_name_should_be() -> None:
    markers = family("coder").markers
    text = "<tool_call><function=f><parameter=s<think>t>\nab</parameter></function></tool_call>"
    for each in markers:
        text = text.replace(each, sealed(each))
    one = parser("coder", tokens=frozenset(markers))
    shown = json.dumps(read(one, [text]), ensure_ascii=False)
    assert '"call", "f"' in shown and "s<think" in shown
    assert not any(character in shown for character in sealed(""))
