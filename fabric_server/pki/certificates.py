"""The directory with the fabric's CA and the server's certificate: made on first start.

    <directory>/ca.pem      10 years, made again with the same key when one is left
    <directory>/ca.key      0600; what nodes trust is this key
    <directory>/server.pem  90 days, made again when a third is left or a name is missing
    <directory>/server.key  0600

A clock that was wrong leaves certificates that are not valid yet, or no longer.  Those are made
again, too; a CA keeps its key then, so that nodes that joined go on.

``tls_contexts`` makes TLS contexts from these files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fabric_server.pki.ca import (
    DAY,
    SERVER_SECONDS,
    Authority,
    fingerprint,
    key_pem,
    names_of,
    to_pem,
)
from fabric_server.pki.names import spelled
from protocol.join import BACKDATED_SECONDS
from protocol.names import SERVER_NAME
from runtime.errors import Problem
from runtime.files import write

log = logging.getLogger("fabric.certificates")


class CertificateProblem(Problem):
    """A certificate or key of the server is unusable; the message says which, why, what to do."""


@dataclass(frozen=True)
class Fact:
    """One certificate in use, for ``fabric-server certs show``."""

    use: str
    path: Path
    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float
    """Unix seconds."""
    sha256: str
    """Hex; the one of the CA is in join tokens."""
    key: str


def fact(use: str, path: Path) -> Fact:
    """Describe the certificate in a file.  Raises ``CertificateProblem``."""
    certificate = read_certificate(path)
    key = certificate.public_key()
    size = getattr(key, "key_size", "")
    kind = "ECDSA P-" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__ + " "
    return Fact(
        use,
        path,
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        tuple(names_of(certificate)),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        fingerprint(certificate).hex(),
        f"{kind}{size}".replace("PublicKey", "").strip(),
    )


class Certificates:
    """The directory with the CA and the server's certificate.

    ``names`` are the names under which clients reach the server, beside those of every server.
    """

    def __init__(self, directory: Path, names: Sequence[str] = ()) -> None:
        self.directory = directory
        self.ca, self.ca_key = directory / "ca.pem", directory / "ca.key"
        self.server, self.server_key = directory / "server.pem", directory / "server.key"
        self.names = _all_names(names)
        self.authority: Authority

    def __repr__(self) -> str:
        return f"<Certificates {self.directory}>"

    @classmethod
    def open(cls, directory: Path, names: Sequence[str] = (), *, now: float) -> Certificates:
        """Load the files, make those missing or due.  Raises ``CertificateProblem``."""
        certificates = cls(directory, names)
        certificates.refresh(now, starting=True)
        return certificates

    @classmethod
    def of_server(cls, directory: Path) -> Certificates:
        """Load the CA of a server that was started before; make nothing.

        Raises ``CertificateProblem``.
        """
        certificates = cls(directory)
        certificates.authority = Authority(
            read_certificate(certificates.ca), read_key(certificates.ca_key)
        )
        return certificates

    @property
    def files(self) -> tuple[Path, ...]:
        return self.ca, self.ca_key, self.server, self.server_key

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.authority.certificate)

    def refresh(self, now: float, *, starting: bool = False) -> bool:
        """Reload the files, and make those that are missing or due; return whether any was made.

        While the server runs, a certificate without its key is taken for a replacement under way.
        Raises ``CertificateProblem`` and then keeps the loaded CA.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _process_lock(self.directory):
                authority, made = self._authority(now)
                made |= self._server(authority, now, starting)
        except OSError as error:
            raise CertificateProblem(
                f"{error.filename or self.directory} can't be used: {error.strerror}. "
                "The server's user must be able to read and write there."
            ) from error
        self.authority = authority
        return made

    def facts(self) -> list[Fact]:
        return [fact("CA of the fabric", self.ca), fact("server, for nodes", self.server)]

    def _authority(self, now: float) -> tuple[Authority, bool]:
        if not self.ca.exists():
            # With the key of a lost certificate, nodes still trust what the new one signs: name and
            # key are the same.
            had_key = self.ca_key.exists()
            authority = Authority.make(now, read_key(self.ca_key) if had_key else None)
            # The key first: a certificate without its key would stop the next start.
            if not had_key:
                write(self.ca_key, key_pem(authority.key), secret=True)
            write(self.ca, authority.pem)
            log.info("made a CA", extra={"path": str(self.ca)})
            return authority, True
        if not self.ca_key.exists():
            raise CertificateProblem(
                f"{self.ca} exists but {self.ca_key} is missing. Restore the key; without it "
                "no node can join. (Without both files a new CA is made; nodes must rejoin.)"
            )
        certificate, key = read_certificate(self.ca), read_key(self.ca_key)
        if certificate.public_key() != key.public_key():
            raise CertificateProblem(
                f"{self.ca_key} is not the key of {self.ca}: restore the right one."
            )
        reason = _why_new_authority(certificate, now)
        if reason is None:
            return Authority(certificate, key), False
        authority = Authority.make(now, key)
        if authority.certificate.subject != certificate.subject:
            return self._foreign_authority(Authority(certificate, key), reason), False
        write(self.ca, authority.pem)
        log.warning(
            "made a new certificate for the CA's key; unused invitations must be made again",
            extra={"path": str(self.ca), "because": reason},
        )
        return authority, True

    def _foreign_authority(self, authority: Authority, reason: str) -> Authority:
        """Use a CA of the operator's making, which can't be made again here, as long as it is good.

        Raises ``CertificateProblem`` otherwise.
        """
        if reason is not _ENDING:
            raise CertificateProblem(
                f"{self.ca} is not valid now ({reason}), and was not made by this server. Replace "
                "it with one of the same key and name; or remove ca.pem, ca.key, server.pem and "
                f"server.key in {self.directory} to have new ones made: every node must join "
                "again then."
            )
        log.warning("the CA's certificate expires soon", extra={"path": str(self.ca)})
        return authority

    def _server(self, authority: Authority, now: float, starting: bool) -> bool:
        reason = self._why_new_server(authority, now, starting)
        if reason is None:
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.sign_server(key.public_key(), self.names, now, SERVER_SECONDS)
        try:
            write(self.server_key, key_pem(key), secret=True)
            write(self.server, to_pem(certificate))
        except OSError as error:
            if reason is not _ENDING:
                raise
            log.warning(
                "can't renew the server's certificate",
                extra={"path": str(self.server), "error": str(error)},
            )
            return False
        log.info("made a server certificate", extra={"path": str(self.server), "because": reason})
        return True

    def _why_new_server(self, authority: Authority, now: float, starting: bool) -> str | None:
        missing = [path for path in (self.server, self.server_key) if not path.exists()]
        if missing:
            if len(missing) == 1 and not starting:
                raise CertificateProblem(f"{missing[0]} is missing.")
            return "there was none"
        certificate, key = read_certificate(self.server), read_key(self.server_key)
        try:
            certificate.verify_directly_issued_by(authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            # The operator put it here: do not overwrite it.
            raise CertificateProblem(
                f"{self.server} was not signed by {self.ca}, so nodes would refuse it. Set "
                "public_certificate and public_key for a certificate of your own; remove "
                "server.pem and server.key to have the fabric's made again."
            ) from None
        if certificate.public_key() != key.public_key():
            if starting:  # the last renewal was cut short between the two files
                return "its key was another's"
            raise CertificateProblem(f"{self.server_key} is not the key of {self.server}.")
        unnamed = set(self.names) - set(names_of(certificate))
        if unnamed:
            return f"it did not name {', '.join(sorted(unnamed))}"
        begins = certificate.not_valid_before_utc.timestamp()
        ends = certificate.not_valid_after_utc.timestamp()
        if begins > now:
            return _NOT_BEGUN
        if ends <= now:
            return "it had ended"
        if ends - now < (ends - begins - BACKDATED_SECONDS) / 3:
            # It can't outlive the CA: a new one would be due again at once.
            outlived = authority.certificate.not_valid_after_utc.timestamp() - ends > DAY
            return _ENDING if outlived else None
        return None


def _why_new_authority(certificate: x509.Certificate, now: float) -> str | None:
    ends = certificate.not_valid_after_utc.timestamp()
    if certificate.not_valid_before_utc.timestamp() > now:
        return _NOT_BEGUN
    if ends <= now:
        return "it had ended"
    return _ENDING if ends - now < AUTHORITY_SPARE_SECONDS else None


AUTHORITY_SPARE_SECONDS = 365 * DAY
"""A CA's certificate is made again when less is left: what it signs can't outlive it."""
_ENDING = "it was ending"
_NOT_BEGUN = "it was not valid yet: the clock was ahead when it was made"


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.  Raises ``CertificateProblem``."""
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise CertificateProblem(f"{path} contains no PEM certificate: {error}.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateProblem(f"{path} can't be read: {error.strerror}.") from None


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateProblem(
            f"{path} contains no readable key (PEM, without a password): {error}."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateProblem(f"{path} is not an ECDSA key; the fabric's own must be P-256.")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning(
            "other users can read this private key: run chmod 600 on it", extra={"path": str(path)}
        )
    return key


@contextlib.contextmanager
def _process_lock(directory: Path) -> Iterator[None]:
    """Prevent two programs that start at once from making two CAs."""
    try:
        import fcntl
    except ImportError:  # not POSIX: servers run there in development only
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _all_names(names: Iterable[str]) -> tuple[str, ...]:
    wanted = []
    for name in (SERVER_NAME, "localhost", "127.0.0.1", "::1", *names):
        try:
            wanted.append(spelled(name))
        except ValueError as error:
            raise CertificateProblem(
                f"{error}, so it can't be in a certificate: correct the setting address."
            ) from None
    with contextlib.suppress(ValueError):  # the host name was not chosen for certificates
        wanted.append(spelled(socket.gethostname()))
    return tuple(dict.fromkeys(wanted))
