"""A node's identity: its key, its certificate, and the server that it belongs to.

::

    <directory>/node.key    0600, made on this machine, never sent
    <directory>/node.pem    the certificate; both are replaced when it is renewed (``key_files``)
    <directory>/ca.pem      the only authority that this node trusts
    <directory>/node.json   the rest: id, hosts, ports
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID
from msgspec import Struct

from fabric_client.key_files import KeyFiles, read_key
from protocol.aio.tls import DialContext
from protocol.join import BACKDATED_SECONDS
from protocol.messages import MAX_HOSTS
from runtime.errors import Problem
from runtime.files import write
from runtime.findings import Finding, certificate_dates

RENEW_AFTER = 1 / 3
"""A certificate is renewed when this part of its lifetime has passed."""


class NotJoined(Problem):
    """The directory holds no usable identity; the message says what to do."""


class Facts(Struct, frozen=True):
    """``node.json``."""

    node_id: str
    host: str
    api_port: int
    control_port: int
    proxy_port: int
    name: str = ""
    """The name that the server gave it when it joined."""
    models: list[str] | None = None
    """Patterns of the models to offer, as given to ``join``."""
    hosts: list[str] = []
    """Names and addresses of the server that are tried before ``host``, the last good one first."""
    next_control_port: int = 0
    """Port that is tried when ``control_port`` does not answer; 0 for none."""


def remembered_models(directory: Path) -> list[str] | None:
    """Return the patterns that were given to ``join`` here; None if there are none."""
    try:
        return msgspec.json.decode((directory / "node.json").read_bytes(), type=Facts).models
    except (OSError, ValueError):
        return None  # nobody has joined here, or not with this program


class Identity:
    """Made by ``load``, or by ``fabric_client.registration.join.join``."""

    def __init__(
        self, directory: Path, facts: Facts, keys: KeyFiles, certificate: x509.Certificate
    ) -> None:
        self.directory = directory
        self.keys = keys
        self.node_id = facts.node_id
        self._facts = facts
        self._hosts = list(dict.fromkeys([*facts.hosts, facts.host]))
        self.proxy_port = facts.proxy_port
        self.name = facts.name
        self.models = facts.models
        self._issued, self._ends = _dates(certificate)

    def __repr__(self) -> str:
        return f"<Identity {self.node_id} at {self.host}:{self.control_port}>"

    @classmethod
    def load(cls, directory: Path) -> Identity:
        """Read the identity in a directory.  Raises ``NotJoined``."""
        try:
            facts = msgspec.json.decode((directory / "node.json").read_bytes(), type=Facts)
            keys = KeyFiles(directory)
            path, key = keys.pair
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            if certificate.public_key() != read_key(key).public_key():
                raise ValueError("the certificate is for another key")
            _check(certificate, facts.node_id, directory)
        except (FileNotFoundError, NotADirectoryError):
            raise NotJoined(
                f"This machine has not joined a server yet (nothing in {directory}): "
                "run 'fabric-client join TOKEN' with a token from its operator, or set --data as "
                "the node has it."
            ) from None
        except PermissionError as error:
            raise NotJoined(
                f"The node in {directory} belongs to another user ({error.strerror}): run this as "
                "that user, or as root."
            ) from None
        except (OSError, ValueError) as error:  # msgspec's errors are among the latter
            raise NotJoined(
                f"The identity in {directory} can't be used ({error}): "
                "join again with 'fabric-client join --replace TOKEN'."
            ) from None
        return cls(directory, facts, keys, certificate)

    def remember_models(self, patterns: Sequence[str]) -> None:
        """Store the patterns of the models to offer.  Raises OSError."""
        path = self.directory / "node.json"
        facts = msgspec.json.decode(path.read_bytes(), type=Facts)
        self.models = list(patterns)
        facts = msgspec.structs.replace(facts, models=self.models)
        write(path, msgspec.json.encode(facts).decode())

    @property
    def api_port(self) -> int:
        return self._facts.api_port

    @property
    def control_port(self) -> int:
        """The port for links that was good last."""
        return self._facts.control_port

    @property
    def control_ports(self) -> tuple[int, ...]:
        """The ports for links, in the order in which they are tried."""
        ports = dict.fromkeys((self._facts.control_port, self._facts.next_control_port))
        return tuple(port for port in ports if port)

    @property
    def host(self) -> str:
        """The name or address of the server that is tried first."""
        return self._hosts[0]

    @property
    def hosts(self) -> tuple[str, ...]:
        """All names and addresses of the server, in the order in which they are tried."""
        return tuple(self._hosts)

    def put_last(self, host: str) -> None:
        """Try ``host`` last from now on: nothing useful answers there."""
        self._hosts.sort(key=host.__eq__)

    def learn_hosts(self, reached: str, told: Sequence[str]) -> bool:
        """Keep the host that the server was reached at, and those that it told; write changes.

        The one that the node joined at is always kept; those told before are, if the server told
        none.  Return whether anything changed.  Raises OSError when it can't be written.
        """
        joined = self._facts.host
        hosts = list(dict.fromkeys([reached, *(told or self._facts.hosts)]))[: MAX_HOSTS + 1]
        self._hosts = list(dict.fromkeys([*hosts, joined]))
        if hosts == (self._facts.hosts or [joined]):
            return False
        self._remember(msgspec.structs.replace(self._facts, hosts=hosts))
        return True

    def learn_ports(self, reached: int, told: int, api_port: int) -> bool:
        """Keep the port that the server was reached at, and those that it told; write changes.

        ``told`` is tried when ``reached`` does not answer any more.  0 stands for not told: what
        was told before is kept.  Return whether anything changed.  Raises OSError when it can't be
        written.
        """
        told = told or self._facts.next_control_port
        facts = msgspec.structs.replace(
            self._facts,
            control_port=reached,
            next_control_port=0 if told == reached else told,
            api_port=api_port or self.api_port,
        )
        if facts == self._facts:
            return False
        self._remember(facts)
        return True

    def _remember(self, facts: Facts) -> None:
        write(self.directory / "node.json", msgspec.json.encode(facts).decode())
        self._facts = facts

    @property
    def lifetime(self) -> float:
        """Seconds for which the certificate was valid when it was issued."""
        return self._ends - self._issued

    def judge_dates(self, now: float, remedy: str) -> Finding:
        """Return whether the certificate is good at ``now``, in Unix seconds.

        Older servers backdate by an hour only, so that theirs seem to be issued 23 hours later.
        """
        issued, ends = self._issued, self._ends
        return certificate_dates("identity", issued, ends, now, remedy, backdated=BACKDATED_SECONDS)

    @property
    def ends(self) -> float:
        """Unix seconds at which the certificate expires."""
        return self._ends

    def renewal_due(self, now: float) -> bool:
        """Return whether to ask for a new certificate at ``now``, in Unix seconds.

        It is also due when it was issued in the future: a clock was ahead then.
        """
        age = now - self._issued
        return age >= self.lifetime * RENEW_AFTER or age < -BACKDATED_SECONDS

    def context(self, *alpn: str) -> ssl.SSLContext:
        """Return a TLS context for dialling the server.

        The server's certificate must be issued by the authority that this node joined.
        """
        context = DialContext()
        context.load_verify_locations(self.directory / "ca.pem")
        context.load_cert_chain(*self.keys.pair)
        context.set_alpn_protocols(list(alpn))
        return context

    def request(self, *, new_key: bool = False) -> str:
        """Return a certificate signing request (PEM) for this node's key, or for a new one."""
        return self.keys.request(new_key=new_key)

    def store_certificate(self, pem: str) -> bool:
        """Use a renewed certificate for new connections; return whether it is for a new key.

        Raises ValueError, and keeps the old one, if it does not fit this node.
        """
        certificate = x509.load_pem_x509_certificate(pem.encode())
        _check(certificate, self.node_id, self.directory)
        has_new_key = self.keys.store(pem, certificate)
        self._issued, self._ends = _dates(certificate)
        return has_new_key

    def drop_next_key(self) -> None:
        """Return to the key and the certificate before, which are still good."""
        self.keys.drop_next()
        path, _ = self.keys.pair
        self._issued, self._ends = _dates(x509.load_pem_x509_certificate(path.read_bytes()))


def _dates(certificate: x509.Certificate) -> tuple[float, float]:
    """Return when the certificate was issued and when it ends, in Unix seconds."""
    begins = certificate.not_valid_before_utc.timestamp()
    ends = certificate.not_valid_after_utc.timestamp()
    return min(begins + BACKDATED_SECONDS, ends - 1.0), ends


def _check(certificate: x509.Certificate, node_id: str, directory: Path) -> None:
    """Raise ValueError unless the certificate has our id and our authority."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [node_id]:
        raise ValueError("the certificate is for another node")
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        raise ValueError("the certificate was issued by another authority") from None


_OTHER_PORT = "another program uses this port: check the address and the port"
_AGAIN = "ask the operator for a new invitation and join again with --replace"

# Keyed by OpenSSL's names, for alerts that the server sent and errors found here.
_REASONS = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        f"this node's certificate has expired, because it was offline for too long: {_AGAIN}"
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": (
        "the server rejects this node's certificate: if the clocks of both machines are right, "
        f"{_AGAIN}"
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": f"this node was revoked by the operator: {_AGAIN}",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (
        f"this node's certificate was not issued for a node: {_AGAIN}"
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": f"the server got no certificate from here: {_AGAIN}",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server does not speak TLS 1.3, so it is no Fabric server",
    "UNSUPPORTED_PROTOCOL": "the server does not speak TLS 1.3, so it is no Fabric server",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": _OTHER_PORT,
    "WRONG_VERSION_NUMBER": f"the server does not speak TLS: {_OTHER_PORT}",
    "RECORD_LAYER_FAILURE": f"the server does not speak TLS: {_OTHER_PORT}",
}
_UNKNOWN_AUTHORITY = (
    "the server does not trust the authority that issued this node's certificate: it is another "
    f"server, or was set up anew; {_AGAIN}"
)
_REASONS |= {
    "TLSV1_ALERT_UNKNOWN_CA": _UNKNOWN_AUTHORITY,
    "TLSV1_ALERT_DECRYPT_ERROR": _UNKNOWN_AUTHORITY,
}

# OpenSSL's X509_V_ERR_… numbers.
_NOT_YET_VALID, _EXPIRED = 9, 10


def explain(error: BaseException) -> str:
    """Explain to the owner of a node why a server could not be reached.

    In TLS 1.3 the node's side of the handshake is done before the server checks the node's
    certificate: a rejection arrives when the connection ends, as ``connection_lost``'s error.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error)
    if isinstance(error, ssl.SSLError):
        # Errors that Python raises itself, rather than OpenSSL, have no reason.
        reason: str = getattr(error, "reason", None) or str(error)
        return _REASONS.get(reason, f"TLS failed: {reason.lower().replace('_', ' ')}")
    if isinstance(error, TimeoutError):
        return str(error) or "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (is the server running?)"
    if isinstance(error, ConnectionError):
        return "the connection was closed by the server, a firewall or a router"
    if isinstance(error, socket.gaierror):
        return f"the host name can't be resolved: {error.strerror}"
    return str(error) or type(error).__name__


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet: check this machine's clock"
    if error.verify_code == _EXPIRED:
        return (
            "the server's certificate has expired: check this machine's clock; if it is right, "
            "tell the operator"
        )
    return (
        "the server's certificate was not issued by the authority that this node joined "
        f"({error.verify_message}): it is another server, or the connection is intercepted"
    )
