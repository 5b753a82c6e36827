"""After ``runner.bindings`` nothing is imported: a runner that serves has no files to import from."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bert_model import POOLING, bert_model

DEMO = Path(__file__).parents[3] / "appliance" / "data" / "paddock-demo.gguf"

GENERATES = """
import os, sys, time
from appliance.core.values import Message, Sampling
from appliance.ipc.messages import Conversation, Load
from appliance.runner import bindings
from appliance.runner.chat.prompt import PromptError
from appliance.runner.engine.engine import Job
from appliance.runner.engine.model import Model

before = set(sys.modules)
load = Load(runner_id="r", context_tokens=256, slots=4, threads=1, speculation="SPECULATION")
drafts = [Model.load(os.open(sys.argv[1], os.O_RDONLY))] if load.speculation == "draft" else []
engine = bindings.Engine.of(Model.load(os.open(sys.argv[1], os.O_RDONLY)), load, *drafts)
engine.warm_up()
prompt = engine.prompt(Conversation(messages=(Message(role="user", content="hello <|im_end|>"),)), 200)
while not prompt.advance():
    pass
engine.submit(Job("a", prompt.tokens, Sampling(presence_penalty=1.0), 20))
engine.submit(Job("b", prompt.tokens, Sampling(temperature=0.0), 30))
ended = 0
while ended < 2:
    for event in engine.take_events():
        ended += event.ended is not None
        if event.token >= 0:
            engine.marked_piece(event.token).decode("utf-8", "replace")
    time.sleep(0.001)
engine.close()
high_level = {"llama_cpp.llama", "diskcache", "shelve", "http.client", "asyncio", "subprocess"}
print(sorted(set(sys.modules) - before), sorted(high_level & set(sys.modules)))
"""


EMBEDS = """
import os, select, socket, sys, threading
from appliance.ipc import frames
from appliance.ipc.messages import Detokenise, Embed, Load, TextPrompt, Tokenise
from appliance.runner import bindings, channel

before = set(sys.modules)
load = Load(runner_id="r", context_tokens=256, slots=4, threads=1)
engine = bindings.load_engine(os.open(sys.argv[1], os.O_RDONLY), load)
engine.warm_up()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
text = TextPrompt(text="hello [SEP] \u00e9")
asked = [
    Embed(request_id="a", kind=engine.model.offers, inputs=(text, text), query="hello", max_prompt_tokens=99),
    Embed(request_id="b", kind="embed", inputs=(text,), dimensions=999, max_prompt_tokens=99),
    Tokenise(request_id="c", text=text.text, max_prompt_tokens=99),
    Detokenise(request_id="d", ids=(5, 6)),
]
for message in asked:
    ours.send(frames.encode(message))
serving = threading.Thread(target=channel.serve, args=(theirs, engine, str))
serving.start()
ended = 0
while ended < len(asked):
    said = ours.recv(frames.MAX_FRAME_BYTES)
    ended += b"RunnerEnd" in said or b"RunnerRefused" in said
ours.close()
serving.join()
engine.close()
high_level = {"llama_cpp.llama", "diskcache", "shelve", "http.client", "asyncio", "subprocess"}
print(sorted(set(sys.modules) - before), sorted(high_level & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("script", "model"),
    [
        *((GENERATES.replace("SPECULATION", kind), DEMO) for kind in ("off", "lookup", "draft")),
        (EMBEDS, bert_model()),
        (EMBEDS, bert_model(POOLING["rank"], head=True)),
    ],
    ids=["generates", "looks up", "drafts", "embeds", "ranks"],
)
def test_serving_imports_nothing(script: str, model: Path) -> None:
    command = [sys.executable, "-c", script, str(model)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[] []\n"
