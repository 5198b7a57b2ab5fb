"""Keys, certificates and client contexts, made with the server's own code."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fabric_server.pki.ca import DAY, Authority, key_pem, to_pem
from protocol.names import SERVER_NAME


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request_for(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )


def request_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return request_for(key).public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True)
class Papers:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def node_papers(
    authority: Authority, directory: Path, node_id: str = "node_a", *, now: float, days: float = 30
) -> Papers:
    key = new_key()
    return _write(
        directory, node_id, key, authority.sign_node(request_for(key), node_id, now, days * DAY)
    )


def server_papers(authority: Authority, directory: Path, name: str, *, now: float) -> Papers:
    key = new_key()
    certificate = authority.sign_server(key.public_key(), [name], now, 30 * DAY)
    return _write(directory, name, key, to_pem(certificate))


def client_context(
    ca_pem: str | None,
    papers: Papers | None = None,
    alpn: str | None = None,
) -> ssl.SSLContext:
    """Verifies the server unless there is no CA.  Strict, as Python is from 3.13 on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if ca_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem)
    if papers is not None:
        context.load_cert_chain(papers.certificate, papers.key)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def ends(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = SERVER_NAME
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The server's and the client's end of a connection in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    return (
        server.wrap_bio(up, down, server_side=True),
        client.wrap_bio(down, up, server_hostname=name),
    )


def shake(here: ssl.SSLObject, there: ssl.SSLObject) -> None:
    waiting = [there, here]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = SERVER_NAME
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    both = ends(server, client, name)
    shake(*both)
    return both


def _write(directory: Path, name: str, key: ec.EllipticCurvePrivateKey, pem: str) -> Papers:
    directory.mkdir(exist_ok=True)
    papers = Papers(directory / f"{name}.pem", directory / f"{name}.key")
    papers.certificate.write_text(pem)
    papers.key.write_text(key_pem(key))
    return papers
