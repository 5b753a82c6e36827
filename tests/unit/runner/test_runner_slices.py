"""A conversation of the largest size does not hold the thread that serves everybody: it is rendered in slices."""

import json
import sys
from collections.abc import Iterator

import pytest

from appliance.core.values import Message, Tool, ToolCall
from appliance.ipc.messages import Conversation
from appliance.runner.chat import template as template_module
from appliance.runner.chat.placeholders import Placeholders, RenderError
from appliance.runner.chat.template import CHATML, ChatTemplate
from tests.support.rendering import rendered, rendered_in_slices

TOOLS = "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n{% endfor %}"
HELLO = (Message(role="user", content="hello"),)
MOST_TEXTS = 128
"""That a slice may handle, or those of one tool."""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="", eos_text="")


@pytest.fixture
def texts_by_slice(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many texts have been given placeholders, slice by slice; whoever drives the rendering appends a 0."""
    counts = [0]
    stand_for = Placeholders.stand_for

    def counting(self: Placeholders, text: str, wanted: str = "") -> str:
        counts[-1] += 1
        return stand_for(self, text, wanted)

    monkeypatch.setattr(Placeholders, "stand_for", counting)
    yield counts


def drive(made: ChatTemplate, conversation: Conversation, counts: list[int]) -> None:
    for _slice in made.render(conversation):
        counts.append(0)


def test_many_messages_are_not_read_in_one_go(texts_by_slice: list[int]) -> None:
    drive(template(CHATML), Conversation(messages=HELLO * 5000), texts_by_slice)
    assert sum(texts_by_slice) == 5000
    assert max(texts_by_slice) <= MOST_TEXTS
    assert len(texts_by_slice) > 3 * 5000 / MOST_TEXTS  # read, rendered, cut


def test_many_tools_are_not_read_in_one_go(texts_by_slice: list[int]) -> None:
    properties = {f"p{number}": {"type": "string", "description": f"d{number}"} for number in range(40)}
    parameters = json.dumps({"type": "object", "properties": properties})
    tools = tuple(Tool(name=f"f{number}", parameters=parameters) for number in range(100))
    drive(template(TOOLS + CHATML), Conversation(messages=HELLO, tools=tools), texts_by_slice)
    assert max(texts_by_slice) <= 82  # one tool's
    assert len(texts_by_slice) >= 100 + 100 * 81 / MOST_TEXTS


def test_many_calls_are_not_read_in_one_go(texts_by_slice: list[int]) -> None:
    call = ToolCall(id="c", name="f", arguments='{"a": "b"}')
    turns = (*HELLO, Message(role="assistant", content="", tool_calls=(call,) * 60)) * 50
    source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endfor %}"
    drive(template(source), Conversation(messages=turns), texts_by_slice)
    assert max(texts_by_slice) <= 60 * 4 + 2
    assert len(texts_by_slice) >= 50


def test_slices_make_the_same_prompt() -> None:
    turns = tuple(Message(role=("user", "assistant")[number % 2], content=f"t{number}") for number in range(1000))
    parts, slices = rendered_in_slices(template(CHATML), Conversation(messages=turns))
    assert slices > 10
    text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert "".join(part.text for part in parts) == text + "<|im_start|>assistant\n"


def test_time_of_a_template_is_not_given_anew_to_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice is short; all of them would be a minute."""
    monkeypatch.setattr(template_module, "RENDER_CPU_SECONDS", 0.1)
    source = "{% for a in range(90000) %}{% for b in range(200) %}{% set c = b %}{% endfor %}.{% endfor %}"
    with pytest.raises(RenderError, match="takes too long"):
        rendered(template(source + CHATML), Conversation(messages=HELLO))


def test_template_is_watched_again_after_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "RENDER_CPU_SECONDS", 0.1)
    endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    before = sys.gettrace()
    with pytest.raises(RenderError, match="takes too long"):
        rendered(template("{{ messages | tojson(indent=2) }}" + endless + CHATML), Conversation(messages=HELLO))
    assert sys.gettrace() is before


@pytest.mark.parametrize("form", ["{{ (%s) | tojson }}", "{{ [{'a': %s}] | tojson(indent=2) }}"])
def test_filters_that_json_runs_are_watched_too(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``map`` makes is made when it is written; this would take hours."""
    monkeypatch.setattr(template_module, "RENDER_CPU_SECONDS", 0.1)
    made_late = "range(100000) | map('center', 20000) | map('wordwrap', 5) | map('length')"
    before = sys.gettrace()
    with pytest.raises(RenderError, match="takes too long"):
        rendered(template(form % made_late + CHATML), Conversation(messages=HELLO))
    assert sys.gettrace() is before


def test_output_is_bounded_over_all_slices() -> None:
    source = "{% for a in range(90000) %}" + "x" * 20 + "{% endfor %}"
    with pytest.raises(RenderError, match="more than 1000000 characters"):
        rendered(template(source + CHATML), Conversation(messages=HELLO))
