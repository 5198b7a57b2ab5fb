"""The CA, the server's certificate, and their replacement while the server runs."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import shutil
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fabric_server.pki.ca import (
    DAY,
    Authority,
    BadRequest,
    key_pem,
    node_id,
    public_key_sha256,
    read_request,
    to_pem,
)
from fabric_server.pki.certificates import CertificateProblem, Certificates, read_certificate
from fabric_server.pki.tls_contexts import TlsContexts
from protocol.aio.tls import DialContext
from protocol.names import CONTROL_ALPN, SERVER_NAME
from tests.trust import (
    client_context,
    ends,
    handshake,
    new_key,
    node_papers,
    request_for,
    request_pem,
    server_papers,
    shake,
)

NOW = time.time()


def made(directory: Path, *names: str, now: float = NOW) -> Certificates:
    return Certificates.open(directory / "certs", names, now=now)


def problem(directory: Path, *names: str, now: float = NOW) -> str:
    with pytest.raises(CertificateProblem) as caught:
        made(directory, *names, now=now)
    return str(caught.value)


# ── first start ───────────────────────────────────────────────────────────────────────────────


def test_the_first_start_makes_a_ca_and_a_server_certificate(tmp_path: Path) -> None:
    certificates = made(tmp_path, "fabric.example.net", "203.0.113.7", "[2001:db8::1]")
    assert sorted(path.name for path in certificates.directory.iterdir()) == [
        "ca.key",
        "ca.pem",
        "server.key",
        "server.pem",
    ]
    ca, server = certificates.facts()
    assert ca.key == server.key == "ECDSA P-256"
    assert ca.sha256 == certificates.fingerprint.hex()
    assert server.issuer == ca.subject
    assert ca.ends - NOW == pytest.approx(3650 * DAY, abs=2)
    assert server.ends - NOW == pytest.approx(90 * DAY, abs=2)
    assert {
        SERVER_NAME,
        "localhost",
        "127.0.0.1",
        "::1",
        "fabric.example.net",
        "203.0.113.7",
        "2001:db8::1",
    } <= set(server.names)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    assert certificates.directory.stat().st_mode & 0o777 == 0o700
    for key in (certificates.ca_key, certificates.server_key):
        assert key.stat().st_mode & 0o777 == 0o600


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made(tmp_path).files}
    assert {path: path.read_bytes() for path in made(tmp_path).files} == before


def test_programs_that_start_at_once_agree_on_one_ca(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = {certificates.fingerprint for certificates in pool.map(made, [tmp_path] * 8)}
    assert len(found) == 1


def test_a_name_that_no_certificate_can_have_is_refused(tmp_path: Path) -> None:
    assert "address" in problem(tmp_path, "https://fabric.example.net/")


# ── what was signed ───────────────────────────────────────────────────────────────────────────


def test_a_node_is_known_by_its_certificate(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    papers = node_papers(certificates.authority, tmp_path, "node_a1b2", now=NOW)
    here, there = handshake(
        TlsContexts(certificates).control(),
        client_context(certificates.authority.pem, papers, CONTROL_ALPN),
    )
    assert node_id(here.getpeercert()) == "node_a1b2"
    assert node_id(there.getpeercert()) is None
    assert here.selected_alpn_protocol() == CONTROL_ALPN
    assert here.version() == "TLSv1.3"


def test_a_node_certificate_is_no_good_for_a_server(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    papers = node_papers(certificates.authority, tmp_path, SERVER_NAME, now=NOW)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(papers.certificate, papers.key)
    client = client_context(certificates.authority.pem)
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client)


def test_a_server_certificate_is_no_good_for_a_node(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    papers = server_papers(certificates.authority, tmp_path, "node_a", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(
            TlsContexts(certificates).control(), client_context(certificates.authority.pem, papers)
        )


def test_a_node_certificate_never_outlives_the_ca() -> None:
    authority = Authority.make(NOW - 3640 * DAY)
    pem = authority.sign_node(request_for(new_key()), "node_a", NOW, 30 * DAY)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certificate.not_valid_after_utc <= authority.certificate.not_valid_after_utc


def test_certificates_begin_a_day_ago_for_clocks_that_are_behind() -> None:
    pem = Authority.make(NOW).sign_node(request_for(new_key()), "node_a", NOW, DAY)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certificate.not_valid_before_utc.timestamp() == pytest.approx(NOW - DAY, abs=1)


def test_a_request_is_known_by_its_key() -> None:
    key = new_key()
    assert public_key_sha256(read_request(request_pem(key))) == public_key_sha256(request_for(key))
    assert public_key_sha256(request_for(new_key())) != public_key_sha256(request_for(key))


def _forged() -> str:
    """A request whose signature is another's."""
    text = request_for(new_key()).public_bytes(serialization.Encoding.DER)
    other = request_for(new_key()).public_bytes(serialization.Encoding.DER)
    body = text[:-64] + other[-64:]
    lines = base64.encodebytes(body).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n"


def _request_with(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        ("", "not a certificate request"),
        ("hello", "not a certificate request"),
        ("ü" * 100, "not a certificate request"),
        ("\ud800", "not a certificate request"),
        ("x" * 9000, "longer"),
        (_request_with(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (_request_with(rsa.generate_private_key(65537, 2048)), "P-256"),
        (_forged(), "request"),
    ],
)
def test_a_request_that_can_not_be_signed_is_refused(pem: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read_request(pem)


# ── later starts ──────────────────────────────────────────────────────────────────────────────


def test_the_server_certificate_is_made_again_when_a_third_of_its_life_is_left(
    tmp_path: Path,
) -> None:
    first = made(tmp_path).facts()[1]
    assert made(tmp_path, now=NOW + 59 * DAY).facts()[1] == first
    later = made(tmp_path, now=NOW + 61 * DAY).facts()
    assert later[1].ends > first.ends
    assert later[0].sha256 == made(tmp_path, now=NOW + 61 * DAY).fingerprint.hex()


def test_the_server_certificate_is_made_again_for_a_new_name(tmp_path: Path) -> None:
    first = made(tmp_path)
    second = made(tmp_path, "fabric.example.net")
    assert "fabric.example.net" in second.facts()[1].names
    assert second.fingerprint == first.fingerprint
    third = made(tmp_path)  # a name less is no reason
    assert third.facts()[1] == second.facts()[1]


def test_a_renewal_cut_short_between_two_files_is_finished_at_the_next_start(
    tmp_path: Path,
) -> None:
    certificates = made(tmp_path)
    certificates.server_key.write_text(key_pem(new_key()))
    with pytest.raises(CertificateProblem, match="not the key"):
        certificates.refresh(NOW)
    TlsContexts(made(tmp_path))


def test_a_lost_ca_certificate_is_made_again_from_its_key(tmp_path: Path) -> None:
    before = made(tmp_path)
    papers = node_papers(before.authority, tmp_path, now=NOW)
    before.ca.unlink()
    after = made(tmp_path)
    # Nodes that joined before are let in, and trust what they find.
    handshake(TlsContexts(after).control(), client_context(before.authority.pem, papers))


def test_a_lost_ca_key_is_no_reason_to_make_a_new_ca(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    certificates.ca_key.unlink()
    before = certificates.ca.read_bytes()
    assert "Restore the key" in problem(tmp_path)
    assert certificates.ca.read_bytes() == before


def test_a_foreign_server_certificate_is_not_overwritten(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    foreign = server_papers(Authority.make(NOW), tmp_path, SERVER_NAME, now=NOW)
    shutil.copy(foreign.certificate, certificates.server)
    shutil.copy(foreign.key, certificates.server_key)
    message = problem(tmp_path)
    assert "nodes would refuse it" in message
    assert "public_certificate" in message
    assert certificates.server.read_bytes() == foreign.certificate.read_bytes()


@pytest.mark.parametrize("days", [-9000, -70, 70, 3286, 3651, 9000])
def test_a_clock_that_was_wrong_is_healed_once_it_is_right(tmp_path: Path, days: int) -> None:
    """In either direction; a node that joined meanwhile trusts the server, and is trusted."""
    before = made(tmp_path, now=NOW + days * DAY)
    joined = before.authority.pem, node_papers(before.authority, tmp_path, now=NOW + days * DAY)
    after = made(tmp_path)
    for fact in after.facts():
        assert fact.begins <= NOW - DAY + 1
        assert fact.ends > NOW + 59 * DAY
    contexts = TlsContexts(after)
    trusting = DialContext()
    trusting.load_verify_locations(cadata=joined[0])
    trusting.load_cert_chain(joined[1].certificate, joined[1].key)
    trusting.set_alpn_protocols([CONTROL_ALPN])
    handshake(contexts.control(), trusting)
    assert not after.refresh(NOW)


def test_a_clock_that_is_set_right_while_the_server_runs_is_noticed(tmp_path: Path) -> None:
    own = made(tmp_path, now=NOW + 70 * DAY)
    contexts = TlsContexts(own)
    contexts.check(NOW + 70 * DAY)
    before = fingerprint_of(own.server)
    assert contexts.check(NOW)
    assert fingerprint_of(own.server) != before
    assert shown(contexts.control()) == fingerprint_of(own.server)


def test_a_ca_keeps_its_key_and_name_when_its_certificate_is_made_again(tmp_path: Path) -> None:
    first = made(tmp_path)
    again = made(tmp_path, now=NOW + 3290 * DAY)
    assert again.fingerprint != first.fingerprint
    assert again.authority.key.private_numbers() == first.authority.key.private_numbers()
    assert again.authority.certificate.subject == first.authority.certificate.subject
    assert made(tmp_path, now=NOW + 3291 * DAY).fingerprint == again.fingerprint


def test_an_operators_own_ca_is_not_made_again(tmp_path: Path) -> None:
    key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW - DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 100 * DAY, UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    own = Certificates(tmp_path / "certs")
    own.directory.mkdir()
    own.ca.write_text(to_pem(certificate))
    own.ca_key.write_text(key_pem(key))
    own.ca_key.chmod(0o600)
    assert made(tmp_path).fingerprint == certificate.fingerprint(hashes.SHA256())
    assert "not made by this server" in problem(tmp_path, now=NOW + 101 * DAY)


def test_a_key_of_another_ca_and_no_pem_are_each_named(tmp_path: Path) -> None:
    certificates = made(tmp_path)
    key = certificates.ca_key.read_text()
    certificates.ca_key.write_text(key_pem(new_key()))
    assert "is not the key of" in problem(tmp_path)
    certificates.ca_key.write_text("nothing")
    assert "contains no readable key" in problem(tmp_path)
    certificates.ca_key.write_text(key)
    certificates.ca.write_text("nothing")
    assert "contains no PEM certificate" in problem(tmp_path)


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "certs").write_text("a file")
    assert str(tmp_path / "certs") in problem(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_key_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path).ca_key.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        made(tmp_path)
    assert "other users can read this private key" in caplog.text


# ── replacement while running ─────────────────────────────────────────────────────────────────


def shown(context: ssl.SSLContext, name: str = SERVER_NAME) -> bytes:
    """SHA-256 of the certificate that the server shows."""
    here, there = ends(context, client_context(None), name)
    with contextlib.suppress(ssl.SSLError):  # a port for nodes wants a certificate
        shake(here, there)
    der = there.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256())


def fingerprint_of(path: Path) -> bytes:
    return read_certificate(path).fingerprint(hashes.SHA256())


def test_nothing_is_loaded_again_while_no_file_changes(tmp_path: Path) -> None:
    contexts = TlsContexts(made(tmp_path))
    before = contexts.public()
    assert not contexts.check(NOW)
    assert not contexts.check(NOW + 10)
    assert contexts.public() is before


def test_a_replaced_certificate_is_shown_to_the_next_client(tmp_path: Path) -> None:
    own = made(tmp_path)
    first = server_papers(Authority.make(NOW), tmp_path, "users.example", now=NOW)
    contexts = TlsContexts(own, first.certificate, first.key)
    assert shown(contexts.public(), "users.example") == fingerprint_of(first.certificate)

    second = server_papers(Authority.make(NOW), tmp_path / "new", "users.example", now=NOW)
    second.certificate.replace(first.certificate)
    assert not contexts.check(NOW + 1)  # the key is still the old one's
    second.key.replace(first.key)
    assert contexts.check(NOW + 2)
    assert shown(contexts.public(), "users.example") == fingerprint_of(first.certificate)


def test_whoever_asks_for_the_name_that_nodes_use_gets_the_fabrics_certificate(
    tmp_path: Path,
) -> None:
    own = made(tmp_path)
    users = server_papers(Authority.make(NOW), tmp_path, "users.example", now=NOW)
    public = TlsContexts(own, users.certificate, users.key).public()
    assert shown(public, SERVER_NAME) == fingerprint_of(own.server)
    assert shown(public, "anything.else") == fingerprint_of(users.certificate)
    handshake(public, client_context(own.authority.pem))


def test_a_broken_replacement_is_reported_once_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = made(tmp_path)
    contexts = TlsContexts(own)
    before = fingerprint_of(own.server)
    good = own.server.read_text()
    own.server.write_text("half a certif")
    with caplog.at_level(logging.ERROR):
        assert not contexts.check(NOW + 1)
        assert not contexts.check(NOW + 2)
        assert not contexts.check(NOW + 3)
    assert [record.getMessage() for record in caplog.records] == ["certificates not replaced"]
    assert shown(contexts.control()) == shown(contexts.public()) == before
    own.server.write_text(good)
    assert contexts.check(NOW + 4)


def test_a_removed_file_is_reported_and_the_old_one_stays(tmp_path: Path) -> None:
    own = made(tmp_path)
    contexts = TlsContexts(own)
    before = fingerprint_of(own.server)
    own.server.unlink()
    assert not contexts.check(NOW + 1)
    assert shown(contexts.control()) == before
    assert not own.server.exists()


def test_the_servers_own_certificate_is_renewed_while_it_runs(tmp_path: Path) -> None:
    own = made(tmp_path)
    contexts = TlsContexts(own)
    before = shown(contexts.control())
    assert not contexts.check(NOW)
    assert contexts.check(NOW + 61 * DAY)
    assert shown(contexts.control()) == shown(contexts.public()) == fingerprint_of(own.server)
    assert shown(contexts.control()) != before


def test_a_replaced_ca_lets_in_its_own_nodes_and_no_others(tmp_path: Path) -> None:
    own = made(tmp_path)
    contexts = TlsContexts(own)
    old = client_context(None, node_papers(own.authority, tmp_path / "old", now=NOW))
    handshake(contexts.control(), old)
    other = made(tmp_path / "other")
    for mine, theirs in zip(own.files, other.files, strict=True):
        shutil.copy(theirs, mine)
    assert contexts.check(NOW + 1)
    handshake(
        contexts.control(),
        client_context(
            other.authority.pem, node_papers(other.authority, tmp_path / "new", now=NOW)
        ),
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(contexts.control(), old)
    assert own.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda papers: papers.key.unlink(), "can't be read"),
        (lambda papers: papers.key.write_text(key_pem(new_key())), "KEY_VALUES_MISMATCH"),
        (lambda papers: papers.key.write_text("nothing"), "can't be used"),
        (lambda papers: papers.certificate.write_text("nothing"), "can't be used"),
        (
            lambda papers: papers.key.write_bytes(
                new_key().private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                )
            ),
            "no password",
        ),
    ],
)
def test_a_public_certificate_that_can_not_be_used_stops_the_start_with_a_sentence(
    tmp_path: Path, spoil: object, says: str
) -> None:
    users = server_papers(Authority.make(NOW), tmp_path, "users.example", now=NOW)
    assert callable(spoil)
    spoil(users)
    with pytest.raises(CertificateProblem, match=says) as caught:
        TlsContexts(made(tmp_path), users.certificate, users.key)
    assert str(users.certificate) in str(caught.value)


def test_an_older_tls_is_refused_on_every_port(tmp_path: Path) -> None:
    own = made(tmp_path)
    contexts = TlsContexts(own)
    client = client_context(own.authority.pem, node_papers(own.authority, tmp_path, now=NOW))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (contexts.control(), contexts.tunnel(), contexts.public()):
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            handshake(context, client)


def test_the_facts_are_those_of_all_certificates_in_use(tmp_path: Path) -> None:
    own = made(tmp_path)
    users = server_papers(Authority.make(NOW), tmp_path, "users.example", now=NOW)
    facts = TlsContexts(own, users.certificate, users.key).facts()
    assert [fact.path for fact in facts] == [own.ca, own.server, users.certificate]
    assert facts[2].names == ("users.example",)


def test_the_script_makes_what_the_server_uses(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "certs" / "make.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "certs"), "fabric.example.net"],
        capture_output=True,
        text=True,
        check=True,
    )
    own = made(tmp_path)
    assert own.fingerprint.hex() in done.stdout
    assert "fabric.example.net" in own.facts()[1].names
    TlsContexts(own)
