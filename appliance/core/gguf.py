"""GGUF header bytes -> facts, or the reason why not. Strict: stricter than the engine that will parse the file next.

Layout (GGUF 2 and 3, little-endian): ``GGUF``, u32 version, u64 tensor count, u64 key count; each key: string, u32
type, value; each tensor: name, u32 dimension count, u64 dimensions, u32 type, u64 offset; zero padding to the
alignment; data. A string is a u64 length and its bytes; an array is a u32 element type, a u64 count and its elements.

Whatever the engine would read, and more, is checked here first: llama.cpp aborts on some of these headers, takes
minutes over others and loads a few (trailing bytes, a NUL in the architecture) about which policy would have been told
something else. Sources: the GGUF specification in ggml; CVE-2024-23496, CVE-2025-53630, CVE-2026-7482, CVE-2026-27940
and their families.

A file whose ``general.type`` is ``adapter`` is judged as a LoRA adapter instead (``core.gguf_adapter``): it has no
vocabulary and no layers of its own, and llama.cpp reads it by other code.

The bound: work and memory are linear in the header. A string in an array costs 0.04 us, a token 0.25 us more: its bytes
become an object that is hashed, because two equal tokens abort the engine. So a verdict takes under 100 ms of CPU on a
core of a 2020s server up to 260,000 tokens, or 200,000 with 450,000 merges; the largest known header (262,144 tokens,
514,906 merges, 14 MB) takes 100 to 120 ms. A header at all caps at once, 16,384 tensors and 4096 keys too, takes half
as long again. Memory rises by less than 64 MiB, the bytes included. ``bench/headers.py`` measures it.
"""

import re
from collections.abc import Iterator
from functools import cache
from math import isfinite, prod
from struct import Struct, unpack_from
from struct import error as StructError  # noqa: N812 - a class under a lower-case name
from typing import Any, Final, NamedTuple

from appliance.core.gguf_adapter import ADAPTER, GgufInvalid, Tensor, adapter_facts, check_adapter_keys
from appliance.core.values import CacheShape, Digest, GgufFacts

__all__ = ["GgufInvalid", "NeedMore", "parse_header", "tensor_shapes"]

MAX_HEADER_BYTES: Final = 24 * 1024 * 1024
MAX_KEYS: Final = 4096
MAX_TENSORS: Final = 16_384
MAX_NAME_BYTES: Final = 256
MAX_TENSOR_NAME_BYTES: Final = 63
MAX_STRING_BYTES: Final = 1024 * 1024
MAX_MODEL_NAME_BYTES: Final = 1024
MAX_TEMPLATE_BYTES: Final = 256 * 1024
MAX_ALL_TEXT_BYTES: Final = 4 * 1024 * 1024
MAX_ARRAY_ELEMENTS: Final = 2_000_000
MAX_ALL_ARRAY_ELEMENTS: Final = 4_000_000
MAX_TOKEN_BYTES: Final = 256
"""The longest in use are runs of 128 spaces. What is charged for text rests on it (``core.meter``)."""
MAX_ARRAY_STRINGS: Final = 850_000
"""In all arrays together: 262,400 tokens and 515,000 merges are the most that a known model has."""
MAX_LONG_ARRAY_STRINGS: Final = 1024
"""Of them, those longer than a token may be: each costs the quick way through an array a run of others."""
MAX_VOCABULARY_TOKENS: Final = 300_000
MAX_VOCABULARY_BYTES: Final = 8 * 1024 * 1024
MAX_BLOCKS: Final = 512
MAX_EXPERTS: Final = 1024
MAX_EMBEDDING_LENGTH: Final = 65_536
MAX_HEADS: Final = 1024
"""Of one layer. Known models have up to 128."""
MAX_HEAD_LENGTH: Final = 65_536
MAX_FEED_FORWARD_LENGTH: Final = 2**20
MAX_STATE_LENGTH: Final = 2**20
"""Each of the lengths that make a recurrent layer's state."""
MAX_STATE_BYTES: Final = 2**40
MAX_CONTEXT_TOKENS: Final = 2**24
MAX_USABLE_CONTEXT_TOKENS: Final = 2**22
"""What ``ipc.messages.Load`` can ask of a runner; a model that declares more is offered up to here."""

TENSOR_TYPES: Final[dict[int, tuple[int, int]]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}
"""Type number -> elements per block, bytes per block. Left out: types removed from ggml, and Q8_1 and Q8_K, which exist
only while it computes and never in a file."""

_UINT8, _INT8, _UINT16, _INT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64, _FLOAT64 = range(13)
_SCALAR_BYTES: Final = {
    _UINT8: 1,
    _INT8: 1,
    _UINT16: 2,
    _INT16: 2,
    _UINT32: 4,
    _INT32: 4,
    _FLOAT32: 4,
    _BOOL: 1,
    _UINT64: 8,
    _INT64: 8,
    _FLOAT64: 8,
}
_BYTE_TOKEN: Final = 6  # llama_token_type: the token stands for one raw byte
_U16, _U32, _U64, _F32, _F64 = Struct("<H"), Struct("<I"), Struct("<Q"), Struct("<f"), Struct("<d")
_FIXED = Struct("<4sIQQ")
_SHAPES = {n_dimensions: Struct(f"<{n_dimensions}QIQ") for n_dimensions in range(1, 5)}
_RUN: Final = 64

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # tab, line feed and carriage return may stand in text
_BYTE_TOKEN_STRING = re.compile(rb"\x06\0{7}<0x[0-9A-Fa-f]{2}>")
_TOKEN_TYPES = bytes(range(_BYTE_TOKEN + 1))
_ORDINARY_TOP_BYTES = bytes(byte for byte in range(256) if byte & 0x7F != 0x7F)
_ONE_LINE_KEYS: Final = {"general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre"}


class NeedMore(Exception):
    """The header goes on beyond the bytes given. Call again with at least the first ``n_bytes`` of the file."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(f"{n_bytes} bytes of the file are needed")
        self.n_bytes = n_bytes


def parse_header(data: bytes, file_bytes: int) -> GgufFacts:
    """The first bytes of a file of ``file_bytes`` bytes -> its facts.

    Raises ``GgufInvalid``, or ``NeedMore`` while the header goes on, the file has more and the cap allows it. A caller
    who at least doubles what it gives at each ``NeedMore`` parses at most twice the header.
    """
    header = _read(data, file_bytes)
    metadata, shapes = header.metadata, header.shapes
    _check_split(metadata)
    _check_floats(metadata)
    architecture = metadata.text("general.architecture") or ""
    _require(_ARCHITECTURE.fullmatch(architecture) is not None, "gguf-architecture", "missing or not a plain name")
    if metadata.text("general.type") == ADAPTER:
        return _adapter_facts(header, architecture, file_bytes)
    vocabulary = _check_vocabulary(metadata, architecture)
    _check_experts(metadata, architecture)
    template = metadata.text("tokenizer.chat_template", MAX_TEMPLATE_BYTES)
    blocks = metadata.count(f"{architecture}.block_count", MAX_BLOCKS)
    embedding = metadata.count(f"{architecture}.embedding_length", MAX_EMBEDDING_LENGTH)
    return GgufFacts(
        architecture=architecture,
        name=metadata.text("general.name", MAX_MODEL_NAME_BYTES) or "",
        context_tokens=min(
            metadata.count(f"{architecture}.context_length", MAX_CONTEXT_TOKENS), MAX_USABLE_CONTEXT_TOKENS
        ),
        vocabulary_tokens=vocabulary,
        block_count=blocks,
        embedding_length=embedding,
        parameter_count=shapes.parameter_count,
        tensor_count=len(shapes.tensors),
        has_chat_template=template is not None,
        header_bytes=header.n_bytes,
        file_bytes=file_bytes,
        chat_template_digest=None if template is None else Digest.of(template.encode()),
        feed_forward_length=_feed_forward_length(metadata, architecture, blocks),
        cache=_cache_shape(metadata, architecture, blocks, embedding),
        tensor_bytes=shapes.bytes_by_type,
        pools=bool(metadata.u32(f"{architecture}.pooling_type")),
        vector_length=metadata.length(f"{architecture}.embedding_length_out", MAX_EMBEDDING_LENGTH) or 0,
    )


def tensor_shapes(data: bytes, file_bytes: int) -> dict[str, tuple[int, ...]]:
    """The dimensions of each tensor, by its name. Raises as ``parse_header``, which is to have judged the file before;
    this looks at its form only."""
    return {tensor.name: tensor.dimensions for tensor in _read(data, file_bytes).shapes.tensors}


def _read(data: bytes, file_bytes: int) -> "_Header":
    """What is true of every GGUF, whatever it holds."""
    cursor = _Cursor(data, file_bytes)
    magic, version, tensor_count, key_count = _FIXED.unpack(cursor.take(_FIXED.size))
    _require(magic == b"GGUF", "gguf-magic", "the file does not start with 'GGUF'")
    _require(version in {2, 3}, "gguf-version", f"version {version} is not 2 or 3")
    _require(key_count <= MAX_KEYS, "gguf-too-many-keys", f"{key_count} keys")
    _require(0 < tensor_count <= MAX_TENSORS, "gguf-tensor-count", f"{tensor_count} tensors")

    metadata = _Metadata(data)
    for _ in range(key_count):
        metadata.add(cursor)
    alignment = _alignment(metadata)
    shapes = _read_tensors(cursor, tensor_count, alignment)
    header_bytes = _skip_padding(cursor, alignment)
    _require(header_bytes <= MAX_HEADER_BYTES, "gguf-header-too-large", f"{header_bytes} bytes")
    _check_size(header_bytes, shapes.data_bytes, shapes.last_padding_bytes, file_bytes)
    return _Header(metadata, shapes, header_bytes)


def _adapter_facts(header: "_Header", architecture: str, file_bytes: int) -> GgufFacts:
    """Of a LoRA adapter, which changes some tensors of a model of this architecture and is nothing without it."""
    metadata, shapes = header.metadata, header.shapes
    check_adapter_keys(
        kind=metadata.text("adapter.type"),
        alpha=metadata.f32("adapter.lora.alpha"),
        is_activated="adapter.alora.invocation_tokens" in metadata,
    )
    return GgufFacts(
        architecture=architecture,
        name=metadata.text("general.name", MAX_MODEL_NAME_BYTES) or "",
        context_tokens=0,
        vocabulary_tokens=0,
        block_count=0,
        embedding_length=0,
        parameter_count=shapes.parameter_count,
        tensor_count=len(shapes.tensors),
        has_chat_template=False,
        header_bytes=header.n_bytes,
        file_bytes=file_bytes,
        tensor_bytes=shapes.bytes_by_type,
        adapter=adapter_facts(shapes.tensors),
    )


def _require(condition: bool, reason: str, detail: str) -> None:
    if not condition:
        raise GgufInvalid(reason, detail)


class _ShortStrings(NamedTuple):
    one: re.Pattern[bytes]
    run: re.Pattern[bytes]


@cache
def _short_strings() -> _ShortStrings:
    """Matches one string that is no longer than a token may be, and exactly ``_RUN`` of them, one after the other.

    A length before a text is beyond regular expressions, but a choice among few lengths is not: one alternative for
    each, told apart by its first two bytes. The engine of ``re`` walks them in half of the time that a loop takes.
    Possessive: nothing is tried twice. Made when first needed, because that takes some milliseconds.
    """
    one = b"|".join(re.escape(_U64.pack(length)) + b".{%d}+" % length for length in range(MAX_TOKEN_BYTES + 1))
    return _ShortStrings(re.compile(one, re.DOTALL), re.compile(b"(?:%s){%d}+" % (one, _RUN), re.DOTALL))


class _Cursor:
    """Walks the bytes. The one place that decides between a truncated file, an oversized header and ``NeedMore``."""

    def __init__(self, data: bytes, file_bytes: int) -> None:
        self.data = data
        self.position = 0
        self._file_bytes = file_bytes

    def advance(self, n_bytes: int) -> int:
        """Moves over ``n_bytes`` and returns where they start. ``n_bytes`` may be any size that a file can claim."""
        start = self.position
        end = start + n_bytes
        if end > len(self.data):
            _require(end <= self._file_bytes, "gguf-truncated", "the file ends inside its header")
            _require(end <= MAX_HEADER_BYTES, "gguf-header-too-large", f"more than {MAX_HEADER_BYTES} bytes")
            raise NeedMore(end)
        self.position = end
        return start

    def take(self, n_bytes: int) -> bytes:
        start = self.advance(n_bytes)
        return self.data[start : self.position]

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.data, self.advance(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.data, self.advance(8))[0]
        return value

    def skip_strings(self, count: int, long_at_most: int) -> int:
        """Steps over so many strings; returns how many of them are long. Almost all of a header's bytes are in here."""
        n_long, left = 0, count
        while left:
            n_strings = min(left, _RUN)
            run = _short_strings().run.match(self.data, self.position) if n_strings == _RUN else None
            if run is not None:
                self.position = run.end()
            else:
                n_long += self._step_over_strings(n_strings)
                _require(n_long <= long_at_most, "gguf-array-too-long", f"{n_long} texts above {MAX_TOKEN_BYTES} bytes")
            left -= n_strings
        return n_long

    def _step_over_strings(self, count: int) -> int:
        data, position, length_at, n_long = self.data, self.position, _U64.unpack_from, 0
        try:
            for _ in range(count):
                (length,) = length_at(data, position)
                if length > MAX_TOKEN_BYTES:
                    _require(length <= MAX_STRING_BYTES, "gguf-string-too-long", f"an array element of {length} bytes")
                    n_long += 1
                position += 8 + length
        except StructError:  # the data end before or inside this length
            position += 8
        self.advance(position - self.position)
        return n_long

    def name(self, max_bytes: int) -> str:
        """A key or a tensor name: printable UTF-8, not empty."""
        length = self.u64()
        _require(0 < length <= max_bytes, "gguf-name", f"a name of {length} bytes")
        text = _utf8(self.take(length))
        _require(text.isprintable(), "gguf-text", "a name has a control or invisible character")
        return text


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise GgufInvalid("gguf-text", "a name or a text is not UTF-8") from None


class _Field(NamedTuple):
    """One value, where it lies. ``length``: 1 for a scalar, bytes of a string, elements of an array.

    ``n_long``: how many of an array's strings are longer than a token may be.
    """

    kind: int
    element: int | None
    start: int
    length: int
    n_bytes: int
    n_long: int = 0


class _Metadata:
    """The keys of a header, checked one by one as they are read; values stay in the buffer until asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields: dict[str, _Field] = {}
        self._elements = 0
        self._strings = 0
        self._long_strings = 0
        self._text_bytes = 0

    def add(self, cursor: _Cursor) -> None:
        key = cursor.name(MAX_NAME_BYTES)
        _require(key not in self._fields, "gguf-duplicate-key", "a key occurs twice")
        kind = cursor.u32()
        if kind == _ARRAY:
            self._fields[key] = self._array(cursor)
        elif kind == _STRING:
            self._fields[key] = self._string(cursor, key)
        else:
            _require(kind in _SCALAR_BYTES, "gguf-value-type", f"value type {kind}")
            start = cursor.advance(_SCALAR_BYTES[kind])
            _require(kind != _BOOL or self._data[start] <= 1, "gguf-bool", "a bool is neither 0 nor 1")
            self._fields[key] = _Field(kind, None, start, 1, cursor.position - start)

    def _string(self, cursor: _Cursor, key: str) -> _Field:
        length = cursor.u64()
        self._text_bytes += length
        within = length <= MAX_STRING_BYTES and self._text_bytes <= MAX_ALL_TEXT_BYTES
        _require(within, "gguf-string-too-long", f"a text of {length} bytes")
        start = cursor.advance(length)
        text = _utf8(self._data[start : start + length])
        clean = text.isprintable() if key in _ONE_LINE_KEYS else not _CONTROL.search(text)
        _require(clean, "gguf-text", "a text has a control character")
        return _Field(_STRING, None, start, length, length)

    def _array(self, cursor: _Cursor) -> _Field:
        element, count = cursor.u32(), cursor.u64()
        self._elements += count
        within = count <= MAX_ARRAY_ELEMENTS and self._elements <= MAX_ALL_ARRAY_ELEMENTS
        _require(within, "gguf-array-too-long", f"an array of {count} elements")
        if element != _STRING:
            _require(element in _SCALAR_BYTES, "gguf-array-type", f"array element type {element}")
            start = cursor.advance(count * _SCALAR_BYTES[element])
            if element == _BOOL:
                odd = self._data[start : cursor.position].translate(None, b"\0\1")
                _require(not odd, "gguf-bool", "a bool is neither 0 nor 1")
            return _Field(_ARRAY, element, start, count, cursor.position - start)
        self._strings += count
        _require(self._strings <= MAX_ARRAY_STRINGS, "gguf-array-too-long", f"an array of {count} texts")
        start = cursor.position
        n_long = cursor.skip_strings(count, MAX_LONG_ARRAY_STRINGS - self._long_strings)
        self._long_strings += n_long
        return _Field(_ARRAY, element, start, count, cursor.position - start, n_long)

    def special_token_keys(self) -> list[str]:
        return [key for key in self._fields if key.startswith("tokenizer.ggml.") and key.endswith("_token_id")]

    def u32(self, key: str) -> int | None:
        """The value of an optional u32 key; another type is refused, as the engine would."""
        value: int | None = self._scalar(key, _UINT32, _U32)
        return value

    def u16(self, key: str) -> int | None:
        value: int | None = self._scalar(key, _UINT16, _U16)
        return value

    def f32(self, key: str) -> float | None:
        value: float | None = self._scalar(key, _FLOAT32, _F32)
        return value

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def _scalar(self, key: str, kind: int, layout: Struct) -> Any:
        field = self._fields.get(key)
        if field is None:
            return None
        _require(field.kind == kind, "gguf-key-type", f"{key} has type {field.kind}")
        return layout.unpack_from(self._data, field.start)[0]

    def count(self, key: str, at_most: int) -> int:
        """The value of a required u32 key, from 1 to ``at_most``."""
        value = self.u32(key)
        if value is None:
            raise GgufInvalid("gguf-key-missing", f"{key} is missing")
        _require(1 <= value <= at_most, "gguf-out-of-range", f"{key} is {value}")
        return value

    def length(self, key: str, at_most: int) -> int | None:
        """The value of an optional u32 key, up to ``at_most``."""
        value = self.u32(key)
        _require(value is None or value <= at_most, "gguf-out-of-range", f"{key} is {value}")
        return value

    def per_block(self, key: str, blocks: int, at_most: int) -> tuple[int, ...]:
        """An optional key that has one u32 for all blocks, or an array of one u32 or i32 for each; as the latter, each
        from 0 to ``at_most``. Empty without it."""
        field = self._fields.get(key)
        if field is None:
            return ()
        if field.kind != _ARRAY:
            return (self.length(key, at_most) or 0,) * blocks
        _require(field.element in {_UINT32, _INT32}, "gguf-key-type", f"{key} is an array of type {field.element}")
        _require(field.length == blocks, "gguf-out-of-range", f"{key} has {field.length} elements for {blocks} blocks")
        values = unpack_from(f"<{blocks}{'I' if field.element == _UINT32 else 'i'}", self._data, field.start)
        _require(min(values) >= 0 and max(values) <= at_most, "gguf-out-of-range", f"{key} has {max(values)}")
        return values

    def text(self, key: str, at_most_bytes: int = MAX_STRING_BYTES) -> str | None:
        field = self._fields.get(key)
        if field is None:
            return None
        _require(field.kind == _STRING, "gguf-key-type", f"{key} has type {field.kind}")
        _require(field.length <= at_most_bytes, "gguf-string-too-long", f"{key} has {field.length} bytes")
        return _utf8(self._data[field.start : field.start + field.length])

    def array(self, key: str, element: int) -> _Field | None:
        field = self._fields.get(key)
        right = field is None or (field.kind == _ARRAY and field.element == element)
        _require(right, "gguf-key-type", f"{key} is not an array of type {element}")
        return field

    def short_strings(self, field: _Field) -> list[bytes]:
        """The strings of an array that has no long ones, each with its length before it."""
        return _short_strings().one.findall(self._data, field.start, field.start + field.n_bytes)

    def raw(self, field: _Field) -> bytes:
        return self._data[field.start : field.start + field.n_bytes]

    def floats(self) -> Iterator[tuple[str, float]]:
        for key, field in self._fields.items():
            if field.kind in {_FLOAT32, _FLOAT64}:
                layout = _F32 if field.kind == _FLOAT32 else _F64
                yield key, layout.unpack_from(self._data, field.start)[0]


def _alignment(metadata: _Metadata) -> int:
    alignment = metadata.u32("general.alignment")
    if alignment is None:
        return 32
    sound = 32 <= alignment <= 4096 and alignment & (alignment - 1) == 0
    _require(sound, "gguf-alignment", f"alignment {alignment}")
    return alignment


class _Shapes(NamedTuple):
    """``data_bytes`` reaches to the end of the last tensor; padding after it may or may not be in the file."""

    data_bytes: int
    last_padding_bytes: int
    parameter_count: int
    bytes_by_type: tuple[tuple[int, int], ...]
    tensors: tuple[Tensor, ...]


class _Header(NamedTuple):
    metadata: _Metadata
    shapes: _Shapes
    n_bytes: int


def _read_tensors(cursor: _Cursor, tensor_count: int, alignment: int) -> _Shapes:
    """Tensors must follow one another exactly, each padded to the alignment: no gap to hide in, no overlap."""
    tensors: dict[str, Tensor] = {}
    by_type: dict[int, int] = {}
    expected_offset = data_end = parameters = 0
    for _ in range(tensor_count):
        name = cursor.name(MAX_TENSOR_NAME_BYTES)
        _require(name not in tensors, "gguf-duplicate-tensor", "a tensor name occurs twice")
        kind, dimensions, elements, n_bytes, offset = _read_shape(cursor)
        tensors[name] = Tensor(name, dimensions, kind)
        _require(offset == expected_offset, "gguf-tensor-offset", f"offset {offset} is not {expected_offset}")
        data_end = offset + n_bytes
        expected_offset = data_end + -data_end % alignment
        parameters += elements
        by_type[kind] = by_type.get(kind, 0) + n_bytes
    return _Shapes(
        data_end, expected_offset - data_end, parameters, tuple(sorted(by_type.items())), tuple(tensors.values())
    )


def _read_shape(cursor: _Cursor) -> tuple[int, tuple[int, ...], int, int, int]:
    """What follows a tensor's name -> its type, dimensions, elements, bytes and offset. Nothing overflows; at most 2^48
    elements."""
    n_dimensions = cursor.u32()
    _require(1 <= n_dimensions <= 4, "gguf-tensor-shape", f"{n_dimensions} dimensions")
    layout = _SHAPES[n_dimensions]
    *dimensions, kind, offset = layout.unpack(cursor.take(layout.size))
    elements = prod(dimensions)
    _require(0 < elements < 2**48, "gguf-tensor-shape", "a dimension is zero or the tensor is too large")
    _require(kind in TENSOR_TYPES, "gguf-tensor-type", f"tensor type {kind}")
    block_elements, block_bytes = TENSOR_TYPES[kind]
    _require(dimensions[0] % block_elements == 0, "gguf-tensor-shape", "a row is not a whole number of blocks")
    return kind, tuple(dimensions), elements, elements // block_elements * block_bytes, offset


def _skip_padding(cursor: _Cursor, alignment: int) -> int:
    padding = cursor.take(-cursor.position % alignment)
    _require(not any(padding), "gguf-padding", "the padding after the header is not zero")
    return cursor.position


def _check_size(header_bytes: int, data_bytes: int, last_padding_bytes: int, file_bytes: int) -> None:
    """Writers differ in whether the last tensor is padded; any other size is a cut or a stowaway."""
    end = header_bytes + data_bytes
    _require(file_bytes >= end, "gguf-truncated", f"{file_bytes} bytes of {end}")
    exact = file_bytes in {end, end + last_padding_bytes}
    _require(exact, "gguf-trailing-bytes", f"{file_bytes - end} bytes follow the last tensor")


def _check_split(metadata: _Metadata) -> None:
    """The engine ignores ``split.count`` when it reads from a stream, and would load a part as if it were all."""
    parts = metadata.u16("split.count")
    _require(parts in {None, 0, 1}, "gguf-split", f"one of {parts} parts; merge them before import")


def _check_floats(metadata: _Metadata) -> None:
    """The engine aborts while decoding on an epsilon below zero or not a number."""
    for key, value in metadata.floats():
        _require(isfinite(value), "gguf-float", f"{key} is not finite")
        _require(value >= 0 or not key.endswith("epsilon"), "gguf-float", f"{key} is negative")


def _check_experts(metadata: _Metadata, architecture: str) -> None:
    experts = metadata.u32(f"{architecture}.expert_count") or 0
    used = metadata.u32(f"{architecture}.expert_used_count") or 0
    _require(experts <= MAX_EXPERTS, "gguf-out-of-range", f"{experts} experts")
    _require(used <= experts, "gguf-out-of-range", f"{used} of {experts} experts used")


# --- what a context will take ---------------------------------------------------------------------------------------

_WITHOUT_CACHE: Final = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "eurobert"}
    | {"gemma-embedding"}
)
"""Encoders, for which llama.cpp makes no cache."""
_BLOCK_VALUES: Final = 32  # of q8_0 and q4_0


def _cache_shape(metadata: _Metadata, architecture: str, blocks: int, embedding: int) -> CacheShape:
    """After llama.cpp's hparams, rounded up where it knows more: every layer keeps the whole context (a sliding window
    is cached in full unless the engine asks otherwise), the widest head of any layer counts for all, and heads that the
    header does not tell are as wide as the embedding."""
    attention = f"{architecture}.attention"
    heads = metadata.per_block(f"{attention}.head_count", blocks, MAX_HEADS)
    kv_heads = metadata.per_block(f"{attention}.head_count_kv", blocks, MAX_HEADS) or heads
    state_bytes = _state_bytes(metadata, architecture, blocks, embedding, max(heads, default=0))
    if not any(kv_heads) and not state_bytes:
        kv_heads = (1,) * blocks
    head = embedding // min((count for count in heads if count), default=1)
    key = _widest(metadata, attention, ("key_length", "key_length_swa"), head)
    value = _widest(metadata, attention, ("value_length", "value_length_swa"), head)
    indexer = metadata.length(f"{attention}.indexer.key_length", MAX_HEAD_LENGTH) or 0
    per_token = 0 if architecture in _WITHOUT_CACHE else sum(kv_heads) * (key + value) + blocks * indexer
    return CacheShape(
        values_per_token=per_token,
        heads=max(heads, default=1),
        row_values=max(heads, default=1) * key,
        state_bytes=state_bytes,
        quantisable=key % _BLOCK_VALUES == value % _BLOCK_VALUES == indexer % _BLOCK_VALUES == 0,
    )


def _feed_forward_length(metadata: _Metadata, architecture: str, blocks: int) -> int:
    """The widest of any layer: of its one network, or of all experts that a token goes through."""
    dense = metadata.per_block(f"{architecture}.feed_forward_length", blocks, MAX_FEED_FORWARD_LENGTH)
    expert = metadata.length(f"{architecture}.expert_feed_forward_length", MAX_FEED_FORWARD_LENGTH) or 0
    experts = metadata.length(f"{architecture}.expert_used_count", MAX_EXPERTS) or 0
    return max(*dense, expert * max(experts, 1), 0)


def _widest(metadata: _Metadata, attention: str, keys: tuple[str, ...], otherwise: int) -> int:
    lengths = [metadata.length(f"{attention}.{key}", MAX_HEAD_LENGTH) for key in keys]
    return max((length for length in lengths if length is not None), default=otherwise)


def _state_bytes(metadata: _Metadata, architecture: str, blocks: int, embedding: int, heads: int) -> int:
    """Of one sequence, as F32 in every layer; the sum of the kinds of recurrent layers that llama.cpp knows, of which a
    model has one: Mamba, RWKV, LFM2's convolutions, Kimi's delta attention."""

    def length(key: str) -> int:
        return metadata.length(f"{architecture}.{key}", MAX_STATE_LENGTH) or 0

    convolution = max(length("ssm.conv_kernel") - 1, 0)
    inner, state = length("ssm.inner_size"), length("ssm.state_size")
    mamba = convolution * (inner + 2 * length("ssm.group_count") * state) + state * inner
    rwkv = embedding * (length("wkv.head_size") + 2) if length("wkv.head_size") else 0
    lfm2 = embedding * max(length("shortconv.l_cache") - 1, 0)
    delta = length("kda.head_dim")
    kimi = heads * delta * (delta + 3 * max(convolution, 3))
    state_bytes = 4 * blocks * (mamba + rwkv + lfm2 + kimi)
    _require(state_bytes <= MAX_STATE_BYTES, "gguf-out-of-range", f"a state of {state_bytes} bytes")
    return state_bytes


def _check_vocabulary(metadata: _Metadata, architecture: str) -> int:
    """Tokens, their scores and types agree in length; every special id points at a token; returns the token count."""
    tokens = metadata.array("tokenizer.ggml.tokens", _STRING)
    if tokens is None or not 0 < tokens.length <= MAX_VOCABULARY_TOKENS:
        raise GgufInvalid("gguf-vocabulary", f"{tokens.length if tokens else 'no'} tokens")
    declared = metadata.u32(f"{architecture}.vocab_size")
    _require(declared in {None, tokens.length}, "gguf-vocabulary", f"vocab_size {declared} of {tokens.length} tokens")
    _require(tokens.n_bytes <= MAX_VOCABULARY_BYTES, "gguf-vocabulary", f"tokens of {tokens.n_bytes} bytes")
    _require(not tokens.n_long, "gguf-vocabulary", f"a token of more than {MAX_TOKEN_BYTES} bytes")
    strings = metadata.short_strings(tokens)
    _require(len(set(strings)) == len(strings), "gguf-vocabulary", "two tokens are equal")  # the engine would abort
    metadata.array("tokenizer.ggml.merges", _STRING)
    _check_scores(_parallel(metadata, "tokenizer.ggml.scores", _FLOAT32, len(strings)))
    _check_token_types(_parallel(metadata, "tokenizer.ggml.token_type", _INT32, len(strings)), strings)
    for key in metadata.special_token_keys():
        token_id = metadata.u32(key)
        _require(token_id is not None and token_id < tokens.length, "gguf-token-id", f"{key} is {token_id}")
    return tokens.length


def _parallel(metadata: _Metadata, key: str, element: int, count: int) -> bytes:
    """The elements of an optional array of as many numbers as there are tokens; empty without it."""
    field = metadata.array(key, element)
    if field is None:
        return b""
    _require(field.length == count, "gguf-vocabulary", f"{key} has {field.length} elements for {count} tokens")
    return metadata.raw(field)


def _check_scores(scores: bytes) -> None:
    """All finite, as F32. What is not has an exponent of ones, seven of them in the top byte: almost no score has."""
    if scores[3::4].translate(None, _ORDINARY_TOP_BYTES):
        # One sum judges them all: as doubles they cannot overflow it, and it is not finite if one of them is not.
        finite = isfinite(sum(unpack_from(f"<{len(scores) // 4}f", scores)))
        _require(finite, "gguf-vocabulary", "a score is not finite")


def _check_token_types(kinds: bytes, strings: list[bytes]) -> None:
    """All of 0 to 6, as I32. The engine makes an index of what follows ``<0x``: PLaMo-2's -1 wrote out of bounds."""
    lowest, others = kinds[::4], kinds[1::4] + kinds[2::4] + kinds[3::4]
    sound = not lowest.translate(None, _TOKEN_TYPES) and not others.strip(b"\0")
    _require(sound, "gguf-vocabulary", "a token type is not one of 0 to 6")
    at = lowest.find(_BYTE_TOKEN)
    while at >= 0:
        _require(
            _BYTE_TOKEN_STRING.fullmatch(strings[at]) is not None, "gguf-vocabulary", "a byte token is not '<0xHH>'"
        )
        at = lowest.find(_BYTE_TOKEN, at + 1)
