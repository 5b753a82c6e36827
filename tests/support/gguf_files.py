"""GGUF files for tests: a builder that can write every kind of wrong file, and the smallest right one."""

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LAYOUT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}

TYPE_F32 = 0


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: float) -> bytes:
    return struct.pack("<" + _LAYOUT[kind], value)


def array(element: int, values: list) -> bytes:
    encoded = b"".join(text(value) if element == STRING else scalar(element, value) for value in values)
    return struct.pack("<IQ", element, len(values)) + encoded


@dataclass
class Tensor:
    name: str | bytes
    dimensions: list[int]
    kind: int = TYPE_F32
    data: bytes = b""
    offset: int | None = None
    n_dimensions: int | None = None


@dataclass
class Gguf:
    """Keys are ``name -> (type, encoded value)``. A field that is set replaces what would be written by itself."""

    keys: list[tuple[str | bytes, int, bytes]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    header_padding: bytes = b"\0"
    tail: bytes = b""
    pad_last: bool = True

    def set(self, key: str | bytes, kind: int, value: float | str | bytes) -> None:
        self.put(key, kind, text(value) if kind == STRING else scalar(kind, value))

    def put(self, key: str | bytes, kind: int, encoded: bytes) -> None:
        self.drop(key)
        self.keys.append((key, kind, encoded))

    def drop(self, key: str | bytes) -> None:
        self.keys = [item for item in self.keys if item[0] != key]

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack("<I", self.version) + n_tensors.to_bytes(8, "little")
        out += n_keys.to_bytes(8, "little")
        out += b"".join(text(key) + struct.pack("<I", kind) + encoded for key, kind, encoded in self.keys)
        body = b""
        for tensor in self.tensors:
            body += b"\0" * (-len(body) % self.alignment)
            offset = len(body) if tensor.offset is None else tensor.offset
            n_dimensions = len(tensor.dimensions) if tensor.n_dimensions is None else tensor.n_dimensions
            out += text(tensor.name) + struct.pack("<I", n_dimensions & 0xFFFFFFFF)
            out += b"".join((size % 2**64).to_bytes(8, "little") for size in tensor.dimensions)
            out += struct.pack("<I", tensor.kind & 0xFFFFFFFF) + (offset % 2**64).to_bytes(8, "little")
            body += tensor.data
        out += self.header_padding * (-len(out) % self.alignment)
        if self.pad_last:
            body += b"\0" * (-len(body) % self.alignment)
        return out + body + self.tail


def small_model(name: str = "small", *, fill: bytes = b"\x01", n_bytes: int = 4096) -> Gguf:
    """A header that passes, and tensors that say nothing: for the validator and the store, not for an engine."""
    gguf = Gguf()
    gguf.set("general.architecture", STRING, "llama")
    gguf.set("general.name", STRING, name)
    gguf.set("llama.context_length", U32, 128)
    gguf.set("llama.embedding_length", U32, 8)
    gguf.set("llama.block_count", U32, 1)
    gguf.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    gguf.set("tokenizer.ggml.model", STRING, "llama")
    gguf.put("tokenizer.ggml.tokens", ARRAY, array(STRING, ["<unk>", "<s>", "</s>", "<0x0A>", "a"]))
    gguf.put("tokenizer.ggml.scores", ARRAY, array(F32, [0.0, 0.0, 0.0, 0.0, -1.0]))
    gguf.put("tokenizer.ggml.token_type", ARRAY, array(I32, [2, 3, 3, 6, 1]))
    gguf.set("tokenizer.ggml.bos_token_id", U32, 1)
    gguf.set("tokenizer.ggml.eos_token_id", U32, 2)
    gguf.set("tokenizer.ggml.add_bos_token", BOOL, 1)
    gguf.set("tokenizer.chat_template", STRING, "{% for m in messages %}\n\t{{ m.content }}{% endfor %}")
    gguf.tensors.append(Tensor("token_embd.weight", [n_bytes // 4], data=fill * n_bytes))
    gguf.tensors.append(Tensor("output_norm.weight", [9], data=b"\x02" * 36))
    return gguf


def small_model_bytes(name: str = "small", *, fill: bytes = b"\x01", n_bytes: int = 4096) -> bytes:
    return small_model(name, fill=fill, n_bytes=n_bytes).build()
