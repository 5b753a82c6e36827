#!/usr/bin/env python3
"""Make a tiny, deterministic GGUF whose next token depends only on the current token.

One 'llama' block with all-zero attention/FFN output weights leaves the residual stream equal to
the token embedding; the output matrix then maps each token to its successor.  So the model always
recites a fixed script, then emits EOS, at any temperature, with no training and no downloads.
"""

import argparse
import numpy as np, gguf

STORY = (
    "Once upon a time \U0001f600 one friend told this story: the blue sky means sunlight scattering by Rayleigh in Earth's "
    "atmosphere; water droplets refract light into rainbow colours, soil is brown from organic minerals, air holds "
    "nitrogen and oxygen, independence was declared July fourth, 12x15 = 180 done."
)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--text", default=STORY)
    ap.add_argument("--name", default="chain")
    ap.add_argument("--template", default=None)
    ap.add_argument("--dim", type=int, default=256)
    ap.add_argument("--gain", type=float, default=60.0)
    ap.add_argument("--ctx", type=int, default=32768)
    a = ap.parse_args()
    D = a.dim
    words = a.text.split(" ")
    toks, types, scores = [], [], []

    def add(t, ty, sc=0.0):
        toks.append(t)
        types.append(ty)
        scores.append(sc)
        return len(toks) - 1

    T = gguf.TokenType
    add("<unk>", T.UNKNOWN)
    BOS = add("<s>", T.CONTROL)
    EOS = add("</s>", T.CONTROL)
    IMS = add("<|im_start|>", T.CONTROL)
    IME = add("<|im_end|>", T.CONTROL)
    for b in range(256):
        add(f"<0x{b:02X}>", T.BYTE)
    ids = []
    for i, w in enumerate(words):
        t = ("\u2581" if i else "") + w
        ids.append(add(t, T.NORMAL, -1e4 - i))  # low score: prompt text is cut into bytes, never into script tokens
    # a repeated word would break the chain (next token is a function of the current one): join it to the next word
    assert len(set(ids)) == len(ids), "script words must be unique; use --text with distinct words"
    chain = ids
    V = len(toks)
    nxt = {t: chain[0] for t in range(V)}
    for x, y in zip(chain, chain[1:]):
        nxt[x] = y
    nxt[chain[-1]] = EOS
    rng = np.random.default_rng(0)
    emb = rng.choice([-1.0, 1.0], size=(V, D)).astype(np.float32)
    out = np.zeros((V, D), np.float32)
    # Coordinate 0 is the same for every token: it gives chain[0] half the winning logit by default, so any token
    # that is not part of the script (prompt bytes, template tokens) starts the script from its beginning.
    emb[:, 0] = 1.0
    out[chain[0], 0] = a.gain * 0.5
    for t in range(V):
        if nxt[t] != chain[0]:
            out[nxt[t], 1:] += emb[t, 1:] * (a.gain / D)
    w = gguf.GGUFWriter(a.out, "llama")
    H = 4
    w.add_name(a.name)
    w.add_context_length(a.ctx)
    w.add_embedding_length(D)
    w.add_block_count(1)
    w.add_feed_forward_length(D)
    w.add_head_count(H)
    w.add_head_count_kv(H)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(D // H)
    w.add_vocab_size(V)
    w.add_file_type(0)
    w.add_license("CC0-1.0")
    w.add_size_label("0.3M")
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(toks)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(BOS)
    w.add_eos_token_id(EOS)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    w.add_chat_template(
        a.template
        or "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    w.add_tensor("token_embd.weight", emb)
    w.add_tensor("output_norm.weight", np.ones(D, np.float32))
    w.add_tensor("output.weight", out)
    z = lambda r, c: np.zeros((r, c), np.float32)
    p = "blk.0."
    for n in ("attn_norm", "ffn_norm"):
        w.add_tensor(p + n + ".weight", np.ones(D, np.float32))
    for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        w.add_tensor(p + n + ".weight", z(D, D))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{a.out}: vocab {V}, script {len(chain)} tokens")


main()
