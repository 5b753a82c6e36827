"""Signed notes, verifier keys and checkpoints as text (C2SP signed-note and tlog-checkpoint).

A checkpoint, byte for byte::

    paddock.example/log
    70000
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — paddock.example/log Az3grlgtzPICa5OS…

The text is the first three lines with their newlines; the signature is Ed25519 over exactly that text. A verifier key
(vkey) is ``<name>+<8 hex of the key id>+<base64 of 0x01 || 32 key bytes>``. Text here is *unverified*: whoever holds
a cryptographic library checks the signature that ``find_signature`` returns.
"""

import re
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Final

from appliance.core.tree import HASH_BYTES
from appliance.core.values import Value

ED25519: Final = b"\x01"
"""Signature type identifier byte (signed-note, "Signature types")."""

MAX_NOTE_BYTES: Final = 64 * 1024
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_VKEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\n?")


class NoteInvalid(Exception):
    """The text is not a well-formed note, checkpoint or verifier key."""


class VerifierKey(Value, frozen=True, kw_only=True):
    """An Ed25519 public key with the name under which it signs."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """First four bytes of SHA-256(name || newline || type || public key)."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public_key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(ED25519 + self.public_key).decode()}"


class Signature(Value, frozen=True, kw_only=True):
    name: str
    key_id: bytes
    signature: bytes


class Note(Value, frozen=True, kw_only=True):
    """``text`` is what was signed, final newline included. Nothing is verified yet."""

    text: str
    signatures: tuple[Signature, ...]


class Checkpoint(Value, frozen=True, kw_only=True):
    """A tree head: which log, how many leaves, which root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


def valid_name(name: str) -> bool:
    """Whether a name may be an origin and a key name: printable, no space, no plus."""
    return bool(name) and "+" not in name and name.isprintable() and not any(c.isspace() for c in name)


def parse_vkey(text: str) -> VerifierKey:
    """vkey text (one final newline allowed) -> key. Raises ``NoteInvalid``, also for any type but Ed25519."""
    match = _VKEY.fullmatch(text)
    if match is None or not valid_name(match[1]):
        raise NoteInvalid("not a verifier key: expected <name>+<key id>+<key>")
    data = decode_base64(match[3])
    if data[:1] != ED25519 or len(data) != 33:
        raise NoteInvalid("not an Ed25519 verifier key")
    key = VerifierKey(name=match[1], public_key=data[1:])
    if key.key_id.hex() != match[2]:
        raise NoteInvalid("the verifier key's id does not fit its bytes")
    return key


def format_note(text: str, signatures: tuple[Signature, ...]) -> str:
    """Text that ends in a newline, and signatures -> note."""
    lines = (f"\u2014 {s.name} {b64encode(s.key_id + s.signature).decode()}\n" for s in signatures)
    return text + "\n" + "".join(lines)


def parse_note(data: bytes) -> Note:
    """Bytes -> unverified note. Raises ``NoteInvalid``."""
    if len(data) > MAX_NOTE_BYTES:
        raise NoteInvalid("the note is too large")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise NoteInvalid("the note is not UTF-8") from None
    if any(c < " " and c != "\n" for c in whole):
        raise NoteInvalid("the note has a control character")
    head, separator, tail = whole.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise NoteInvalid("the note has no signature lines")
    signatures = tuple(_parse_signature(line) for line in tail[:-1].split("\n"))
    return Note(text=head + "\n", signatures=signatures)


def _parse_signature(line: str) -> Signature:
    fields = line.split(" ")
    if len(fields) != 3 or fields[0] != "\u2014" or not valid_name(fields[1]):
        raise NoteInvalid("a signature line is malformed")
    data = decode_base64(fields[2])
    if len(data) < 5:
        raise NoteInvalid("a signature is too short")
    return Signature(name=fields[1], key_id=data[:4], signature=data[4:])


def find_signature(note: Note, key: VerifierKey) -> bytes | None:
    """The signature that claims to be by ``key``; None when there is none. Others are ignored, as the note
    specification asks; two by one key are a ``NoteInvalid``."""
    found = [s.signature for s in note.signatures if (s.name, s.key_id) == (key.name, key.key_id)]
    if len(found) > 1:
        raise NoteInvalid("two signatures by one key")
    return found[0] if found else None


def parse_checkpoint(text: str) -> Checkpoint:
    """A note's text -> checkpoint. Raises ``NoteInvalid``; extension lines are refused, for we write none and no
    monitor could check them."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise NoteInvalid("a checkpoint has three lines")
    if not _SIZE.fullmatch(lines[1]):
        raise NoteInvalid("the checkpoint's tree size is malformed")
    root = decode_base64(lines[2])
    if len(root) != HASH_BYTES:
        raise NoteInvalid("the checkpoint's root is not a hash")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=root)


def decode_base64(text: str) -> bytes:
    """Strict: the one encoding of these bytes. ``b64decode`` alone lets unused trailing bits vary."""
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise NoteInvalid("malformed base64") from None
    if b64encode(data).decode() != text:
        raise NoteInvalid("malformed base64")
    return data
