"""TLS 1.3 by Paddock itself: a folder of PEM files, read before the fence and again when they change.

=====================  ======================================================================
``certificate.pem``    the server's certificate, then those that lead to its root
``key.pem``            its private key, without a password; nobody else may read it
``clients.pem``        the certificates that those of clients must lead to, where clients may
                       or must have one
=====================  ======================================================================

Trusts: the operator who can write the folder; OpenSSL.
Promises: no connection in another version than 1.3, and none resumed, so that each client's certificate is looked at
    when it connects. New files are used for new connections if they load completely; else the former ones are.
Not here: who a client's certificate stands for (``identity``); revocation lists, which are not read.
"""

import asyncio
import logging
import ssl
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from appliance.core.refusals import Misconfigured

CHECK_SECONDS: Final = 1.0
CERTIFICATE, KEY, CLIENTS = "certificate.pem", "key.pem", "clients.pem"
MAX_FILE_BYTES: Final = 1024 * 1024

ClientCertificates = Literal["none", "optional", "required"]
_MODES: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

log = logging.getLogger(__name__)


class TlsFolder:
    """``context`` is the present one, for a connection that begins now."""

    def __init__(self, folder: Path, client_certificates: ClientCertificates) -> None:
        """Raises ``Misconfigured`` when the files cannot be used: there are no former ones yet."""
        self.folder = folder
        self._client_certificates = client_certificates
        self._seen = self._stamp()
        self.context = self._load()

    def look(self) -> None:
        """Reads the files anew if they have changed. Their new state is tried once, and is good or bad."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.context = self._load()
        except Misconfigured as error:
            log.warning("the changed certificate is not used, the former one is: %s", error.detail)
        else:
            log.info("the certificate in %s is in use", self.folder)

    def _load(self) -> ssl.SSLContext:
        _check_folder(self.folder)
        for name in self._names():
            _check_file(self.folder, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
        context.num_tickets = 0  # a resumed session would carry a certificate that is not looked at again
        context.set_alpn_protocols(["http/1.1"])
        context.verify_mode = _MODES[self._client_certificates]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY, password=_no_password)
            if self._client_certificates != "none":
                context.load_verify_locations(cafile=self.folder / CLIENTS)
                if not context.get_ca_certs():
                    raise Misconfigured(f"{self.folder / CLIENTS}: no certificate of an authority")
        except (OSError, ValueError) as error:  # ssl.SSLError is one of the first
            raise Misconfigured(f"{self.folder}: {error}") from error
        return context

    def _names(self) -> tuple[str, ...]:
        return (CERTIFICATE, KEY) if self._client_certificates == "none" else (CERTIFICATE, KEY, CLIENTS)

    def _stamp(self) -> tuple[tuple[int, int, int], ...] | None:
        """What changes when a file is written, replaced or given to others; None while one is missing."""
        try:
            stats = [(self.folder / name).stat() for name in self._names()]
        except OSError:
            return None
        return tuple((status.st_ino, status.st_size, status.st_ctime_ns) for status in stats)


async def follow(folders: Iterable[TlsFolder]) -> None:
    """Looks at the files until cancelled."""
    followed = tuple(folders)
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        for folder in followed:
            folder.look()


def _check_folder(folder: Path) -> None:
    """Raises ``Misconfigured`` for one such as /etc, all of which the fence would have to leave readable. Folders of
    Kubernetes' own, whose names begin with two dots, are where it keeps what it mounts."""
    try:
        others = [one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("..")]
    except OSError as error:
        raise Misconfigured(f"{folder}: {error.strerror}") from error
    if others:
        raise Misconfigured(f"{folder}: has {others[0]!r} in it; certificates need a folder of their own")


def _check_file(folder: Path, name: str) -> None:
    """Raises ``Misconfigured`` for a key that others can use, and for what the fence would later keep from us."""
    path = folder / name
    try:
        status = path.stat()
        within = path.resolve().is_relative_to(folder.resolve())
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise Misconfigured(f"{path}: not a file of at most {MAX_FILE_BYTES} bytes")
    if not within:
        raise Misconfigured(f"{path}: leads out of its folder, which is all that the fence leaves readable")
    if name == KEY and stat.S_IMODE(status.st_mode) & 0o037:
        raise Misconfigured(f"{path}: others than its owner and readers of its group can use it")


def _no_password() -> str:
    raise ValueError("the key has a password")
