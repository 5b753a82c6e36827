"""``python -m tests.support.engine_allocations MODEL CONTEXT SLOTS KV_TYPE KIND``: what llama.cpp says it allocates.

Loads the model as the runner does, makes a context (``unified``, in ``streams``, ``ahead``: in streams and with the
rows of speculation, or ``pooled``: one batch with a row for each token and whole attention scores), decodes one full
step, and prints a JSON object of MiB: the sums of its log's lines on model, KV, state, compute and output buffers, and
how much of its own this process had at the end.
"""

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

from appliance.core.memory import SPECULATED_ROWS
from appliance.runner.engine.native import llama

_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_SIZE = re.compile(r"(REPACK model|KV|RS|compute|output) buffer size = +([0-9.]+) MiB")
_STEP_TOKENS = 512
_lines: list[str] = []


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _keep(_level: int, text: bytes | None, _user_data: int | None) -> None:
    _lines.append((text or b"").decode("utf-8", "replace"))


def main(path: str, context_tokens: int, slots: int, kv_type: str, kind: str) -> dict[str, float]:
    llama.llama_log_set(_keep, None)
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    assert model, _lines[-5:]
    wanted = llama.llama_context_default_params()
    step = context_tokens if kind == "pooled" else _STEP_TOKENS
    wanted.n_ctx = context_tokens if kind == "pooled" else context_tokens * slots
    wanted.n_batch = wanted.n_ubatch = step
    wanted.n_seq_max = slots
    if kind == "pooled":
        wanted.embeddings = True
        wanted.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    else:
        wanted.n_outputs_max = slots + (SPECULATED_ROWS if kind == "ahead" else 0)
    wanted.n_threads = wanted.n_threads_batch = 1
    wanted.kv_unified = kind not in {"streams", "ahead"}
    wanted.type_k = wanted.type_v = _TYPES[kv_type]
    context = llama.llama_init_from_model(model, wanted)
    assert context, _lines[-5:]
    tokens: Any = (ctypes.c_int32 * step)(*[5] * step)
    assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, step)) == 0
    found = dict.fromkeys(("REPACK model", "KV", "RS", "compute", "output"), 0.0)
    for line in _lines:
        if match := _SIZE.search(line):
            found[match[1]] += float(match[2])
    status = Path("/proc/self/status").read_text()
    found["own"] = sum(int(kib) for kib in re.findall(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)) / 1024
    return found


if __name__ == "__main__":
    path, context_tokens, slots, kv_type, kind = sys.argv[1:]
    print(json.dumps(main(path, int(context_tokens), int(slots), kv_type, kind)))
