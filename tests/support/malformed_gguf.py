"""The malformed GGUF files, each with a name: what is changed in a sound one, and the reason that must be given."""

from collections.abc import Callable

from appliance.core.gguf import MAX_ARRAY_ELEMENTS
from tests.support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Gguf,
    Tensor,
    array,
    scalar,
    small_model,
    text,
)

Change = Callable[[Gguf], object]


def model_with(change: Change) -> bytes:
    gguf = small_model()
    change(gguf)
    return gguf.build()


def attribute(**values: object) -> Change:
    return lambda gguf: [setattr(gguf, name, value) for name, value in values.items()]


def key(name: str, kind: int, value: float | str | bytes) -> Change:
    return lambda gguf: gguf.set(name, kind, value)


def put(name: str | bytes, kind: int, encoded: bytes) -> Change:
    return lambda gguf: gguf.put(name, kind, encoded)


def drop(name: str) -> Change:
    return lambda gguf: gguf.drop(name)


def again(name: str, kind: int, value: float | str | bytes) -> Change:
    encoded = text(value) if kind == STRING else scalar(kind, value)
    return lambda gguf: gguf.keys.append((name, kind, encoded))


def tensor(**values: object) -> Change:
    return lambda gguf: [setattr(gguf.tensors[0], name, value) for name, value in values.items()]


def more_tensors(n_more: int, *, name: Callable[[int], str] = str) -> Change:
    return lambda gguf: gguf.tensors.extend(Tensor(name(i), [1], data=b"\0" * 4) for i in range(n_more))


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


TOKENS, SCORES, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"

MALFORMED: list[tuple[str, Change, str]] = [
    # header
    ("magic", attribute(magic=b"GGUX"), "gguf-magic"),
    ("old magic", attribute(magic=b"ggjt"), "gguf-magic"),
    ("version 0", attribute(version=0), "gguf-version"),
    ("version 1", attribute(version=1), "gguf-version"),
    ("version 99", attribute(version=99), "gguf-version"),
    ("byte-swapped version", attribute(version=0x03000000), "gguf-version"),
    # counts
    ("2^63 keys", attribute(n_keys=2**63), "gguf-too-many-keys"),
    ("2^40 keys", attribute(n_keys=2**40), "gguf-too-many-keys"),
    ("4097 keys", attribute(n_keys=4097), "gguf-too-many-keys"),
    ("-1 tensors", attribute(n_tensors=2**64 - 1), "gguf-tensor-count"),
    ("2^40 tensors", attribute(n_tensors=2**40), "gguf-tensor-count"),
    ("16385 tensors", attribute(n_tensors=16_385), "gguf-tensor-count"),
    ("no tensors", attribute(tensors=[]), "gguf-tensor-count"),
    # names and texts
    ("empty key", put("", U32, scalar(U32, 1)), "gguf-name"),
    ("key of 257 bytes", put("k" * 257, U32, scalar(U32, 1)), "gguf-name"),
    ("key with NUL", put("a\0b", U32, scalar(U32, 1)), "gguf-text"),
    ("key with a newline", put("a\nb", U32, scalar(U32, 1)), "gguf-text"),
    ("key that is not UTF-8", put(b"a\xff", U32, scalar(U32, 1)), "gguf-text"),
    ("key with a direction override", put("a\u202eb", U32, scalar(U32, 1)), "gguf-text"),
    ("duplicate key", again("llama.block_count", U32, 2), "gguf-duplicate-key"),
    ("duplicate architecture", again("general.architecture", STRING, "gpt2"), "gguf-duplicate-key"),
    ("NUL in the architecture", key("general.architecture", STRING, "llama\0x"), "gguf-text"),
    ("newline in the name", key("general.name", STRING, "demo\nroot"), "gguf-text"),
    ("escape in the name", key("general.name", STRING, "demo\x1b[2J"), "gguf-text"),
    ("NUL in a text", key("general.license", STRING, "MIT\0"), "gguf-text"),
    ("C1 control in a text", key("general.license", STRING, "MIT\x9b2J"), "gguf-text"),
    ("text that is not UTF-8", key("general.license", STRING, b"\xc0\x80"), "gguf-text"),
    ("text of 1 MiB and a byte", key("general.license", STRING, "x" * (2**20 + 1)), "gguf-string-too-long"),
    ("text of 2^62 bytes", put("general.license", STRING, u64(2**62)), "gguf-string-too-long"),
    ("text of 2^64-1 bytes", put("general.license", STRING, u64(2**64 - 1)), "gguf-string-too-long"),
    ("template of 256 KiB and a byte", key("tokenizer.chat_template", STRING, "x" * 262_145), "gguf-string-too-long"),
    ("template that is a number", key("tokenizer.chat_template", U32, 1), "gguf-key-type"),
    ("value type 13", put("x", 13, b"\0" * 8), "gguf-value-type"),
    ("value type 99", put("x", 99, b"\0" * 8), "gguf-value-type"),
    ("value type 2^32-1", put("x", 2**32 - 1, b"\0" * 8), "gguf-value-type"),
    ("bool of 2", key("x", BOOL, 2), "gguf-bool"),
    # arrays
    ("array of 2^61", put("x", ARRAY, scalar(U32, U32) + u64(2**61)), "gguf-array-too-long"),
    ("array of 2^64-1 bytes", put("x", ARRAY, scalar(U32, U8) + u64(2**64 - 1)), "gguf-array-too-long"),
    ("array over the cap", put("x", ARRAY, scalar(U32, STRING) + u64(MAX_ARRAY_ELEMENTS + 1)), "gguf-array-too-long"),
    ("nested array", put("x", ARRAY, scalar(U32, ARRAY) + u64(1)), "gguf-array-type"),
    ("array of type 99", put("x", ARRAY, scalar(U32, 99) + u64(1)), "gguf-array-type"),
    ("element of 2^40 bytes", put("x", ARRAY, scalar(U32, STRING) + u64(1) + u64(2**40)), "gguf-string-too-long"),
    ("array of bools with a 3", put("x", ARRAY, array(BOOL, [0, 1, 3])), "gguf-bool"),
    # alignment
    ("alignment 0", key("general.alignment", U32, 0), "gguf-alignment"),
    ("alignment 7", key("general.alignment", U32, 7), "gguf-alignment"),
    ("alignment 16", key("general.alignment", U32, 16), "gguf-alignment"),
    ("alignment 96", key("general.alignment", U32, 96), "gguf-alignment"),
    ("alignment 8192", key("general.alignment", U32, 8192), "gguf-alignment"),
    ("alignment 2^31", key("general.alignment", U32, 2**31), "gguf-alignment"),
    ("alignment of another type", key("general.alignment", U64, 32), "gguf-key-type"),
    ("header padding that is not zero", attribute(header_padding=b"\x01"), "gguf-padding"),
    # tensors
    ("offset not aligned", tensor(offset=1), "gguf-tensor-offset"),
    ("offset 2^63", tensor(offset=2**63), "gguf-tensor-offset"),
    ("offset past the end", tensor(offset=2**20), "gguf-tensor-offset"),
    ("overlap", lambda gguf: setattr(gguf.tensors[1], "offset", 0), "gguf-tensor-offset"),
    ("gap", lambda gguf: setattr(gguf.tensors[1], "offset", 4096 + 32), "gguf-tensor-offset"),
    ("dimensions overflow to 0", tensor(dimensions=[2**32, 2**32]), "gguf-tensor-shape"),
    ("dimensions overflow to 16", tensor(dimensions=[2**63 + 2, 8]), "gguf-tensor-shape"),
    ("negative dimension", tensor(dimensions=[-1]), "gguf-tensor-shape"),
    ("two negative dimensions", tensor(dimensions=[-1, -1]), "gguf-tensor-shape"),
    ("zero dimension", tensor(dimensions=[0], data=b""), "gguf-tensor-shape"),
    ("no dimensions", tensor(dimensions=[]), "gguf-tensor-shape"),
    ("5 dimensions", tensor(dimensions=[1, 1, 1, 1, 1]), "gguf-tensor-shape"),
    ("2^32-1 dimensions", tensor(n_dimensions=2**32 - 1), "gguf-tensor-shape"),
    ("type -1", tensor(kind=-1), "gguf-tensor-type"),
    ("type 4, removed", tensor(kind=4), "gguf-tensor-type"),
    ("type 31, removed", tensor(kind=31), "gguf-tensor-type"),
    ("type 9999", tensor(kind=9999), "gguf-tensor-type"),
    ("Q8_1, never in a file", tensor(kind=9), "gguf-tensor-type"),
    ("row of half a block", tensor(kind=8, dimensions=[48]), "gguf-tensor-shape"),
    ("duplicate tensor", tensor(name="output_norm.weight"), "gguf-duplicate-tensor"),
    ("tensor name of 64 bytes", tensor(name="n" * 64), "gguf-name"),
    ("tensor name of 200 bytes", tensor(name="n" * 200), "gguf-name"),
    ("tensor without a name", tensor(name=""), "gguf-name"),
    ("tensor name with a control character", tensor(name="a\x07"), "gguf-text"),
    # size
    ("100 bytes too many", attribute(tail=b"\0" * 100), "gguf-trailing-bytes"),
    ("one byte too many", attribute(tail=b"\0"), "gguf-trailing-bytes"),
    ("one byte of padding too few", lambda gguf: setattr(gguf, "pad_last", False) or setattr(gguf, "tail", b"\0"),
     "gguf-trailing-bytes"),
    # hyperparameters
    ("no architecture", drop("general.architecture"), "gguf-architecture"),
    ("architecture with a slash", key("general.architecture", STRING, "../llama"), "gguf-architecture"),
    ("empty architecture", key("general.architecture", STRING, ""), "gguf-architecture"),
    ("architecture that is a number", key("general.architecture", U32, 1), "gguf-key-type"),
    ("no block count", drop("llama.block_count"), "gguf-key-missing"),
    ("0 blocks", key("llama.block_count", U32, 0), "gguf-out-of-range"),
    ("513 blocks", key("llama.block_count", U32, 513), "gguf-out-of-range"),
    ("2^32-1 blocks", key("llama.block_count", U32, 2**32 - 1), "gguf-out-of-range"),
    ("block count of another type", key("llama.block_count", I32, 1), "gguf-key-type"),
    ("block count as text", key("llama.block_count", STRING, "1"), "gguf-key-type"),
    ("2^32-1 experts", key("llama.expert_count", U32, 2**32 - 1), "gguf-out-of-range"),
    ("1025 experts", key("llama.expert_count", U32, 1025), "gguf-out-of-range"),
    ("more experts used than there are", key("llama.expert_used_count", U32, 1), "gguf-out-of-range"),
    ("no context", drop("llama.context_length"), "gguf-key-missing"),
    ("context 0", key("llama.context_length", U32, 0), "gguf-out-of-range"),
    ("context 2^32-1", key("llama.context_length", U32, 2**32 - 1), "gguf-out-of-range"),
    ("embedding 0", key("llama.embedding_length", U32, 0), "gguf-out-of-range"),
    ("embedding 2^31", key("llama.embedding_length", U32, 2**31), "gguf-out-of-range"),
    ("negative epsilon", key("llama.attention.layer_norm_rms_epsilon", F32, -1.0), "gguf-float"),
    ("epsilon that is not a number", key("llama.attention.layer_norm_rms_epsilon", F32, float("nan")), "gguf-float"),
    ("infinite scale", key("llama.rope.freq_base", F64, float("inf")), "gguf-float"),
    # vocabulary
    ("no tokens", drop(TOKENS), "gguf-vocabulary"),
    ("empty tokens", put(TOKENS, ARRAY, array(STRING, [])), "gguf-vocabulary"),
    ("tokens that are numbers", put(TOKENS, ARRAY, array(U32, [1, 2, 3, 4, 5])), "gguf-key-type"),
    ("tokens that are one text", key(TOKENS, STRING, "abc"), "gguf-key-type"),
    ("two equal tokens", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0x0A>", "a"])), "gguf-vocabulary"),
    ("a token of 257 bytes", put(TOKENS, ARRAY, array(STRING, [*"abcd", "x" * 257])), "gguf-vocabulary"),
    ("vocab_size that disagrees", key("llama.vocab_size", U32, 6), "gguf-vocabulary"),
    ("short scores", put(SCORES, ARRAY, array(F32, [0.0])), "gguf-vocabulary"),
    ("long scores", put(SCORES, ARRAY, array(F32, [0.0] * 6)), "gguf-vocabulary"),
    ("scores of another type", put(SCORES, ARRAY, array(F64, [0.0] * 5)), "gguf-key-type"),
    ("a score that is not a number", put(SCORES, ARRAY, array(F32, [0.0] * 4 + [float("nan")])), "gguf-vocabulary"),
    ("short token types", put(TYPES, ARRAY, array(I32, [1])), "gguf-vocabulary"),
    ("token types as texts", put(TYPES, ARRAY, array(STRING, ["1"] * 5)), "gguf-key-type"),
    ("token type 7", put(TYPES, ARRAY, array(I32, [1, 1, 1, 1, 7])), "gguf-vocabulary"),
    ("token type -1", put(TYPES, ARRAY, array(I32, [1, 1, 1, 1, -1])), "gguf-vocabulary"),
    ("token type 256", put(TYPES, ARRAY, array(I32, [1, 1, 256, 1, 1])), "gguf-vocabulary"),
    ("token type 2^24", put(TYPES, ARRAY, array(I32, [2**24, 1, 1, 1, 1])), "gguf-vocabulary"),
    ("a score of minus infinity", put(SCORES, ARRAY, array(F32, [0.0, -float("inf"), 0, 0, 0])), "gguf-vocabulary"),
    ("a score of minus NaN", put(SCORES, ARRAY, array(F32, [float("-nan"), 0, 0, 0, 0])), "gguf-vocabulary"),
    ("1025 texts longer than a token", put("x", ARRAY, array(STRING, ["y" * 257] * 1025)), "gguf-array-too-long"),
    ("70 equal tokens", put(TOKENS, ARRAY, array(STRING, ["a"] * 70)), "gguf-vocabulary"),
    ("70 tokens, one too long", put(TOKENS, ARRAY, array(STRING, [*map(str, range(69)), "x" * 257])),
     "gguf-vocabulary"),
    ("2^40 bytes after 65 texts", put("x", ARRAY, scalar(U32, STRING) + u64(66) + text("a") * 65 + u64(2**40)),
     "gguf-string-too-long"),
    ("byte token that is not hex", put(TYPES, ARRAY, array(I32, [6, 3, 3, 6, 1])), "gguf-vocabulary"),
    ("byte token <0x-1>", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0x-1>", "d"])), "gguf-vocabulary"),
    ("merges that are numbers", put("tokenizer.ggml.merges", ARRAY, array(U32, [1])), "gguf-key-type"),
    ("bos out of the vocabulary", key("tokenizer.ggml.bos_token_id", U32, 5), "gguf-token-id"),
    ("eos 2^32-1", key("tokenizer.ggml.eos_token_id", U32, 2**32 - 1), "gguf-token-id"),
    ("fim id out of the vocabulary", key("tokenizer.ggml.fim_pre_token_id", U32, 99), "gguf-token-id"),
    ("signed eos", key("tokenizer.ggml.eos_token_id", I32, -1), "gguf-key-type"),
    # split
    ("2 parts", key("split.count", U16, 2), "gguf-split"),
    ("part count of another type", key("split.count", U32, 2), "gguf-key-type"),
    # products and sums at the borders of 32, 63 and 64 bits (CVE-2025-53630 and CVE-2026-27940 after it)
    ("elements 2^32 x 2^32", tensor(dimensions=[2**32, 2**32]), "gguf-tensor-shape"),
    ("elements 2^32 x 2^31", tensor(dimensions=[2**32, 2**31]), "gguf-tensor-shape"),
    ("elements 2^16 four times", tensor(dimensions=[2**16] * 4), "gguf-tensor-shape"),
    ("elements that wrap to 1024", tensor(dimensions=[2**63 + 512, 2]), "gguf-tensor-shape"),
    ("bytes that wrap: 2^62 floats", tensor(dimensions=[2**62]), "gguf-tensor-shape"),
    ("bytes that wrap: 2^62 + 1024 floats", tensor(dimensions=[2**62 + 1024]), "gguf-tensor-shape"),
    ("dimension 2^64 - 1", tensor(dimensions=[2**64 - 1]), "gguf-tensor-shape"),
    ("2^47 floats in a file of 4 kB", tensor(dimensions=[2**47]), "gguf-tensor-offset"),
    ("zero second dimension", tensor(dimensions=[1024, 0]), "gguf-tensor-shape"),
    ("offset 2^64 - 32", tensor(offset=2**64 - 32), "gguf-tensor-offset"),
    ("bytes that wrap: Q8_0 of 2^48", tensor(kind=8, dimensions=[2**48]), "gguf-tensor-shape"),
    # types and texts where others stand
    ("context as text", key("llama.context_length", STRING, "128"), "gguf-key-type"),
    ("context as u64", key("llama.context_length", U64, 128), "gguf-key-type"),
    ("embedding as float", key("llama.embedding_length", F32, 8.0), "gguf-key-type"),
    ("experts as array", put("llama.expert_count", ARRAY, array(U32, [8])), "gguf-key-type"),
    ("template as array", put("tokenizer.chat_template", ARRAY, array(STRING, ["x"])), "gguf-key-type"),
    ("template with NUL", key("tokenizer.chat_template", STRING, "{{ 1 }}\0{{ 2 }}"), "gguf-text"),
    ("name with a direction override", key("general.name", STRING, "a\u202eb"), "gguf-text"),
    ("alignment as u64", key("general.alignment", U64, 32), "gguf-key-type"),
    ("token id as text", key("tokenizer.ggml.bos_token_id", STRING, "1"), "gguf-key-type"),
    ("byte token of one digit", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0xA>", "d"])), "gguf-vocabulary"),
    ("byte token of three digits", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0x00A>", "d"])),
     "gguf-vocabulary"),
    ("scores that are minus and plus infinite", put(SCORES, ARRAY, array(F32, [float("inf"), -float("inf"), 0, 0, 0])),
     "gguf-vocabulary"),
]  # fmt: skip
