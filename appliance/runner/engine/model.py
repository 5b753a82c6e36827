"""The model and its vocabulary: text to token ids, token ids to bytes.

Trusts: nothing in the file; llama.cpp parses it, inside the sandbox.
Promises: every token id that leaves ``tokens_of`` is below ``vocabulary_tokens``; every id that enters is checked,
since llama.cpp throws an exception through ctypes (an abort) for one that is not.
Not here: the signature and the header's ranges (``models``, ``core.gguf``), checked before a runner exists.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.runner.engine.blocks import blocks
from appliance.runner.engine.native import libc, llama, open_stream, recent_log, short_call

TokenIds = NDArray[np.int32]

Offer = Literal["generate", "embed", "rerank"]
"""What a model is for. One that states how its vectors are pooled is not asked for text."""

_MAX_TEMPLATE_BYTES: Final = 256 * 1024
_MAX_PIECE_BYTES: Final = 16 * 1024
_MAX_VOCABULARY: Final = 2**21
_VOCABULARY_NONE, _VOCABULARY_SPM, _VOCABULARY_WPM = 0, 1, 3
_WPM_UNKNOWN: Final = 100  # in BERT's own vocabulary, and where a file does not say
_OFFERS: Final[dict[str, Offer]] = {"": "generate", "0": "generate", "1": "embed", "2": "embed", "3": "embed"}
_RANK: Final = "4"
_MAX_HEADER_BYTES: Final = 24 * 1024 * 1024
_RANK_HEAD: Final = re.compile(  # a tensor's name behind its length, then how many dimensions, one or two, and these
    rb"(?:\x0a\0{7}(cls)|\x11\0{7}(cls\.output))\.weight([\x01\x02])\0{3}.{8}(.{8})", re.DOTALL
)
_TOKEN_NULL: Final = -1

_is_eog = short_call("llama_vocab_is_eog")
_is_control = short_call("llama_vocab_is_control")
_to_piece = short_call("llama_token_to_piece")


class LoadError(Exception):
    """The model cannot be served. ``reason`` is one kebab-case word of a closed list:

    ``model-invalid`` (llama.cpp refuses the file), ``model-unsupported`` (no decoder, no vocabulary, no way to pool),
    ``template-invalid``, ``context-failed`` (memory), ``logits-not-finite``, ``decode-failed``,
    ``draft-unfit`` (a draft model is missing, or not one for this model).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Model:
    """A loaded GGUF. Its functions are thread-safe: the vocabulary is constant and the piece cache only grows."""

    def __init__(self, pointer: Any, *, rank_outputs: int = 0) -> None:
        self.pointer = pointer
        self.offers: Final = self._offers(rank_outputs)
        self._vocabulary = llama.llama_model_get_vocab(pointer)
        self.vocabulary_tokens: Final[int] = llama.llama_vocab_n_tokens(self._vocabulary)
        self.training_context_tokens: Final[int] = llama.llama_model_n_ctx_train(pointer)
        kind = llama.llama_vocab_type(self._vocabulary)
        if llama.llama_model_has_encoder(pointer) or not llama.llama_model_has_decoder(pointer):
            raise LoadError("model-unsupported", "the model is not a decoder")
        if kind == _VOCABULARY_NONE or not 0 < self.vocabulary_tokens <= _MAX_VOCABULARY:
            raise LoadError("model-unsupported", "the model has no usable vocabulary")
        if self.training_context_tokens < 1:
            raise LoadError("model-unsupported", "the model states no context length")
        self._bos: int = llama.llama_vocab_bos(self._vocabulary)
        self._adds_bos: bool = llama.llama_vocab_get_add_bos(self._vocabulary)
        self._adds_eos: bool = llama.llama_vocab_get_add_eos(self._vocabulary)
        self._adds_sep: bool = llama.llama_vocab_get_add_sep(self._vocabulary)
        self._eos: int = llama.llama_vocab_eos(self._vocabulary)
        self._sep: int = llama.llama_vocab_sep(self._vocabulary)
        self._unknown = self._unknown_token(kind)
        self._newline = np.zeros(0, np.int32)
        if kind == _VOCABULARY_SPM:
            self._newline = self._tokenise(b"\n", special=False)
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def load(cls, descriptor: int) -> "Model":
        """Maps the GGUF that starts at the descriptor's present offset. Raises ``LoadError``."""
        rank_outputs = _rank_outputs(_first_bytes(descriptor))
        stream = open_stream(descriptor)
        try:
            pointer = llama.llama_model_load_from_file_ptr(stream, llama.llama_model_default_params())
        finally:
            libc.fclose(stream)  # llama.cpp has mapped or read what it needs and does not own the stream
        if not pointer:
            raise LoadError("model-invalid", recent_log())
        return cls(pointer, rank_outputs=rank_outputs)

    def close(self) -> None:
        llama.llama_model_free(self.pointer)

    def _offers(self, rank_outputs: int) -> Offer:
        """By ``<architecture>.pooling_type``. llama.cpp aborts on a number that it does not know, and takes the first
        numbers of a vector for the scores of a model whose head does not end in as many. Raises ``LoadError``."""
        architecture = self._metadata("general.architecture")
        pooling = self._metadata(f"{architecture}.pooling_type")
        if pooling == _RANK and rank_outputs and rank_outputs == llama.llama_model_n_cls_out(self.pointer):
            return "rerank"
        if pooling not in _OFFERS:
            why = "has no head to rank with" if pooling == _RANK else "states a pooling that is not known"
            raise LoadError("model-unsupported", f"the model {why}")
        if _OFFERS[pooling] == "generate" and self._metadata(f"{architecture}.attention.causal") == "false":
            raise LoadError("model-unsupported", "the model is an encoder and does not state how to pool")
        return _OFFERS[pooling]

    def _metadata(self, key: str) -> str:
        """A short value as text; empty where the file has none."""
        buffer = ctypes.create_string_buffer(128)
        length = llama.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def _unknown_token(self, kind: int) -> int:
        stated = self._metadata("tokenizer.ggml.unknown_token_id")
        if stated.isdecimal():
            return int(stated)
        return _WPM_UNKNOWN if kind == _VOCABULARY_WPM else _TOKEN_NULL

    @property
    def vector_width(self) -> int:
        """Numbers of a pooled row: those of a vector, or the classes of a rank head."""
        if self.offers == "rerank":
            return int(llama.llama_model_n_cls_out(self.pointer))
        return int(llama.llama_model_n_embd_out(self.pointer))

    # --- what the template needs ------------------------------------------------------------------------------------

    def chat_template(self) -> str | None:
        """``tokenizer.chat_template``, or None where the file has none. Raises ``LoadError`` if it is no text or
        larger than 256 KiB."""
        buffer = ctypes.create_string_buffer(_MAX_TEMPLATE_BYTES + 1)
        length = llama.llama_model_meta_val_str(self.pointer, b"tokenizer.chat_template", buffer, len(buffer))
        if length < 0:
            return None
        if length > _MAX_TEMPLATE_BYTES:
            raise LoadError("template-invalid", f"the chat template has {length} bytes")
        try:
            return buffer.raw[:length].decode()
        except UnicodeDecodeError:
            raise LoadError("template-invalid", "the chat template is not UTF-8") from None

    @property
    def bos_text(self) -> str:
        return self._text_of(self._bos)

    @property
    def eos_text(self) -> str:
        return self._text_of(llama.llama_vocab_eos(self._vocabulary))

    def _text_of(self, token: int) -> str:
        if token == _TOKEN_NULL or not 0 <= token < self.vocabulary_tokens:
            return ""
        return str(llama.llama_vocab_get_text(self._vocabulary, token).decode("utf-8", "replace"))

    # --- text to tokens ---------------------------------------------------------------------------------------------

    def template_tokens(self, text: str, *, first: bool) -> Iterator[TokenIds]:
        """The template's own text -> ids, block by block; the names of control tokens become these tokens.

        ``first`` is False for a fragment that continues a prompt.
        """
        for number, block in enumerate(blocks(text)):
            yield self._fragment(block, special=True, first=first and not number)

    def content_tokens(self, text: str, *, first: bool) -> Iterator[TokenIds]:
        """A caller's text -> ids, block by block, of which none is a control or end-of-generation token, whatever the
        text says. Raises ``ValueError`` if a vocabulary leaves no way to write the text."""
        for number, block in enumerate(blocks(text)):
            yield self._content(block, first=first and not number)

    def _content(self, text: str, *, first: bool) -> TokenIds:
        """One block. llama.cpp still matches tokens of type USER_DEFINED, and some files give that type to their
        end-of-turn token; such a name is cut in two."""
        tokens = self._fragment(text, special=False, first=first)
        forbidden = next((t for t in np.unique(tokens).tolist() if self._may_not_be_text(t)), None)
        if forbidden is None:
            return tokens
        name = self._text_of(forbidden)
        if len(name) < 2 or name not in text:
            raise ValueError(f"the vocabulary writes ordinary text with special token {forbidden}")
        harmless = [name[:1], name[1:]]
        pieces = [piece for part in text.split(name) for piece in (*harmless, part)][len(harmless) :]
        return np.concatenate([self._content(piece, first=first and not n) for n, piece in enumerate(pieces)])

    def _may_not_be_text(self, token: int) -> bool:
        """A word that a vocabulary does not know is text too, whatever type its file gives to the token for that."""
        return self.is_special(token) and (token != self._unknown or self.is_end(token))

    def with_bos(self, tokens: TokenIds) -> TokenIds:
        """Puts the vocabulary's first token before a prompt, where it asks for one and the template wrote none."""
        if not self._adds_bos or self._bos == _TOKEN_NULL or (len(tokens) and tokens[0] == self._bos):
            return tokens
        return np.concatenate([np.array([self._bos], np.int32), tokens])

    def framed(self, *parts: TokenIds) -> TokenIds:
        """Parts of an input between the special tokens that the model was trained with: one for a vector; a query and
        a document for a score."""
        eos = [self._eos] if self._adds_eos else []
        sep = [self._sep] if self._adds_sep else []
        framed = [self._special(self._bos) if self._adds_bos else self._special(), parts[0]]
        for part in parts[1:]:
            framed += [self._special(*eos, *sep), part]
        return np.concatenate([*framed, self._special(*(eos or sep))])

    def _special(self, *tokens: int) -> TokenIds:
        """Those of them that the vocabulary has."""
        return np.array([token for token in tokens if 0 <= token < self.vocabulary_tokens], np.int32)

    def _fragment(self, text: str, *, special: bool, first: bool) -> TokenIds:
        """An SPM vocabulary puts a space before whatever it is given. Only the first fragment of a prompt should get
        one, so the others are tokenised behind a newline, whose tokens are then taken off."""
        data = text.encode("utf-8", "replace")
        if not first and len(self._newline):
            tokens = self._tokenise(b"\n" + data, special=special)
            if np.array_equal(tokens[: len(self._newline)], self._newline):
                return tokens[len(self._newline) :]
        return self._tokenise(data, special=special)

    def _tokenise(self, data: bytes, *, special: bool) -> TokenIds:
        tokens = np.empty(len(data) + 16, np.int32)
        count = self._tokenise_into(tokens, data, special=special)
        if count < 0:  # a normalising vocabulary needs more than one token per byte, and says how many
            tokens = np.empty(-count, np.int32)
            count = self._tokenise_into(tokens, data, special=special)
        tokens = tokens[: max(count, 0)].copy()
        if count < 0 or (count and not (tokens.min() >= 0 and tokens.max() < self.vocabulary_tokens)):
            raise ValueError("the vocabulary gave token ids outside itself")
        return tokens

    def _tokenise_into(self, tokens: TokenIds, data: bytes, *, special: bool) -> int:
        target = ctypes.cast(tokens.ctypes.data, ctypes.POINTER(ctypes.c_int32))
        count = llama.llama_tokenize(self._vocabulary, data, len(data), target, len(tokens), False, special)
        if count < -(2**28):
            raise ValueError("the text is too long to tokenise")
        return int(count)

    # --- tokens to text ---------------------------------------------------------------------------------------------

    def is_end(self, token: int) -> bool:
        """Whether a sampled token ends the answer. ``token`` is below ``vocabulary_tokens``."""
        return bool(_is_eog(self._vocabulary, token))

    def is_special(self, token: int) -> bool:
        return bool(_is_eog(self._vocabulary, token) or _is_control(self._vocabulary, token))

    def piece(self, token: int) -> bytes:
        """The bytes of one token, possibly part of a character; empty for a control token. Cached.

        Raises ``ValueError`` for an id outside the vocabulary, which would abort the process in llama.cpp.
        """
        cached = self._pieces.get(token)
        if cached is not None:
            return cached
        if not 0 <= token < self.vocabulary_tokens:
            raise ValueError(f"token {token} is outside the vocabulary")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = _to_piece(self._vocabulary, token, buffer, size, 0, False)
            if length >= 0:
                break
            if -length > _MAX_PIECE_BYTES:
                raise ValueError(f"token {token} stands for {-length} bytes")
            size = -length
        piece = self._pieces[token] = buffer.raw[:length]
        return piece


def _rank_outputs(header: bytearray) -> int:
    """How many numbers the last layer of a rank head gives; 0 for a model without a head."""
    found = {}
    for dense, output, dimensions, second in _RANK_HEAD.findall(header):
        found[dense or output] = int.from_bytes(second, "little") if dimensions == b"\2" else 1
    return found.get(b"cls.output", found.get(b"cls", 0))


def _first_bytes(descriptor: int) -> bytearray:
    """As much of the file as a header may take. The descriptor's offset is left as it was."""
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    found = bytearray()
    while len(found) < _MAX_HEADER_BYTES and (more := os.read(descriptor, 1 << 20)):
        found += more
    os.lseek(descriptor, start, os.SEEK_SET)
    return found
