"""The files that a server keeps for ACME, in ``<data>/acme`` (0700), all of it 0600.

certificate.pem     the key and the certificate chain that users see: one file, so that both
                    are replaced at once
account-<host>.key  the key of the account at the CA
state.json          whose the certificate is, and how the last tries went: a server that is
                    restarted again and again must not use up the CA's rate limits
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from fabric_server.pki.ca import key_pem, names_of
from fabric_server.pki.certificates import CertificateProblem, read_certificate, read_key
from runtime.files import write

log = logging.getLogger("fabric.acme")

MAX_JITTER = 0.05
"""Share of its life by which a certificate is renewed earlier, differently for each: the renewals
of many servers don't meet."""


class State(Struct, frozen=True):
    """``state.json``."""

    ca: str = ""
    """The URL of the directory that the certificate is from."""
    failures: int = 0
    """Failed tries in a row."""
    code: str = ""
    """Why the last one failed, see ``failures``; empty after a success."""
    reason: str = ""
    remedy: str = ""
    failed_at: float = 0.0
    next_try: float = 0.0
    """Unix seconds, before which the CA is not asked again."""


class AcmeFiles:
    """The files in ``<data>/acme``."""

    def __init__(self, data: Path) -> None:
        self.directory = data / "acme"
        self.certificate = self.directory / "certificate.pem"
        self._state = self.directory / "state.json"

    def make(self) -> None:
        """Make the directory.  Raises ``OSError``."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)

    def state(self) -> State:
        """Return what is known; a new one if there is none.  Raises ``OSError``."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (ValueError, RecursionError) as error:  # msgspec's errors are among the former
            log.warning(
                "the file is damaged, and is made again",
                extra={"path": str(self._state), "reason": str(error)},
            )
            return State()

    def save(self, state: State) -> None:
        """Write the state.  Raises ``OSError``."""
        write(self._state, msgspec.json.encode(state).decode() + "\n", secret=True)

    def save_certificate(self, key_and_chain: str) -> None:
        """Replace the certificate and its key at once.  Raises ``OSError``."""
        write(self.certificate, key_and_chain, secret=True)

    def issued(self) -> x509.Certificate | None:
        """Return the certificate; None if there is none, or none that can be read."""
        if not self.certificate.exists():
            return None
        try:
            return read_certificate(self.certificate)
        except CertificateProblem as problem:
            log.warning("a new certificate is ordered", extra={"reason": str(problem)})
            return None

    def account_key(self, url: str) -> ec.EllipticCurvePrivateKey:
        """Return the key of the account at this CA, a new one if there is none.

        Raises ``CertificateProblem`` or ``OSError``.
        """
        host = re.sub(r"[^a-z0-9.-]", "_", urlsplit(url).netloc.lower())
        path = self.directory / f"account-{host}.key"
        if not path.exists():
            write(path, key_pem(ec.generate_private_key(ec.SECP256R1())), secret=True)
        return read_key(path)


def renewal_time(certificate: x509.Certificate) -> float:
    """Return when to renew: when a third of its life is left, or a little earlier."""
    begins = certificate.not_valid_before_utc.timestamp()
    ends = certificate.not_valid_after_utc.timestamp()
    # By its number, so that a restart changes nothing.
    jitter = Random(certificate.serial_number).uniform(0, MAX_JITTER)  # noqa: S311 - no secret
    return ends - (ends - begins) * (1 / 3 + jitter)


def why_due(
    certificate: x509.Certificate | None, state: State, ca: str, names: tuple[str, ...], now: float
) -> str | None:
    """Return why a certificate has to be ordered; None while the one that is there will do."""
    if certificate is None:
        return "there is none"
    if set(names_of(certificate)) != set(names):
        return "the names are others"
    if state.ca != ca:
        return "it is another CA's"
    if certificate.not_valid_before_utc.timestamp() > now:
        return None  # this machine's clock is behind: another would be no better
    return "it ends" if now >= renewal_time(certificate) else None
