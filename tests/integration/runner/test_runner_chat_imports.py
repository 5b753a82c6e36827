"""After ``runner.bindings`` no template, no family and no error of either imports anything."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from appliance.core.values import Message, Tool, ToolCall
from appliance.ipc.messages import Conversation
from appliance.runner import bindings
from appliance.runner.chat.families import family_of
from appliance.runner.chat.families.force import forced_call
from appliance.runner.chat.placeholders import RenderError
from appliance.runner.chat.template import ChatTemplate
from tests.support.rendering import rendered

before = set(sys.modules)
call = ToolCall(id="c", name="f", arguments='{"a": "<"}')
turns = (Message(role="user", content="x"), Message(role="assistant", content="", tool_calls=(call,)))
source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endfor %}"
shown = ChatTemplate(source + "{{ tools | tojson }}{{ 9 ** 9 if tools | length > 1 }}", bos_text="", eos_text="")
tool, broken, other = Tool(name="f"), Tool(name="f", parameters="{"), Tool(name="g")
lengths = []
for tools in (tool,), (broken,), (tool, other):
    try:
        lengths.append(len(rendered(shown, Conversation(messages=turns, tools=tools))))
    except RenderError:
        lengths.append(0)
for marks in "<tool_call></think>", "<tool_call><function=<parameter=", "<|channel|><|message|>", "[TOOL_CALLS]":
    parser = family_of(marks).parser((tool,), call_id="r")
    for text in '<tool_call>{"name": "f", "arguments": {"a": 1}}', "<tool_call><function=f><parameter=a>1</parameter>":
        parser.feed(text)
    parser.finish()
forced_call("hermes", "", (tool, other))
print(sorted(set(sys.modules) - before), [size > 0 for size in lengths])
"""


def test_chat_imports_nothing() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[] [True, False, False]\n"
