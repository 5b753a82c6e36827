"""Whose signatures count, how many are needed, and as of when: the operator's ``trust/`` directory at one moment.

::

    <name>.pem           the public key of a signer
    roots/<name>.pem     the root certificate of an authority whose code-signing certificates count
    revoked.txt          certificates and keys that no longer do (``models.certificates.DenyList``)
    policy.toml          required_signers = 2                 how many distinct signers a model needs (default 1)
                         signers = ["acme", "safety-board"]   whose count towards it (default: everyone trusted)
                         required_catalogue_signers = 2       how many keys must sign the catalogue (default 1)

All but the first may be absent. Unknown keys, and requirements that nobody could meet, are errors.

Trusts: the operator, who alone can write there.
Promises: ``Trust`` never asks a clock: it holds for the moment it was made for. One is made for each verification.
Not here: how a signature is checked (``models.oms``); how the signers of a model are counted (``core.manifest``).
"""

import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.core.manifest import TrustPolicy
from appliance.core.refusals import Fault
from appliance.core.values import Value
from appliance.models.certificates import DenyList, TrustedRoots
from appliance.models.keys import TrustedKeys, read_pems, read_trust_file


class PolicyFile(Value, frozen=True, kw_only=True):
    """What ``policy.toml`` may say."""

    required_signers: Annotated[int, Meta(ge=1, le=16)] = 1
    signers: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)] | None = None
    required_catalogue_signers: Annotated[int, Meta(ge=1, le=16)] = 1


class Trust:
    """Keys, roots, deny-list and policy, as of ``now_seconds``."""

    def __init__(
        self,
        keys: TrustedKeys,
        *,
        now_seconds: int,
        roots: TrustedRoots | None = None,
        denied: DenyList | None = None,
        policy: TrustPolicy | None = None,
    ) -> None:
        self.keys = keys
        self.now_seconds = now_seconds
        self.roots = roots or TrustedRoots({})
        self.denied = denied or DenyList()
        self.policy = policy or TrustPolicy()

    @staticmethod
    def stamp(directory: Path) -> Hashable:
        """Changes when anything in the directory, or one below, is added, removed or replaced. Raises ``Fault``."""
        try:
            return tuple(
                (str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                for path in (directory, *sorted(directory.glob("*")), *sorted(directory.glob("*/*")))
                for status in (path.lstat(),)
            )
        except OSError as error:
            raise Fault(f"the trusted keys could not be read: {error.strerror}") from error

    @classmethod
    def load(cls, directory: Path, *, now_seconds: int) -> "Trust":
        """Reads the directory anew. Raises ``Fault`` if anything there is unreadable or writable by others."""
        file = load_policy_file(directory)
        keys = TrustedKeys.load(directory)
        roots_directory = directory / "roots"
        roots = TrustedRoots(read_pems(roots_directory) if roots_directory.exists() else {})
        return cls(
            keys,
            now_seconds=now_seconds,
            roots=roots,
            denied=load_deny_list(directory),
            policy=TrustPolicy(
                required=file.required_signers, signers=None if file.signers is None else frozenset(file.signers)
            ),
        )


def load_policy_file(directory: Path) -> PolicyFile:
    """Raises ``Fault`` for a file that is not what ``PolicyFile`` says."""
    raw = read_trust_file(directory, "policy.toml")
    if raw is None:
        return PolicyFile()
    try:
        file = msgspec.convert(tomllib.loads(raw.decode()), PolicyFile)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Fault(f"trust/policy.toml: {error}") from error
    if file.signers is not None and len(set(file.signers)) < file.required_signers:
        raise Fault("trust/policy.toml: more signers are required than are named")
    return file


def load_deny_list(directory: Path) -> DenyList:
    """Raises ``Fault`` for a line that is not understood."""
    raw = read_trust_file(directory, "revoked.txt")
    try:
        return DenyList("" if raw is None else raw.decode())
    except UnicodeDecodeError as error:
        raise Fault("trust/revoked.txt is not UTF-8") from error


def trust_of(trusted: TrustedKeys | Trust) -> Trust:
    """Keys alone are a trust without roots, so that no certificate counts and the moment does not matter."""
    return trusted if isinstance(trusted, Trust) else Trust(trusted, now_seconds=0)
