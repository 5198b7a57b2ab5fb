"""Who this node is: its key, its certificate, and the server that it belongs to.

::

    <directory>/node.key    0600, made here, never leaves
    <directory>/node.pem    the certificate, replaced when it is renewed
    <directory>/ca.pem      the only authority that this node trusts
    <directory>/node.json   the rest: id, host, ports
"""

from __future__ import annotations

import contextlib
import os
import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

RENEW_AFTER = 1 / 3
"""A certificate is renewed when this part of its life has passed."""


class NotJoined(Exception):
    """The directory holds no usable identity; the message says what to do."""


class Facts(Struct, frozen=True):
    """``node.json``."""

    node_id: str
    host: str
    api_port: int
    control_port: int
    proxy_port: int


class Identity:
    """Made by ``load``, or by ``fabric_client.enrol.join``."""

    def __init__(self, directory: Path, facts: Facts, certificate: x509.Certificate) -> None:
        self.directory = directory
        self.node_id = facts.node_id
        self.host = facts.host
        self.control_port = facts.control_port
        self._begins = certificate.not_valid_before_utc.timestamp()
        self._ends = certificate.not_valid_after_utc.timestamp()

    def __repr__(self) -> str:
        return f"<Identity {self.node_id} at {self.host}:{self.control_port}>"

    @classmethod
    def load(cls, directory: Path) -> Identity:
        """Raises NotJoined."""
        try:
            facts = msgspec.json.decode((directory / "node.json").read_bytes(), type=Facts)
            certificate = x509.load_pem_x509_certificate((directory / "node.pem").read_bytes())
            (directory / "node.key").stat()
            (directory / "ca.pem").stat()
        except FileNotFoundError:
            raise NotJoined(
                f"This machine has not joined a server yet (nothing in {directory}): "
                "run 'fabric-client join TOKEN' with a token from its operator."
            ) from None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise NotJoined(
                f"What is in {directory} can't be used ({error}): "
                "join again with 'fabric-client join --replace TOKEN'."
            ) from None
        return cls(directory, facts, certificate)

    @property
    def lifetime(self) -> float:
        """Seconds for which the certificate was issued."""
        return self._ends - self._begins

    @property
    def ends(self) -> float:
        """Unix seconds."""
        return self._ends

    def renewal_due(self, now: float) -> bool:
        return now >= self._begins + self.lifetime * RENEW_AFTER

    def context(self, alpn: str) -> ssl.SSLContext:
        """For dialling the server: its certificate must be of our authority, ours is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.directory / "ca.pem")
        context.load_cert_chain(self.directory / "node.pem", self.directory / "node.key")
        context.set_alpn_protocols([alpn])
        return context

    def request(self) -> str:
        """A certificate signing request (PEM) over the key that this node has."""
        key = serialization.load_pem_private_key(
            (self.directory / "node.key").read_bytes(), password=None
        )
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return request_for(key)

    def store_certificate(self, pem: str) -> None:
        """Use a renewed certificate for connections from now on.

        Raises ValueError for one that is not for our key.
        """
        certificate = x509.load_pem_x509_certificate(pem.encode())
        mine = x509.load_pem_x509_csr(self.request().encode()).public_key()
        if certificate.public_key() != mine:
            raise ValueError("the renewed certificate is for another key")
        write(self.directory / "node.pem", pem)
        self._begins = certificate.not_valid_before_utc.timestamp()
        self._ends = certificate.not_valid_after_utc.timestamp()


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return (
        request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode("ascii")
    )


def write(path: Path, text: str, *, secret: bool = False) -> None:
    """Replace a file in one step; a secret one is never readable by others, not for a moment."""
    temporary = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    mode = 0o600 if secret else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


_ALERTS = {
    "CERTIFICATE_EXPIRED": (
        "this node's certificate has expired, since it was away for too long: "
        "ask the operator for a new invitation and join again with --replace"
    ),
    "UNKNOWN_CA": (
        "the server does not know this node's authority: it is another server than the one "
        "joined, or it was set up anew; join again with --replace"
    ),
    "BAD_CERTIFICATE": "the server does not accept this node's certificate: join again",
    "CERTIFICATE_REQUIRED": "the server wants a certificate and got none: join again",
    "CERTIFICATE_REVOKED": "this node was revoked by the operator",
    "NO_APPLICATION_PROTOCOL": "that port speaks something else: is it the right server and port?",
    "WRONG_VERSION_NUMBER": "that port does not speak TLS: is it the right server and port?",
}


def explain(error: BaseException) -> str:
    """Why a server could not be reached, in words for the owner of a node."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not of the authority that this node joined "
            f"({error.verify_message}): it is another server, or someone is in between"
        )
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        for alert, words in _ALERTS.items():
            if alert in reason:
                return words
        return f"TLS failed: {reason}"
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there: is the server running?"
    return str(error) or type(error).__name__
