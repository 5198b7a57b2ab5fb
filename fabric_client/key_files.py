"""The files of a node's key and certificate, and of the next ones while they replace them.

::

    node.key node.pem                       in use
    node.key node.pem  next.key             a certificate for a new key was requested
    node.key node.pem  next.key next.pem    it is there, and in use; the server may not know yet
    node.key node.pem                       the server has accepted it: moved to these names

The pair before is kept until the server has accepted the next one, and each step replaces one file
as a whole: after a crash between any two of them, ``open`` finds a pair that fits.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.files import write


class KeyFiles:
    """A node's directory.  Methods raise OSError, and ValueError for files that can't be read."""

    def __init__(self, directory: Path) -> None:
        """Finish what a crash has interrupted."""
        self._directory = directory
        self._key, self._certificate = directory / "node.key", directory / "node.pem"
        self._next_key, self._next_certificate = directory / "next.key", directory / "next.pem"
        if not self._next_certificate.exists():
            return
        if self._fits(self._next_certificate, self._key):  # the key was moved already
            os.replace(self._next_certificate, self._certificate)
        elif not self._fits(self._next_certificate, self._next_key):
            self._next_certificate.unlink()

    @property
    def uses_next(self) -> bool:
        """Return whether the next pair is complete: it is the one in use."""
        return self._next_certificate.exists()

    @property
    def pair(self) -> tuple[Path, Path]:
        """Return the paths of the certificate and the key in use."""
        if self.uses_next:
            return self._next_certificate, self._next_key
        return self._certificate, self._key

    def request(self, *, new_key: bool) -> str:
        """Return a certificate signing request (PEM) for a new key, or for the one in use."""
        if self.uses_next or not new_key:
            return request_for(read_key(self.pair[1]))
        try:  # a request before this one may have been answered, and the answer lost
            key = read_key(self._next_key)
        except (FileNotFoundError, ValueError):
            key = ec.generate_private_key(ec.SECP256R1())
            write(self._next_key, key_pem(key), secret=True)
        return request_for(key)

    def store(self, pem: str, certificate: x509.Certificate) -> bool:
        """Store a certificate with the key that it is for; return whether a new key is in use now.

        Raises ValueError if it is for neither.
        """
        before = self.uses_next
        if self._next_key.exists() and _is_for(certificate, self._next_key):
            write(self._next_certificate, pem)
            return not before
        if before or not _is_for(certificate, self._key):
            raise ValueError("the certificate is for another key")
        write(self._certificate, pem)
        return False

    def confirm_next(self) -> None:
        """Drop the pair before: the server has accepted the next one."""
        if self.uses_next:
            os.replace(self._next_key, self._key)
            os.replace(self._next_certificate, self._certificate)

    def drop_next(self) -> None:
        """Return to the pair before: the server does not know the next one."""
        for path in (self._next_certificate, self._next_key):
            path.unlink(missing_ok=True)

    def _fits(self, certificate: Path, key: Path) -> bool:
        try:
            return _is_for(x509.load_pem_x509_certificate(certificate.read_bytes()), key)
        except (FileNotFoundError, ValueError):
            return False


def _is_for(certificate: x509.Certificate, key: Path) -> bool:
    return certificate.public_key() == read_key(key).public_key()


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    pem = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise ValueError(f"{path.name} holds no readable key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path.name} is not an ECDSA key")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a certificate signing request (PEM); the server chooses the name."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return (
        request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode("ascii")
    )
