"""Signs the state of the log, and never two that contradict each other.

The order is the point (C2SP tlog-checkpoint, "Signatures": a log must not sign a checkpoint inconsistent with one it
signed before): the head (size and root) that is about to be signed is on disk, synced, *outside* the log's directory,
before the signature exists. A notary that starts finds that head and refuses a log that does not reach it.

Trusts: the log key; that its caller's tree only grows.
Promises: after ``sign`` both the head and the signed checkpoint are durable. A smaller or a different tree raises
    ``Fault`` and is not signed.
Not here: building the tree and its tiles (``notary.publish``); verifying a copy (``audit.fsck``). Whoever holds the
    key and every older checkpoint's only copy can still fork the log: keep checkpoints elsewhere.
"""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.core.note import (
    Checkpoint,
    NoteInvalid,
    Signature,
    VerifierKey,
    find_signature,
    format_note,
    parse_checkpoint,
    parse_note,
)
from appliance.core.refusals import Fault
from appliance.core.tree import TileTree
from appliance.notary.files import Files, replace


def verifier_key(origin: str, key: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey(name=origin, public_key=key.public_key().public_bytes_raw())


class Checkpointer:
    """``head_path`` holds the last head given to the key; ``checkpoint_path`` the signed note."""

    def __init__(
        self, files: Files, *, head_path: Path, checkpoint_path: Path, origin: str, key: Ed25519PrivateKey
    ) -> None:
        self._files = files
        self._head_path = head_path
        self._checkpoint_path = checkpoint_path
        self._key = key
        self.origin = origin
        self.verifier = verifier_key(origin, key)
        self.head: Checkpoint | None = None

    def read(self) -> tuple[Checkpoint, ...]:
        """What was signed, or was about to be, by a former process: the tree must agree with each.

        Raises ``Fault`` when either is malformed, of another log or by another key, or ``OSError``.
        """
        found = []
        try:
            if head := _read(self._head_path):
                self.head = parse_checkpoint(head.decode())
                found.append(self.head)
            if note := _read(self._checkpoint_path):
                found.append(self._verify(note))
        except (NoteInvalid, UnicodeDecodeError) as error:
            raise Fault(f"the last checkpoint cannot be read: {error}") from error
        if any(checkpoint.origin != self.origin for checkpoint in found):
            raise Fault(f"the log's origin is {found[0].origin}, not {self.origin} as configured")
        if found and self.head is None:
            raise Fault(f"{self._head_path.name} is missing although a checkpoint was signed")
        return tuple(found)

    def check(self, tree: TileTree) -> None:
        """To be called at every size of a growing tree, from one not above the last head's on. Raises ``Fault`` when
        the tree is not the one that was signed at that size."""
        if self.head is not None and tree.size == self.head.size and tree.root() != self.head.root:
            raise Fault(f"the log's first {tree.size} entries are not those that were signed")

    def sign(self, size: int, root: bytes) -> None:
        """Signs and publishes. Raises ``Fault`` for a contradiction, ``OSError`` when a file cannot be written."""
        checkpoint = Checkpoint(origin=self.origin, size=size, root=root)
        if self.head is not None:
            if size < self.head.size:
                raise Fault(f"a checkpoint of size {self.head.size} was signed; {size} is smaller")
            if size == self.head.size and root != self.head.root:
                raise Fault(f"another root was signed for size {size}")
        replace(self._files, self._head_path, checkpoint.text.encode())
        self.head = checkpoint
        signature = Signature(
            name=self.origin, key_id=self.verifier.key_id, signature=self._key.sign(checkpoint.text.encode())
        )
        note = format_note(checkpoint.text, (signature,))
        replace(self._files, self._checkpoint_path, note.encode())

    def _verify(self, data: bytes) -> Checkpoint:
        note = parse_note(data)
        signature = find_signature(note, self.verifier)
        if signature is None:
            raise Fault("the last checkpoint was signed by another key")
        try:
            Ed25519PublicKey.from_public_bytes(self.verifier.public_key).verify(signature, note.text.encode())
        except InvalidSignature:
            raise Fault("the last checkpoint's signature does not verify") from None
        return parse_checkpoint(note.text)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
