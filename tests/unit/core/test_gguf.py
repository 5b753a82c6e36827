"""No malformed header gets past the validator, and none makes it do anything but say so."""

import ctypes
import importlib.util
import random
import subprocess
import sys
import time
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
    MAX_LONG_ARRAY_STRINGS,
    MAX_TOKEN_BYTES,
    MAX_VOCABULARY_TOKENS,
    TENSOR_TYPES,
    GgufInvalid,
    NeedMore,
    parse_header,
)
from tests.support.gguf_files import (
    ARRAY,
    F32,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    scalar,
    small_model,
    text,
)
from tests.support.malformed_gguf import (
    MALFORMED,
    SCORES,
    TOKENS,
    TYPES,
    Change,
    attribute,
    drop,
    key,
    model_with,
    more_tensors,
    put,
    u64,
)

REPOSITORY = Path(__file__).parents[3]
DEMO = REPOSITORY / "appliance" / "data" / "paddock-demo.gguf"


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


def test_sixteen_thousand_tensors_are_read() -> None:
    data = model_with(more_tensors(16_382))
    assert parse_header(data, len(data)).tensor_count == 16_384


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


# --- strings in arrays: the quick way and the plain one ---------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 7, 63, 64, 65, 127, 128, 255, 256, 257, 300, 511, 512, 65_536]), max_size=300),
    st.integers(1, 200),
    st.integers(0, 2**32),
)
def test_strings_of_any_lengths_are_stepped_over_exactly(lengths: list[int], n_short: int, seed: int) -> None:
    """Whatever the mix, what follows the array is found; texts full of lengths do not mislead."""
    chance = random.Random(seed)
    texts = [chance.choice((b"\0", b"\1", b"\xff", b"a")) * length for length in lengths]
    texts[chance.randrange(len(texts) + 1) : 0] = [u64(chance.randrange(300)) for _ in range(n_short)]
    gguf = small_model()
    gguf.put("x", ARRAY, array(STRING, texts))
    gguf.set("split.count", U16, 2)
    assert reason_of(gguf.build()) == "gguf-split"
    gguf.drop("split.count")
    data = gguf.build()
    assert parse_header(data, len(data)).header_bytes > sum(map(len, texts))


@pytest.mark.parametrize("n_tokens", [1, 63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("n_bytes", [1, 8, 255, 256, 257])
def test_vocabulary_is_judged_alike_at_every_length_of_a_run(n_tokens: int, n_bytes: int) -> None:
    texts = [n.to_bytes(2, "little") * 2 for n in range(n_tokens - 1)] + [b"\0" * n_bytes]
    gguf = small_model()
    gguf.drop(SCORES)
    gguf.put(TYPES, ARRAY, array(I32, [1] * n_tokens))
    for name in [name for name, _kind, _value in gguf.keys if str(name).endswith("_token_id")]:
        gguf.drop(name)
    gguf.put(TOKENS, ARRAY, array(STRING, texts))
    if n_bytes <= MAX_TOKEN_BYTES:
        data = gguf.build()
        assert parse_header(data, len(data)).vocabulary_tokens == n_tokens
    else:
        assert reason_of(gguf.build()) == "gguf-vocabulary"
    for twin in {0, n_tokens // 2, n_tokens - 2} if n_tokens > 2 else ():
        twins = texts.copy()
        twins[-1] = texts[twin]
        gguf.put(TOKENS, ARRAY, array(STRING, twins))
        assert reason_of(gguf.build()) == "gguf-vocabulary"


@pytest.mark.parametrize("kind", [0, 5, 6])
@pytest.mark.parametrize("at", [0, 69])
def test_byte_token_is_looked_at_wherever_it_stands(kind: int, at: int) -> None:
    kinds = [1] * 70
    kinds[at] = kind
    gguf = small_model()
    gguf.drop(SCORES)
    gguf.put(TYPES, ARRAY, array(I32, kinds))
    gguf.put(TOKENS, ARRAY, array(STRING, [f"t{number}" for number in range(70)]))
    if kind == 6:
        assert reason_of(gguf.build()) == "gguf-vocabulary"
        gguf.put(TOKENS, ARRAY, array(STRING, [f"<0x{number:02X}>" for number in range(70)]))
    data = gguf.build()
    assert parse_header(data, len(data)).vocabulary_tokens == 70


def test_great_scores_are_still_finite() -> None:
    """Their top byte is that of what is not finite."""
    data = model_with(put(SCORES, ARRAY, array(F32, [3.4e38, -3.4e38, 3.4e38, 1.8e38, -0.0])))
    assert parse_header(data, len(data)).vocabulary_tokens == 5


def test_texts_longer_than_tokens_are_capped_in_all_arrays_together() -> None:
    gguf = small_model()
    gguf.put("x", ARRAY, array(STRING, ["y" * 257] * (MAX_LONG_ARRAY_STRINGS - 1)))
    gguf.put("y", ARRAY, array(STRING, ["y" * 257, "y" * 256]))
    data = gguf.build()
    assert parse_header(data, len(data)).tensor_count == 2
    gguf.put("z", ARRAY, array(STRING, ["y" * 257]))
    assert reason_of(gguf.build()) == "gguf-array-too-long"


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
