"""The fabric's CA: signing certificates, and reading those it signed.  No files, no sockets.

A node's certificate names it in its subject and as the URI ``fabric:node:<id>``, and is good for
clients only; the server's is good for servers only and always names ``server.fabric``.
All keys are ECDSA P-256: an RSA-4096 signature costs a server 200 times as much.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fabric_server.pki.names import spelled
from protocol.join import BACKDATED_SECONDS
from protocol.names import SERVER_NAME

DAY = 86_400.0
AUTHORITY_SECONDS = 3650 * DAY
SERVER_SECONDS = 90 * DAY
NODE_SECONDS = 30 * DAY
AUTHORITY_BEGINS = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
"""The beginning of every CA's validity, unless the clock is behind even that.

So a CA that was made while the clock was ahead is valid now.  The date has no other meaning: what
limits the use of a CA is its end, and who has its key.
"""
MAX_REQUEST = 8192
"""Limit of a certificate signing request, in characters."""

_NODE_URI = "fabric:node:"


class BadRequest(ValueError):
    """A certificate signing request can't be signed; the message says why."""


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of the certificate (DER), by which join tokens name the CA."""
    return certificate.fingerprint(hashes.SHA256())


def public_key_sha256(owner: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo (DER), which is stored of a node's key."""
    return hashlib.sha256(
        owner.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).digest()


def node_id(peer_certificate: dict[str, Any] | None) -> str | None:
    """Return the id in a verified client certificate, in the form of ``getpeercert()``.

    None for certificates that are not a node's.
    """
    for kind, value in (peer_certificate or {}).get("subjectAltName", ()):
        if kind == "URI" and value.startswith(_NODE_URI):
            return str(value[len(_NODE_URI) :])
    return None


def read_request(pem: str) -> x509.CertificateSigningRequest:
    """Parse a request, which a P-256 key must have signed.  Raises ``BadRequest``.

    The rest of the request is ignored: the CA chooses the subject.
    """
    if len(pem) > MAX_REQUEST:
        raise BadRequest(f"the certificate request is longer than {MAX_REQUEST} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except Exception:
        # The input is untrusted, and cryptography does not document all that it raises.
        raise BadRequest("not a certificate request in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("the key of the certificate request is not ECDSA P-256")
    if not valid:
        raise BadRequest("the certificate request is not signed by its own key")
    return request


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, now: float, key: ec.EllipticCurvePrivateKey | None = None) -> Authority:
        """Make a new CA, or a new certificate for the ``key`` of a CA."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        # A distinct name, so that the CAs of two fabrics differ before signatures are compared, and
        # a node of another fabric gets the alert "unknown CA".
        name = _name(f"Fabric CA {identifier.digest.hex()[:8]}")
        begins = min(AUTHORITY_BEGINS, now - BACKDATED_SECONDS)
        certificate = (
            _builder(name, name, key.public_key(), key.public_key(), now, AUTHORITY_SECONDS)
            .not_valid_before(datetime.fromtimestamp(begins, UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def pem(self) -> str:
        return to_pem(self.certificate)

    def sign_server(
        self, key: ec.EllipticCurvePublicKey, names: Iterable[str], now: float, lifetime: float
    ) -> x509.Certificate:
        return self._sign(
            key,
            SERVER_NAME,
            [general_name(name) for name in names],
            ExtendedKeyUsageOID.SERVER_AUTH,
            now,
            lifetime,
        )

    def sign_node(
        self, request: x509.CertificateSigningRequest, node: str, now: float, lifetime: float
    ) -> str:
        """Sign a client certificate (PEM) for a request from ``read_request``.

        The certificate can't be used by a server, and expires with the CA's at the latest.
        """
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        uri = x509.UniformResourceIdentifier(_NODE_URI + node)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return to_pem(self._sign(key, node, [uri], usage, now, lifetime))

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        common_name: str,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: float,
        lifetime: float,
    ) -> x509.Certificate:
        lifetime = min(lifetime, self.certificate.not_valid_after_utc.timestamp() - now)
        subject, issuer = _name(common_name), self.certificate.subject
        return (
            _builder(subject, issuer, key, self.key.public_key(), now, lifetime)
            .not_valid_before(datetime.fromtimestamp(now - BACKDATED_SECONDS, UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def general_name(name: str) -> x509.GeneralName:
    """Convert a host name or address for a certificate.  Raises ``ValueError``."""
    text = spelled(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: float,
    lifetime: float,
) -> x509.CertificateBuilder:
    ends = datetime.fromtimestamp(now, UTC) + timedelta(seconds=lifetime)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def to_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
