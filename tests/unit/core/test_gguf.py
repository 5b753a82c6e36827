"""No malformed header gets past the validator, and none makes it do anything but say so."""

import ctypes
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf as gguf_package
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.gguf import (
    MAX_ALL_ARRAY_ELEMENTS,
    MAX_ALL_TEXT_BYTES,
    MAX_ARRAY_ELEMENTS,
    MAX_ARRAY_STRINGS,
    MAX_HEADER_BYTES,
    MAX_VOCABULARY_TOKENS,
    TENSOR_TYPES,
    GgufInvalid,
    NeedMore,
    parse_header,
)
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

REPOSITORY = Path(__file__).parents[3]
DEMO = REPOSITORY / "appliance" / "data" / "paddock-demo.gguf"

Change = Callable[[Gguf], object]


def reason_of(data: bytes, file_bytes: int | None = None) -> str:
    with pytest.raises(GgufInvalid) as caught:
        parse_header(data, len(data) if file_bytes is None else file_bytes)
    assert caught.value.detail
    return caught.value.reason


def test_small_model_is_read() -> None:
    data = small_model("a name").build()
    facts = parse_header(data, len(data))
    assert (facts.architecture, facts.name, facts.context_tokens) == ("llama", "a name", 128)
    assert (facts.vocabulary_tokens, facts.block_count, facts.embedding_length) == (5, 1, 8)
    assert (facts.tensor_count, facts.parameter_count) == (2, 1033)
    assert facts.has_chat_template
    assert facts.file_bytes == len(data)
    assert facts.header_bytes % 32 == 0


def test_demo_model_is_accepted() -> None:
    data = DEMO.read_bytes()
    facts = parse_header(data, len(data))
    assert (facts.name, facts.vocabulary_tokens, facts.block_count) == ("paddock-demo", 3072, 4)


def test_chain_model_is_accepted(tmp_path: Path) -> None:
    out = tmp_path / "chain.gguf"
    tool = REPOSITORY / "tools" / "chain_gguf.py"
    subprocess.run([sys.executable, tool, out, "--dim", "64"], check=True, timeout=60, capture_output=True)
    data = out.read_bytes()
    facts = parse_header(data, len(data))
    assert (facts.name, facts.embedding_length, facts.context_tokens) == ("chain", 64, 32768)


def engine_library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    return library


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_block_sizes_are_those_of_the_engine_and_of_the_writer(kind: int) -> None:
    library = engine_library()
    assert TENSOR_TYPES[kind] == (library.ggml_blck_size(kind), library.ggml_type_size(kind))
    assert TENSOR_TYPES[kind] == gguf_package.GGML_QUANT_SIZES[gguf_package.GGMLQuantizationType(kind)]


def test_every_type_of_the_writer_is_known_or_left_out_on_purpose() -> None:
    left_out = {kind.name for kind in gguf_package.GGML_QUANT_SIZES if int(kind) not in TENSOR_TYPES}
    assert left_out == {"Q8_1", "Q8_K"}


# --- the header itself ------------------------------------------------------------------------------------------------


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
    ("vocab_size that disagrees", key("llama.vocab_size", U32, 6), "gguf-vocabulary"),
    ("short scores", put(SCORES, ARRAY, array(F32, [0.0])), "gguf-vocabulary"),
    ("long scores", put(SCORES, ARRAY, array(F32, [0.0] * 6)), "gguf-vocabulary"),
    ("scores of another type", put(SCORES, ARRAY, array(F64, [0.0] * 5)), "gguf-key-type"),
    ("a score that is not a number", put(SCORES, ARRAY, array(F32, [0.0] * 4 + [float("nan")])), "gguf-vocabulary"),
    ("short token types", put(TYPES, ARRAY, array(I32, [1])), "gguf-vocabulary"),
    ("token types as texts", put(TYPES, ARRAY, array(STRING, ["1"] * 5)), "gguf-key-type"),
    ("token type 7", put(TYPES, ARRAY, array(I32, [1, 1, 1, 1, 7])), "gguf-vocabulary"),
    ("token type -1", put(TYPES, ARRAY, array(I32, [1, 1, 1, 1, -1])), "gguf-vocabulary"),
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
    ("dimension 2^63", tensor(dimensions=[2**63]), "gguf-tensor-shape"),
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
    ("template of 257 KiB", key("tokenizer.chat_template", STRING, "x" * 257 * 1024), "gguf-string-too-long"),
    ("template with NUL", key("tokenizer.chat_template", STRING, "{{ 1 }}\0{{ 2 }}"), "gguf-text"),
    ("name with an escape sequence", key("general.name", STRING, "\x1b[2J"), "gguf-text"),
    ("name with a line break", key("general.name", STRING, "a\nb"), "gguf-text"),
    ("name with a direction override", key("general.name", STRING, "a\u202eb"), "gguf-text"),
    ("alignment as u64", key("general.alignment", U64, 32), "gguf-key-type"),
    ("token id as text", key("tokenizer.ggml.bos_token_id", STRING, "1"), "gguf-key-type"),
    ("byte token of one digit", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0xA>", "d"])), "gguf-vocabulary"),
    ("byte token of three digits", put(TOKENS, ARRAY, array(STRING, ["a", "b", "c", "<0x00A>", "d"])),
     "gguf-vocabulary"),
    ("scores that are minus and plus infinite", put(SCORES, ARRAY, array(F32, [float("inf"), -float("inf"), 0, 0, 0])),
     "gguf-vocabulary"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_file_is_refused(change: Change, reason: str) -> None:
    assert reason_of(model_with(change)) == reason


def test_named_malformed_files_are_at_least_120() -> None:
    names = [name for name, _change, _reason in MALFORMED]
    assert len(set(names)) == len(names)
    print(f"{len(names)} named malformed GGUF files")
    assert len(names) >= 140


@pytest.mark.parametrize("n_bytes", [0, 4, 20, 23, 24, 100])
def test_stump_is_refused(n_bytes: int) -> None:
    data = small_model().build()[:n_bytes]
    assert reason_of(data) == "gguf-truncated"


@pytest.mark.parametrize("cut", [1, 28, 29, 2000, 4160])
def test_cut_file_is_refused(cut: int) -> None:
    """The last tensor has 36 bytes and 28 of padding, which a writer may leave out: those 28 are not data."""
    data = small_model().build()
    if cut == 28:
        assert parse_header(data[:-cut], len(data) - cut).tensor_count == 2
    else:
        assert reason_of(data[:-cut]) in {"gguf-truncated", "gguf-trailing-bytes"}


@pytest.mark.parametrize(
    "change",
    [
        attribute(version=2),
        attribute(pad_last=False),
        key("split.count", U16, 0),
        key("general.license", STRING, "line one\r\n\tline two \u2028 \U0001f600"),
        key("general.name", STRING, ""),
        drop("general.name"),
        drop(SCORES),
        drop(TYPES),
        key("llama.vocab_size", U32, 5),
        put(TOKENS, ARRAY, array(STRING, [b"\xff\xfe", b"\0", "c", "<0x0a>", "d"])),
    ],
)
def test_unusual_file_is_accepted(change: Change) -> None:
    data = model_with(change)
    assert parse_header(data, len(data)).tensor_count == 2


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_declared_alignment_is_followed(alignment: int) -> None:
    gguf = small_model()
    gguf.set("general.alignment", U32, alignment)
    gguf.alignment = alignment
    data = gguf.build()
    assert parse_header(data, len(data)).header_bytes % alignment == 0


def test_context_beyond_what_a_runner_can_be_asked_for_is_clamped() -> None:
    data = model_with(key("llama.context_length", U32, 10 * 2**20))
    assert parse_header(data, len(data)).context_tokens == 2**22


def test_eighty_thousand_tensors_are_refused_before_they_are_read() -> None:
    """llama.cpp needs 40 s for these 3 MB."""
    data = model_with(attribute(n_tensors=80_000))
    assert reason_of(data) == "gguf-tensor-count"


def test_sixteen_thousand_tensors_are_fast() -> None:
    data = model_with(more_tensors(16_382))
    start = time.process_time()
    assert parse_header(data, len(data)).tensor_count == 16_384
    assert time.process_time() - start < 2


def test_arrays_are_capped_together() -> None:
    gguf = small_model()
    n_each = MAX_ARRAY_ELEMENTS
    for i in range(MAX_ALL_ARRAY_ELEMENTS // n_each + 1):
        gguf.put(f"x{i}", ARRAY, scalar(U32, U8) + u64(n_each) + b"\0" * n_each)
    assert reason_of(gguf.build()) == "gguf-array-too-long"


def test_oversized_header_is_refused_and_not_asked_for() -> None:
    gguf = small_model()
    n_elements = MAX_ARRAY_ELEMENTS - 100
    for i in range(2):
        gguf.put(f"x{i}", ARRAY, scalar(U32, U64) + u64(n_elements) + bytes(8 * n_elements))
    data = gguf.build()
    assert reason_of(data[:MAX_HEADER_BYTES], len(data)) == "gguf-header-too-large"
    assert reason_of(data) == "gguf-header-too-large"


def strings(count: int, value: bytes = b"") -> bytes:
    return scalar(U32, STRING) + u64(count) + text(value) * count


def test_strings_are_capped_in_all_arrays_together() -> None:
    half = MAX_ARRAY_STRINGS // 2 + 1
    assert reason_of(model_with(put("x", ARRAY, strings(MAX_ARRAY_STRINGS)))) == "gguf-array-too-long"
    gguf = small_model()
    gguf.put("x", ARRAY, strings(half))
    gguf.put("y", ARRAY, strings(half))
    assert reason_of(gguf.build()) == "gguf-array-too-long"


def test_texts_are_capped_together() -> None:
    gguf = small_model()
    for i in range(MAX_ALL_TEXT_BYTES // 2**20 + 1):
        gguf.set(f"x{i}", STRING, "y" * 2**20)
    assert reason_of(gguf.build()) == "gguf-string-too-long"


def test_vocabulary_is_capped_in_tokens_and_in_bytes() -> None:
    assert reason_of(model_with(put(TOKENS, ARRAY, strings(MAX_VOCABULARY_TOKENS + 1)))) == "gguf-vocabulary"
    wide = array(STRING, [bytes([i]) * 2**20 for i in range(8)])
    assert reason_of(model_with(put(TOKENS, ARRAY, wide))) == "gguf-vocabulary"


def test_largest_known_vocabulary_is_accepted_in_bounded_time() -> None:
    """Gemma's tokens and more merges than anyone has. The figure is printed; the limit leaves room for a busy host."""
    n_tokens, n_merges = 262_400, 515_000
    gguf = small_model()
    gguf.put(TOKENS, ARRAY, scalar(U32, STRING) + u64(n_tokens) + b"".join(text(f"token{i}") for i in range(n_tokens)))
    gguf.put(SCORES, ARRAY, scalar(U32, F32) + u64(n_tokens) + scalar(F32, -1.0) * n_tokens)
    gguf.put(TYPES, ARRAY, scalar(U32, I32) + u64(n_tokens) + scalar(I32, 1) * n_tokens)
    gguf.put("tokenizer.ggml.merges", ARRAY, strings(n_merges, b"to ken"))
    data = gguf.build()
    start = time.process_time()
    assert parse_header(data, len(data)).vocabulary_tokens == n_tokens
    took_ms = 1000 * (time.process_time() - start)
    print(f"largest known vocabulary: {len(data)} bytes of header in {took_ms:.0f} ms of CPU")
    assert took_ms < 1000


# --- reading in pieces ------------------------------------------------------------------------------------------------


def test_header_is_asked_for_in_pieces_and_then_read() -> None:
    data = small_model().build()
    given_bytes, rounds = 0, 0
    while True:
        try:
            facts = parse_header(data[:given_bytes], len(data))
            break
        except NeedMore as need:
            assert given_bytes < need.n_bytes <= len(data)
            given_bytes, rounds = need.n_bytes, rounds + 1
    assert facts == parse_header(data, len(data))
    assert facts.header_bytes == given_bytes
    assert rounds > 10


@settings(max_examples=300, deadline=400)
@given(st.data())
def test_mutated_header_never_raises_anything_else(data: st.DataObject) -> None:
    model = bytearray(small_model(n_bytes=64).build())
    header_bytes = parse_header(bytes(model), len(model)).header_bytes
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header_bytes - 1))
        piece = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=9),
                st.sampled_from([b"\xff" * 8, b"\0" * 8, u64(2**63), u64(2**31), u64(1), scalar(U32, 9)]),
            )
        )
        model[position : position + len(piece)] = piece
    outcome(bytes(model), len(model))


@settings(max_examples=200, deadline=400)
@given(st.binary(max_size=300), st.integers(0, 2**63))
def test_random_bytes_never_raise_anything_else(tail: bytes, file_bytes: int) -> None:
    outcome(b"GGUF\x03\0\0\0" + tail, max(file_bytes, len(tail) + 8))
    outcome(tail, max(file_bytes, len(tail)))


@settings(max_examples=200, deadline=400)
@given(st.integers(0, 4300), st.integers(0, 4300))
def test_removed_bytes_never_raise_anything_else(start: int, length: int) -> None:
    model = small_model().build()
    cut = model[:start] + model[start + length :]
    outcome(cut, len(cut))


def outcome(data: bytes, file_bytes: int) -> None:
    try:
        facts = parse_header(data, file_bytes)
    except GgufInvalid as error:
        assert error.reason.startswith("gguf-")
    except NeedMore as need:
        assert len(data) < need.n_bytes <= file_bytes
    else:
        assert facts.header_bytes <= len(data)
