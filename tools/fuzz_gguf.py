#!/usr/bin/env python3
"""Mutates GGUF files where it hurts and asks the validator about each: ``fuzz_gguf.py MODEL... --count 1000000``.

A model is taken apart into its fields (magic, counts, lengths, types, values, dimensions, offsets); a mutant is the
model with one to four changes: a field set to a border value, a length that lies, a type changed under its value, a
key or tensor copied, dropped or moved, a text replaced, hyperparameters set, an array grown, bytes flipped, a cut, an
extension. The same seed gives the same mutants, one by one, whatever else was asked for.

It prints one JSON object and ends with 1 if anything but ``GgufInvalid`` was raised, if a verdict took more than 100 ms
of CPU (the least of three measurements, because others use the machine too) or raised memory by more than 64 MiB.
Arrays of texts grow to all that the caps allow, vocabularies to 158,000 tokens with twice as many merges.
"""

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from struct import pack, unpack_from

sys.path.insert(0, str(Path(__file__).parents[1]))

from appliance.core.gguf import MAX_ARRAY_STRINGS, MAX_HEADER_BYTES, GgufInvalid, NeedMore, parse_header

LIMIT_MS = 100.0
LARGE_MS = 2.0
LIMIT_GROWTH_BYTES = 64 * 1024 * 1024
FIRST_READ_BYTES = 256 * 1024

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
BORDERS = sorted(
    {
        (value + delta) % 2**64
        for value in (0, 1, 2, 4, 8, 16, 31, 32, 63, 64, 128, 255, 256, 512, 1024, 4096, 16384, 65536, 2**20, 2**24, 2**30,
                      2**31, 2**32, 2**40, 2**48, 2**61, 2**62, 2**63)
        for delta in (-1, 0, 1)
    }
)  # fmt: skip
TEXTS = (
    b"", b"\0", b"llama\0x", b"llama", b"gpt2", b"qwen2", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\x1b[2J", b"a\nb",
    b"../../etc/passwd", b"<0x-1>", b"<0x0A>", b"\xe2\x80\xae", b"{{ ''.__class__.__mro__ }}", b"{% for a in range(10**9) %}",
    b"x" * 63, b"x" * 64, b"x" * 256, b"x" * 257, b"y" * 70_000,
)  # fmt: skip

GROWN_TEXTS = ((b"x",), (b"abc",), (b"", b"abc"), (b"y" * 255,), (b"x",) * 63 + (b"y" * 257,))
GROWN_BYTES = 20 * 1024 * 1024

Field = tuple[str, bytes]


@dataclass(frozen=True)
class Model:
    """A file in its parts. A record (one key, one tensor) is a tuple of fields: what it is, its bytes."""

    head: tuple[Field, ...]
    keys: tuple[tuple[Field, ...], ...]
    tensors: tuple[tuple[Field, ...], ...]
    data: bytes
    alignment: int = 32
    padding: bytes = b"\0"
    cut: int | None = None  # so many bytes of the whole file are left
    tail: bytes = b""

    def header(self) -> bytes:
        raw = b"".join(data for part in (self.head, *self.keys, *self.tensors) for _role, data in part)
        return raw + self.padding * (-len(raw) % self.alignment)

    def file_bytes(self, header: bytes) -> int:
        whole = len(header) + len(self.data) + len(self.tail)
        return whole if self.cut is None else min(self.cut, whole)

    def build(self) -> bytes:
        header = self.header()
        return (header + self.data + self.tail)[: self.file_bytes(header)]


def read_model(path: Path) -> Model:
    """Takes a sound file apart."""
    data = path.read_bytes()
    position = 0

    def take(role: str, n_bytes: int) -> Field:
        nonlocal position
        position += n_bytes
        return role, data[position - n_bytes : position]

    def number(field: Field) -> int:
        return int.from_bytes(field[1], "little")

    def text(role: str) -> list[Field]:
        length = take("length", 8)
        return [length, take(role, number(length))]

    def value(kind: int) -> list[Field]:
        if kind == STRING:
            return text("text")
        if kind != ARRAY:
            return [take("number", SCALAR_BYTES[kind])]
        element, count = take("type", 4), take("count", 8)
        if number(element) != STRING:
            return [element, count, take("elements", number(count) * SCALAR_BYTES[number(element)])]
        start = end = position
        for _ in range(number(count)):
            end += 8 + unpack_from("<Q", data, end)[0]
        return [element, count, take("elements", end - start)]

    head = (take("magic", 4), take("version", 4), take("tensors", 8), take("keys", 8))
    keys = []
    for _ in range(number(head[3])):
        name = text("name")
        kind = take("type", 4)
        keys.append((*name, kind, *value(number(kind))))
    tensors = []
    for _ in range(number(head[2])):
        name = text("name")
        n_dimensions = take("dimensions", 4)
        dimensions = [take("dimension", 8) for _ in range(number(n_dimensions))]
        tensors.append((*name, n_dimensions, *dimensions, take("tensor-type", 4), take("offset", 8)))
    position += -position % 32
    return Model(head, tuple(keys), tuple(tensors), data[position:])


# --- mutations --------------------------------------------------------------------------------------------------------


def with_record(model: Model, where: str, index: int, record: tuple[Field, ...]) -> Model:
    records = getattr(model, where)
    if where == "head":
        return replace(model, head=record)
    return replace(model, **{where: (*records[:index], record, *records[index + 1 :])})


def pick(model: Model, chance: random.Random) -> tuple[str, int, tuple[Field, ...]]:
    where = chance.choices(("head", "keys", "tensors"), (1, 5, 4))[0]
    records = getattr(model, where)
    if where == "head" or not records:
        return "head", 0, model.head
    index = chance.randrange(len(records))
    return where, index, records[index]


def set_number(model: Model, chance: random.Random) -> Model:
    """Any fixed field becomes a border value, a neighbour or noise; lengths, counts and offsets then lie."""
    where, index, record = pick(model, chance)
    places = [place for place, (role, data) in enumerate(record) if 0 < len(data) <= 8 and role not in {"name", "text"}]
    if not places:
        return model
    place = chance.choice(places)
    role, data = record[place]
    old = int.from_bytes(data, "little")
    new = chance.choice(
        (
            chance.choice(BORDERS),
            old + chance.choice((-32, -1, 1, 32)),
            chance.getrandbits(64),
            old ^ 1 << chance.randrange(64),
        )
    )
    changed = (role, (new % 2 ** (8 * len(data))).to_bytes(len(data), "little"))
    return with_record(model, where, index, (*record[:place], changed, *record[place + 1 :]))


def set_type(model: Model, chance: random.Random) -> Model:
    """A small number where a type stands: the value below it is read as another."""
    where, index, record = pick(model, chance)
    places = [
        place for place, (role, _data) in enumerate(record) if role in {"type", "tensor-type", "dimensions", "version"}
    ]
    if not places:
        return model
    place = chance.choice(places)
    changed = (record[place][0], pack("<I", chance.choice((*range(14), 16, 24, 30, 39, 41, 99))))
    return with_record(model, where, index, (*record[:place], changed, *record[place + 1 :]))


def set_text(model: Model, chance: random.Random) -> Model:
    """A name or a text is replaced, with its right length."""
    where, index, record = pick(model, chance)
    places = [place for place, (role, _data) in enumerate(record) if role in {"name", "text"}]
    if not places:
        return model
    place = chance.choice(places)
    role, old = record[place]
    new = chance.choice((chance.choice(TEXTS), old + b"\0", old[:-1], old.upper(), old * 2))
    return with_record(
        model, where, index, (*record[: place - 1], ("length", pack("<Q", len(new))), (role, new), *record[place + 1 :])
    )


def counted(model: Model) -> Model:
    """The counts in the head follow the records."""
    head = (*model.head[:2], ("tensors", pack("<Q", len(model.tensors))), ("keys", pack("<Q", len(model.keys))))
    return replace(model, head=head)


def move_record(model: Model, chance: random.Random) -> Model:
    """A key or a tensor is copied, dropped or moved."""
    where = chance.choice(("keys", "tensors"))
    records = list(getattr(model, where))
    if not records:
        return model
    index = chance.randrange(len(records))
    action = chance.randrange(3)
    record = records[index] if action == 0 else records.pop(index)
    if action != 1:
        records.insert(chance.randrange(len(records) + 1), record)
    changed = replace(model, **{where: tuple(records)})
    return changed if chance.random() < 0.2 else counted(changed)


def key_record(name: bytes, kind: int, encoded: bytes) -> tuple[Field, ...]:
    return ("length", pack("<Q", len(name))), ("name", name), ("type", pack("<I", kind)), ("number", encoded)


def put_key(model: Model, record: tuple[Field, ...]) -> Model:
    rest = tuple(old for old in model.keys if old[1][1] != record[1][1])
    return counted(replace(model, keys=(*rest, record)))


HYPERPARAMETERS = (
    b"llama.block_count", b"llama.context_length", b"llama.embedding_length", b"llama.feed_forward_length",
    b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.rope.dimension_count", b"llama.vocab_size",
    b"llama.expert_count", b"llama.expert_used_count", b"llama.attention.key_length", b"llama.attention.value_length",
    b"llama.attention.sliding_window", b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id",
    b"tokenizer.ggml.padding_token_id", b"general.file_type", b"general.quantization_version",
)  # fmt: skip
FLOATS = (
    b"llama.attention.layer_norm_rms_epsilon",
    b"llama.rope.freq_base",
    b"llama.rope.scaling.factor",
    b"llama.logit_scale",
)


def set_hyperparameter(model: Model, chance: random.Random) -> Model:
    if chance.random() < 0.25:
        value = chance.choice((0.0, -0.0, -1.0, 1e-45, 3.4e38, float("nan"), float("inf"), chance.uniform(0, 1e6)))
        return put_key(model, key_record(chance.choice(FLOATS), 6, pack("<f", value)))
    value = chance.choice((chance.choice(BORDERS) % 2**32, chance.randrange(1, 600)))
    return put_key(model, key_record(chance.choice(HYPERPARAMETERS), 4, pack("<I", value)))


def set_split(model: Model, chance: random.Random) -> Model:
    return put_key(model, key_record(b"split.count", 2, pack("<H", chance.choice((0, 1, 2, 65535)))))


def set_alignment(model: Model, chance: random.Random) -> Model:
    """An alignment that the layout follows, or one that it does not."""
    value = chance.choice((0, 1, 7, 8, 16, 32, 64, 128, 4096, 8192, 2**31))
    changed = put_key(model, key_record(b"general.alignment", 4, pack("<I", value)))
    return replace(changed, alignment=value) if 1 <= value <= 8192 and chance.random() < 0.5 else changed


def change_elements(model: Model, chance: random.Random) -> Model:
    """Bytes inside an array, or its elements cut short under a count that stays."""
    places = [
        (index, place)
        for index, key in enumerate(model.keys)
        for place, (role, data) in enumerate(key)
        if role == "elements" and data
    ]
    if not places:
        return model
    index, place = chance.choice(places)
    record = model.keys[index]
    data = bytearray(record[place][1])
    at = chance.randrange(len(data))
    if chance.random() < 0.3:
        del data[at : at + chance.choice((1, 4, 8))]
    else:
        data[at] = chance.randrange(256)
    return with_record(model, "keys", index, (*record[:place], ("elements", bytes(data)), *record[place + 1 :]))


def grow_array(model: Model, chance: random.Random) -> Model:
    """A new array of many elements, honest or claiming twice as many."""
    element = chance.choice((0, 4, 6, 7, STRING, STRING))
    count = int(10 ** chance.uniform(1, 6.3))
    if element == STRING:
        few = chance.choice(GROWN_TEXTS)
        most = min(count, MAX_ARRAY_STRINGS, GROWN_BYTES // (8 + max(map(len, few))))
        data = b"".join(pack("<Q", len(text)) + text for text in few) * (most // len(few))
        count = most // len(few) * len(few)
    else:
        data = bytes(count * SCALAR_BYTES[element])
    claimed = count if chance.random() < 0.7 else 2 * count
    name = chance.choice((b"x", b"tokenizer.ggml.merges", b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores"))
    return put_key(model, key_record(name, ARRAY, pack("<IQ", element, claimed) + data))


def grow_vocabulary(model: Model, chance: random.Random) -> Model:
    """A vocabulary of any size up to 158,000 tokens, all different, perhaps with twice as many merges."""
    count = int(10 ** chance.uniform(2, 5.2))
    tokens = b"".join(pack("<Q", 6) + b"%06d" % number for number in range(count))
    changed = put_key(model, key_record(b"tokenizer.ggml.tokens", ARRAY, pack("<IQ", STRING, count) + tokens))
    changed = put_key(changed, key_record(b"tokenizer.ggml.scores", ARRAY, pack("<IQ", 6, count) + bytes(4 * count)))
    if chance.random() < 0.8:
        changed = put_key(changed, key_record(b"llama.vocab_size", 4, pack("<I", count)))
    if chance.random() < 0.5:
        merges = pack("<IQ", STRING, 2 * count) + (pack("<Q", 6) + b"to ken") * (2 * count)
        changed = put_key(changed, key_record(b"tokenizer.ggml.merges", ARRAY, merges))
    kinds = pack("<IQ", 5, count) + pack("<I", chance.choice((1, 1, 6))) * count
    return put_key(changed, key_record(b"tokenizer.ggml.token_type", ARRAY, kinds))


def cut_or_extend(model: Model, chance: random.Random) -> Model:
    whole = len(model.header()) + len(model.data)
    if chance.random() < 0.6:
        border = chance.choice((whole - chance.randrange(1, 64), chance.randrange(whole), len(model.header())))
        return replace(model, cut=max(0, border))
    return replace(model, tail=bytes(chance.choice((1, 31, 32, 100, 4096))))


def change_padding(model: Model, chance: random.Random) -> Model:
    return replace(model, padding=bytes([chance.randrange(256)]))


def change_data(model: Model, chance: random.Random) -> Model:
    """The weights: nothing that the validator looks at, but the engine does."""
    data = bytearray(model.data)
    for _ in range(chance.randrange(1, 16)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return replace(model, data=bytes(data))


MUTATIONS = {
    set_number: 30, set_type: 8, set_text: 10, move_record: 10, set_hyperparameter: 14, set_split: 1, set_alignment: 4,
    change_elements: 12, cut_or_extend: 6, change_padding: 1, change_data: 4, grow_array: 0.5, grow_vocabulary: 0.1,
}  # fmt: skip
_MUTATIONS, _WEIGHTS = tuple(MUTATIONS), tuple(MUTATIONS.values())


def mutant(models: list[Model], seed: int, number: int) -> Model:
    """The mutant of this number: a function of its arguments alone."""
    chance = random.Random(f"{seed}/{number}")
    model = chance.choice(models)
    for mutate in chance.choices(_MUTATIONS, _WEIGHTS, k=chance.choice((1, 1, 1, 2, 2, 3, 4))):
        model = mutate(model, chance)
    return model


# --- judging ----------------------------------------------------------------------------------------------------------


def readable(model: Model) -> tuple[bytes, int]:
    """What the validator may ask for of the file, and the file's size."""
    whole = model.build()  # lengths that lie reach into the data
    return whole[:MAX_HEADER_BYTES], len(whole)


def verdict(header: bytes, file_bytes: int) -> str:
    """As ``validator.reading.read_facts``: a first piece, then all that a header may have. ``accepted`` or a reason."""
    for n_bytes in (FIRST_READ_BYTES, MAX_HEADER_BYTES):
        try:
            parse_header(header[: min(n_bytes, file_bytes)], file_bytes)
            return "accepted"
        except GgufInvalid as error:
            return error.reason
        except NeedMore as need:
            if need.n_bytes > min(file_bytes, MAX_HEADER_BYTES):
                raise
    raise AssertionError("NeedMore after all that a header may have")


def judged(model: Model) -> tuple[str, float]:
    """The verdict, and the CPU time it took in milliseconds: the least of up to three measurements."""
    header, file_bytes = readable(model)
    took = []
    for _ in range(3):
        start = time.process_time()
        word = verdict(header, file_bytes)
        took.append(1000 * (time.process_time() - start))
        if took[-1] < LIMIT_MS:
            break
    return word, min(took)


def memory_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split(maxsplit=1)[0])


def growth_bytes(model: Model) -> int:
    """How far one verdict raises this process's memory, the header's own bytes included."""
    header, file_bytes = readable(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what there is
    before = memory_bytes("VmRSS")
    verdict(header, file_bytes)
    return memory_bytes("VmHWM") - before + len(header)


def fuzz(
    models: list[Model],
    *,
    seed: int,
    count: int,
    seconds: float | None = None,
    keep: Path | None = None,
    keep_most: int = 0,
) -> dict:
    """Runs the mutants and returns the figures. Memory is measured for those that take more than ``LARGE_MS``."""
    verdicts: Counter[str] = Counter()
    faults: list[str] = []
    slowest_ms, slowest, over, large, growth, kept = 0.0, -1, 0, 0, 0, 0
    started = time.monotonic()
    number = -1
    for number in range(count):
        if seconds is not None and time.monotonic() - started > seconds:
            number -= 1
            break
        one = mutant(models, seed, number)
        try:
            word, took_ms = judged(one)
        except Exception:
            faults.append(f"mutant {number}: {traceback.format_exc(limit=-2)}")
            continue
        if took_ms > LARGE_MS:
            large += 1
            growth = max(growth, growth_bytes(one))
        verdicts[word] += 1
        over += took_ms >= LIMIT_MS
        if took_ms > slowest_ms:
            slowest_ms, slowest = took_ms, number
        if word == "accepted" and keep is not None and kept < keep_most:
            (keep / f"{seed}-{number}.gguf").write_bytes(one.build())
            kept += 1
    return {
        "seed": seed,
        "mutants": number + 1,
        "accepted": verdicts["accepted"],
        "verdicts": dict(verdicts.most_common()),
        "faults": faults[:20],
        "slowest_ms": round(slowest_ms, 2),
        "slowest_mutant": slowest,
        "over_100_ms": over,
        "measured_for_memory": large,
        "growth_mib": round(growth / 2**20, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def sound(figures: dict) -> bool:
    return not figures["faults"] and not figures["over_100_ms"] and figures["growth_mib"] * 2**20 <= LIMIT_GROWTH_BYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="sound GGUF files to start from")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--keep", type=Path, help="a folder for accepted mutants")
    parser.add_argument("--keep-most", type=int, default=100)
    parser.add_argument("--only", type=int, help="write the mutant of this number to standard output")
    options = parser.parse_args()
    models = [read_model(path) for path in options.models]
    if options.only is not None:
        sys.stdout.buffer.write(mutant(models, options.seed, options.only).build())
        return 0
    figures = fuzz(
        models,
        seed=options.seed,
        count=options.count,
        seconds=options.seconds,
        keep=options.keep,
        keep_most=options.keep_most,
    )
    print(json.dumps(figures, indent=2))
    return 0 if sound(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
