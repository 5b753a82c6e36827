"""Signed checkpoints: bytes -> a checkpoint that a known key signed.

Trusts: the verifier key that it is given.
Promises: ``verify_checkpoint`` returns only what that key signed, for the log of that name, or raises.
Not here: whether the log's entries lead to its root (``audit.fsck``).
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from appliance.core.note import Checkpoint, NoteInvalid, VerifierKey, find_signature, parse_checkpoint, parse_note


class KeyUnknown(Exception):
    """The checkpoint bears no signature by the key that the auditor trusts."""


class CheckpointInvalid(Exception):
    """The checkpoint is malformed, of another log, or its signature does not verify."""


def verify_checkpoint(unverified_note: bytes, key: VerifierKey) -> Checkpoint:
    """Raises ``KeyUnknown`` or ``CheckpointInvalid``."""
    try:
        note = parse_note(unverified_note)
        signature = find_signature(note, key)
        if signature is None:
            raise KeyUnknown(f"the checkpoint is not signed by {key.name}+{key.key_id.hex()}")
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, note.text.encode())
        checkpoint = parse_checkpoint(note.text)
    except NoteInvalid as error:
        raise CheckpointInvalid(str(error)) from error
    except (InvalidSignature, ValueError) as error:
        raise CheckpointInvalid("the checkpoint's signature does not verify") from error
    if checkpoint.origin != key.name:
        raise CheckpointInvalid(f"the checkpoint is of {checkpoint.origin}, not of {key.name}")
    return checkpoint
