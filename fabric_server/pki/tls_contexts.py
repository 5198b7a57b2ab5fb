"""TLS contexts of the ports, reloaded when files change while the server runs.

Replaced files are loaded into new contexts first: if that fails, the error is logged and the old
contexts stay.  Open connections keep the certificate they started with.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fabric_server.net.tls_alerts import AlertingContext, offers_acme
from fabric_server.pki.certificates import CertificateProblem, Certificates, Fact, fact
from protocol.aio.tls import allow_any_beginning
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN

log = logging.getLogger("fabric.certificates")

REFRESH_SECONDS = 3600.0
"""How often the age of the server's own certificate is checked."""


class Challenges(Protocol):
    """The challenges of a certificate authority under way, which handshakes answer."""

    def to_tls(self) -> bool: ...
    def context(self, name: str | None) -> ssl.SSLContext | None: ...


@dataclass(frozen=True)
class _Set:
    control: ssl.SSLContext
    tunnel: ssl.SSLContext
    public: ssl.SSLContext


class TlsContexts:
    """The contexts for the next connection: ``control``, ``tunnel`` and ``public``.

    ``public_certificate`` and ``public_key`` are the operator's, for API users; a client that asks
    for the name that nodes use (SNI) still gets the fabric's, so that enrolment always works.  With
    ``challenges`` they come from a CA while the server runs: users get the fabric's until then.
    """

    def __init__(
        self,
        certificates: Certificates,
        public_certificate: Path | None = None,
        public_key: Path | None = None,
        challenges: Challenges | None = None,
    ) -> None:
        """Load the files.  Raises ``CertificateProblem``."""
        self.certificates = certificates
        self._public_certificate = public_certificate
        self._public_key = public_key
        self._challenges = challenges
        self._paths = [*certificates.files]
        if public_certificate is not None and public_key is not None:
            self._paths += [public_certificate, public_key]
        self._seen = self._look()
        self._shown: Path | None = None
        """The file of the certificate that users get, unless that is the fabric's."""
        self._refreshed_at: float | None = None
        self._set = self._make(starting=True)
        self.ends: dict[str, float] = {}
        """When the certificates in use end, in Unix seconds: ``ca``, ``nodes`` and ``users``."""
        self._note_ends(self.facts())

    def control(self) -> ssl.SSLContext:
        return self._set.control

    def tunnel(self) -> ssl.SSLContext:
        return self._set.tunnel

    def public(self) -> ssl.SSLContext:
        return self._set.public

    def facts(self) -> list[Fact]:
        """Describe the certificates in use.  Raises ``CertificateProblem``."""
        facts = self.certificates.facts()
        if self._shown is not None:
            facts.append(fact("server, for users", self._shown))
        return facts

    def reload(self, now: float) -> bool:
        """Reload the files, changed or not; return whether that worked."""
        # Before reading: a file that is replaced meanwhile is noticed the next time.
        self._seen = self._look()
        self._refreshed_at = now
        try:
            if self.certificates.refresh(now):
                self._seen = self._look()
            self._set = self._make()
            facts = self.facts()
            self._note_ends(facts)
        except CertificateProblem as problem:
            log.error("certificates not replaced", extra={"error": str(problem)})
            return False
        ends = min(fact.ends for fact in facts)
        log.info("certificates loaded", extra={"days_left": round((ends - now) / 86_400)})
        self._warn_of_dates(facts, now)
        return True

    def check(self, now: float) -> bool:
        """Reload if a file was replaced or the own certificate is due; return whether it did.

        A clock that was set back makes the age due at once.
        """
        if self._refreshed_at is None:
            self._refreshed_at = now
        if self._look() != self._seen:
            return self.reload(now)
        if 0 <= now - self._refreshed_at < REFRESH_SECONDS:
            return False
        self._refreshed_at = now
        try:
            if self.certificates.refresh(now):
                return self.reload(now)
            self._warn_of_dates(self.facts(), now)
            return False
        except CertificateProblem as problem:
            log.error("certificates not renewed", extra={"error": str(problem)})
            return False

    async def watch(self, clock: Callable[[], float], every: float = 1.0) -> None:
        """Run ``check`` every ``every`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            self.check(clock())

    def _note_ends(self, facts: list[Fact]) -> None:
        self.ends = dict(zip(("ca", "nodes", "users"), (one.ends for one in facts), strict=False))
        self.ends.setdefault("users", self.ends["nodes"])

    def _warn_of_dates(self, facts: list[Fact], now: float) -> None:
        for one in facts:
            extra = {"path": str(one.path), "use": one.use}
            if one.begins > now:
                log.warning("certificate is not valid yet: check this machine's clock", extra=extra)
            elif one.ends <= now:
                log.warning("certificate has expired: replace it", extra=extra)

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]

    def _make(self, *, starting: bool = False) -> _Set:
        own = self.certificates
        control, tunnel, enrolment = (_context(own.server, own.server_key) for _ in range(3))
        for context, alpn in ((control, CONTROL_ALPN), (tunnel, TUNNEL_ALPN)):
            context.verify_mode = ssl.CERT_REQUIRED
            allow_any_beginning(context)  # links and tunnels check the end, and say so
            context.load_verify_locations(cadata=own.authority.pem)
            context.set_alpn_protocols([alpn])
            # A resumed session would skip checking the certificate and its expiry.
            context.num_tickets = 0
        public = self._public(starting)
        if public is not None:
            self._choose_by_name(public, enrolment)
        for context in (enrolment, public or enrolment):
            context.set_alpn_protocols(["http/1.1"])
        return _Set(control, tunnel, public or enrolment)

    def _public(self, starting: bool) -> AlertingContext | None:
        """Make the context for users; None if it is that of enrolment."""
        certificate, key = self._public_certificate, self._public_key
        if certificate is None or key is None:
            return None
        own, awaited = self.certificates, self._challenges is not None and not certificate.exists()
        try:
            context = (
                _context(own.server, own.server_key) if awaited else _context(certificate, key)
            )
        except CertificateProblem as problem:
            if self._challenges is None or not starting:
                raise
            log.error("users get the fabric's own certificate", extra={"reason": str(problem)})
            context, awaited = _context(own.server, own.server_key), True
        self._shown = None if awaited else certificate
        return context

    def _choose_by_name(self, public: AlertingContext, enrolment: ssl.SSLContext) -> None:
        """Have ``public`` show other certificates to those who ask for other names."""
        challenges = self._challenges

        def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            if name == SERVER_NAME:
                tls.context = enrolment
            elif challenges is not None and offers_acme(tls):
                tls.context = challenges.context(name) or public
            return None

        public.sni_callback = choose
        if challenges is not None:
            public.keeps_hello = challenges.to_tls


def _context(certificate: Path, key: Path) -> AlertingContext:
    context = AlertingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        # With an empty password, an encrypted key fails instead of prompting at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise CertificateProblem(
            f"{certificate} with the key {key} can't be used: {error.reason or error}. Both must "
            "be PEM, belong together, and the key must have no password."
        ) from None
    except OSError as error:
        raise CertificateProblem(
            f"{certificate} or {key} can't be read: {error.strerror}."
        ) from None
    return context


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
