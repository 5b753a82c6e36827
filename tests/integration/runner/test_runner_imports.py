"""After ``runner.bindings`` nothing is imported: a runner that serves has no files to import from."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[3] / "appliance" / "data" / "paddock-demo.gguf"

SCRIPT = """
import os, sys, time
from appliance.core.values import Message, Sampling
from appliance.ipc.messages import Conversation, Load
from appliance.runner import bindings
from appliance.runner.chat.prompt import PromptError
from appliance.runner.engine.engine import Job

before = set(sys.modules)
load = Load(runner_id="r", context_tokens=256, slots=4, threads=1)
engine = bindings.Engine.load(os.open(sys.argv[1], os.O_RDONLY), load)
engine.warm_up()
prompt = engine.prompt(Conversation(messages=(Message(role="user", content="hello <|im_end|>"),)), 200)
while not prompt.advance():
    pass
engine.submit(Job("a", prompt.tokens, Sampling(presence_penalty=1.0), 20))
ended = False
while not ended:
    for event in engine.take_events():
        ended = event.ended is not None
        if not ended:
            engine.piece(event.token).decode("utf-8", "replace")
    time.sleep(0.001)
engine.close()
high_level = {"llama_cpp.llama", "diskcache", "shelve", "http.client", "asyncio", "subprocess"}
print(sorted(set(sys.modules) - before), sorted(high_level & set(sys.modules)))
"""


def test_serving_imports_nothing() -> None:
    command = [sys.executable, "-c", SCRIPT, str(DEMO)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[] []\n"
