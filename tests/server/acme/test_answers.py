"""What a CA is answered at port 443, and that nobody else notices."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from fabric_server.acme.answers import Answer, Answers
from fabric_server.net.tls_alerts import ACME_ALPN
from fabric_server.pki.ca import fingerprint
from fabric_server.pki.certificates import Certificates, read_certificate
from fabric_server.pki.tls_contexts import TlsContexts
from protocol.names import SERVER_NAME
from tests.loops import on_both_loops
from tests.server.net.ports import Trust, counted, dial, listening, made_by, port, until
from tests.trust import client_context, ends, handshake

NAME = "gpu.example.org"
ANSWER = Answer(NAME, "tls-alpn-01", "token", "token.thumbprint")
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


def users(directory: Path) -> tuple[TlsContexts, Answers, Certificates]:
    own = Certificates.open(directory / "certs", [NAME], now=time.time())
    answers = Answers()
    path = directory / "none-yet.pem"
    return TlsContexts(own, path, path, answers), answers, own


def shown(
    context: ssl.SSLContext, name: str, *protocols: str
) -> tuple[x509.Certificate, str | None]:
    """Return the certificate that a client gets who offers these protocols, and which is agreed."""
    client = client_context(None)
    if protocols:
        client.set_alpn_protocols(list(protocols))
    _, there = handshake(context, client, name)
    der = there.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der), there.selected_alpn_protocol()


def test_a_ca_gets_the_certificate_of_its_challenge(tmp_path: Path) -> None:
    contexts, answers, _ = users(tmp_path)
    answers.replace([ANSWER])
    certificate, agreed = shown(contexts.public(), NAME, ACME_ALPN)
    assert agreed == ACME_ALPN
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.DNSName(NAME)]
    extension = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
    assert extension.critical
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    digest = hashlib.sha256(b"token.thumbprint").digest()
    assert extension.value.value == b"\x04\x20" + digest


@pytest.mark.parametrize(
    ("name", "protocols"),
    [
        (NAME, ()),
        (NAME, ("http/1.1",)),
        (NAME, ("h2", "http/1.1")),
        (NAME, (ACME_ALPN, "http/1.1")),  # a CA offers nothing else (RFC 8737)
        ("other.example.org", (ACME_ALPN,)),
        (SERVER_NAME, (ACME_ALPN,)),
    ],
)
def test_everybody_else_gets_the_usual_one_meanwhile(
    tmp_path: Path, name: str, protocols: tuple[str, ...]
) -> None:
    contexts, answers, own = users(tmp_path)
    answers.replace([ANSWER])
    certificate, agreed = shown(contexts.public(), name, *protocols)
    assert certificate == read_certificate(own.server)
    assert agreed == ("http/1.1" if "http/1.1" in protocols else None)


def test_a_ca_gets_the_usual_one_when_nothing_was_asked_of_it(tmp_path: Path) -> None:
    contexts, answers, own = users(tmp_path)
    answers.replace([ANSWER])
    answers.replace([])
    certificate, agreed = shown(contexts.public(), NAME, ACME_ALPN)
    assert (certificate, agreed) == (read_certificate(own.server), None)


def test_a_hello_that_comes_byte_by_byte_is_understood(tmp_path: Path) -> None:
    contexts, answers, _ = users(tmp_path)
    answers.replace([ANSWER])
    client = client_context(None)
    client.set_alpn_protocols([ACME_ALPN])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts.public().wrap_bio(incoming, outgoing, server_side=True)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    other = client.wrap_bio(back, there, server_hostname=NAME)
    for _ in range(3):
        for ours, theirs in ((other, there), (server, outgoing)):
            with contextlib.suppress(ssl.SSLWantReadError):
                ours.do_handshake()
            data = theirs.read()
            if ours is server:
                back.write(data)
                continue
            for at in range(len(data)):
                incoming.write(data[at : at + 1])
                with contextlib.suppress(ssl.SSLWantReadError):
                    server.do_handshake()
    assert other.selected_alpn_protocol() == ACME_ALPN


WATCHED = """
import os, sys
from fabric_server.acme.answers import Answer, Answers

def hook(event, details):
    writes = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
    if writes and not isinstance(details[0], int):
        print("written:", details[0])

sys.addaudithook(hook)
answers = Answers()
answers.replace([Answer(name, "tls-alpn-01", "t", "t.x") for name in ("a.example", "b.example")])
print("given:", answers.to_tls())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files in memory")
def test_no_key_of_a_challenge_is_written_to_the_disk() -> None:
    command = [sys.executable, "-c", WATCHED]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["given: True"]


def test_tokens_are_answered_while_they_are_asked_for() -> None:
    answers = Answers()
    answers.replace([Answer(NAME, "http-01", "token", "token.thumbprint")])
    assert answers.to_http
    assert not answers.to_tls()
    assert answers.authorization("token") == "token.thumbprint"
    assert answers.authorization("other") is None
    assert answers.context(NAME) is None
    answers.replace([])
    assert not answers.to_http
    assert answers.authorization("token") is None


def test_the_certificate_of_the_ca_is_used_as_soon_as_it_is_there(tmp_path: Path) -> None:
    contexts, _, own = users(tmp_path)
    assert [one.use for one in contexts.facts()] == ["CA of the fabric", "server, for nodes"]
    path = tmp_path / "none-yet.pem"
    other = Certificates.open(tmp_path / "other", [NAME], now=time.time())
    path.write_text(other.server_key.read_text() + other.server.read_text())
    assert contexts.check(time.time())
    certificate, _ = shown(contexts.public(), NAME)
    assert fingerprint(certificate) == fingerprint(read_certificate(other.server))
    assert shown(contexts.public(), SERVER_NAME)[0] == read_certificate(own.server)
    assert contexts.ends["users"] == contexts.facts()[2].ends


def test_a_damaged_certificate_of_the_ca_does_not_stop_the_start(tmp_path: Path) -> None:
    own = Certificates.open(tmp_path / "certs", [NAME], now=time.time())
    path = tmp_path / "damaged.pem"
    path.write_text("half a certif")
    contexts = TlsContexts(own, path, path, Answers())
    assert shown(contexts.public(), NAME)[0] == read_certificate(own.server)


@on_both_loops
async def test_a_ca_that_has_its_answer_is_told_nothing_more(tmp_path: Path) -> None:
    trust = Trust(tmp_path)
    answers = Answers()
    path = tmp_path / "none-yet.pem"
    trust.contexts = TlsContexts(trust.own, path, path, answers)
    answers.replace([Answer(SERVER_NAME + ".org", "tls-alpn-01", "token", "token.thumbprint")])
    spec = port(trust)
    async with listening(spec) as listener:
        client = client_context(None, alpn=ACME_ALPN)
        ca = await dial(listener, client, name=SERVER_NAME + ".org")
        tls = ca.transport.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == ACME_ALPN
        await ca.end()
        await until(lambda: counted(listener) == {"acme": 1})
        assert made_by(spec) == []
        user = await dial(listener, client_context(trust.ca))
        await user.says_back(b"hello")
        await user.close()


def test_hellos_are_kept_only_while_a_ca_asks(tmp_path: Path) -> None:
    contexts, answers, _ = users(tmp_path)
    client = client_context(None)
    here, _ = ends(contexts.public(), client, NAME)
    assert getattr(here, "incoming") is None  # noqa: B009 - it is of a class that has no name here
    answers.replace([ANSWER])
    here, _ = ends(contexts.public(), client, NAME)
    assert getattr(here, "incoming") is not None  # noqa: B009
