"""llama.cpp's own grammars, in a process that may die of them. Arguments: a model, and ``answers`` or ``steps``.

Reads a JSON list from stdin. ``answers``: grammars -> one text of each, drawn with a real context. ``steps``: pairs of
a grammar and a text -> for each, the slowest step in seconds (mask of the whole vocabulary and acceptance of one token,
the start included), the text being fed byte by byte, and the growth of the process in bytes.
"""

import ctypes
import json
import resource
import sys
import time
from typing import Any

from appliance.runner.engine.native import llama

MAX_TOKENS = 1500
SEEDS = 20
_FIRST_BYTE_TOKEN = 5  # tools/chain_gguf.py
_CLOSING = b'"}]'


def load(path: str, *, whole: bool) -> Any:
    wanted = llama.llama_model_default_params()
    wanted.vocab_only = not whole
    model = llama.llama_model_load_from_file(path.encode(), wanted)
    assert model
    return model


def grammar_sampler(vocabulary: Any, grammar: str) -> Any:
    sampler = llama.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
    if not sampler:
        sys.exit("llama.cpp refused a grammar that was let through")
    return sampler


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(path: str, grammars: list[str]) -> list[str]:
    model = load(path, whole=True)
    vocabulary = llama.llama_model_get_vocab(model)
    wanted = llama.llama_context_default_params()
    wanted.n_ctx = MAX_TOKENS + 8
    wanted.n_threads = wanted.n_threads_batch = 1
    context = llama.llama_init_from_model(model, wanted)
    assert context
    return [next(filter(None, (answer(context, vocabulary, g, seed) for seed in range(SEEDS))), "") for g in grammars]


def answer(context: Any, vocabulary: Any, grammar: str, seed: int) -> str:
    """One text, or nothing if it does not end."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    biases = (llama.llama_logit_bias * len(_CLOSING))()
    for bias, byte in zip(biases, _CLOSING, strict=True):
        bias.token, bias.bias = _FIRST_BYTE_TOKEN + byte, 3.0
    tokens = llama.llama_vocab_n_tokens(vocabulary)
    for sampler in (
        grammar_sampler(vocabulary, grammar),
        llama.llama_sampler_init_temp(30.0),
        llama.llama_sampler_init_logit_bias(tokens, len(biases), biases),
        llama.llama_sampler_init_dist(seed),
    ):
        llama.llama_sampler_chain_add(chain, sampler)
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    token = llama.llama_vocab_bos(vocabulary)
    written = b""
    piece = ctypes.create_string_buffer(256)
    try:
        for _step in range(MAX_TOKENS):
            one = (llama.llama_token * 1)(token)
            assert llama.llama_decode(context, llama.llama_batch_get_one(one, 1)) == 0
            token = llama.llama_sampler_sample(chain, context, -1)
            if llama.llama_vocab_is_eog(vocabulary, token):
                return written.decode()
            size = llama.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, False)
            written += piece.raw[:size]
        return ""
    finally:
        llama.llama_sampler_free(chain)


# --- steps ------------------------------------------------------------------------------------------------------------


def steps(path: str, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    vocabulary = llama.llama_model_get_vocab(load(path, whole=False))
    return [step(vocabulary, grammar, text) for grammar, text in pairs]


def step(vocabulary: Any, grammar: str, text: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    sampler = grammar_sampler(vocabulary, grammar)
    slowest = begun = time.thread_time() - start
    tokens = llama.llama_vocab_n_tokens(vocabulary)
    data = (llama.llama_token_data * tokens)()
    for byte in text.encode():
        start = time.thread_time()
        for token in range(tokens):
            data[token].id, data[token].logit = token, 0.0
        filling = time.thread_time() - start
        array = llama.llama_token_data_array(data=data, size=tokens, selected=-1, sorted=False)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        if data[_FIRST_BYTE_TOKEN + byte].logit != 0.0:
            sys.exit(f"llama.cpp does not allow {text!r} under {grammar!r}")
        llama.llama_sampler_accept(sampler, _FIRST_BYTE_TOKEN + byte)
        slowest = max(slowest, time.thread_time() - start - filling)
    llama.llama_sampler_free(sampler)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"start": begun, "slowest": slowest, "grown": grown * 1024}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = {"answers": answers, "steps": steps}[sys.argv[2]]
    json.dump(work(sys.argv[1], json.load(sys.stdin)), sys.stdout)
