"""The answers to a CA's challenges that this server gives now (RFC 8555, RFC 8737).

They come from the store: its own, and those of servers that have the same names.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

from fabric_server.net.tls_alerts import ACME_ALPN, AlertingContext
from fabric_server.pki.ca import key_pem, to_pem
from runtime.passing_files import passing_file

Kind = Literal["http-01", "tls-alpn-01"]

_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING_OF_32 = b"\x04\x20"


class Answer(Struct, frozen=True):
    """The answer to one challenge."""

    name: str
    kind: str
    token: str
    authorization: str
    """The key authorization: the token and the thumbprint of the account's key."""


class Answers:
    """The answers of now: to HTTP requests by token, to TLS handshakes by name."""

    def __init__(self) -> None:
        self._known: frozenset[Answer] = frozenset()
        self._by_token: dict[str, str] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def to_http(self) -> bool:
        """True while there is a challenge that HTTP requests ask for."""
        return bool(self._by_token)

    def to_tls(self) -> bool:
        """Return whether there is a challenge that TLS handshakes ask for."""
        return bool(self._contexts)

    def replace(self, answers: Sequence[Answer]) -> None:
        """Give these answers from now on, and no others.  Raises ``OSError``."""
        known = frozenset(answers)
        if known == self._known:
            return
        self._by_token = {one.token: one.authorization for one in known if one.kind == "http-01"}
        self._contexts = {
            one.name: self._context(one) for one in known if one.kind == "tls-alpn-01"
        }
        self._known = known

    def authorization(self, token: str) -> str | None:
        """Return the body for a request of HTTP-01; None for an unknown token."""
        return self._by_token.get(token)

    def context(self, name: str | None) -> ssl.SSLContext | None:
        """Return the context for a handshake of TLS-ALPN-01; None for any other name."""
        return self._contexts.get((name or "").lower())

    def _context(self, answer: Answer) -> ssl.SSLContext:
        context = AlertingContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with passing_file(challenge_pem(answer)) as path:  # OpenSSL reads files only
            context.load_cert_chain(path)
        context.set_alpn_protocols([ACME_ALPN])
        context.num_tickets = 0
        return context


def challenge_pem(answer: Answer) -> str:
    """Return the key and the self-signed certificate that answer a challenge of TLS-ALPN-01."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    now = datetime.now(UTC)
    digest = hashlib.sha256(answer.authorization.encode()).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(answer.name)]), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return key_pem(key) + to_pem(certificate)
