"""The certificates of a server's ports: the fabric's, the operator's, or an ACME CA's."""

from __future__ import annotations

import time
from random import Random

from fabric_server.acme.renewal import SPREAD_SECONDS, AcmeOptions, AcmeRenewal
from fabric_server.app.backends import Backends
from fabric_server.app.seat import Seat
from fabric_server.config import Config
from fabric_server.pki.certificates import CertificateProblem, Certificates
from fabric_server.pki.tls_contexts import TlsContexts
from fabric_server.storage.acme import ChallengeStore


def open_tls(
    config: Config,
    certificates: Certificates,
    backends: Backends,
    rng: Random,
    seat: Seat | None = None,
) -> tuple[TlsContexts, AcmeRenewal | None]:
    """Return the contexts of the ports, and what orders their certificate, if that is set.

    Raises ``CertificateProblem``, or ``SettingsError`` for names that no CA certifies.
    """
    if not config.acme:
        return TlsContexts(certificates, config.public_certificate, config.public_key), None
    others = seat is not None or config.store_url.startswith("postgresql")
    options = AcmeOptions(
        data=config.data,
        names=config.names_to_certify(),
        url=config.acme_url,
        kind=config.acme_kind,
        email=config.acme_email,
        ca=config.acme_ca,
        http_hosts=config.acme_http_host or config.host,
        http_port=config.acme_http_port,
        spread_seconds=SPREAD_SECONDS if others else 0.0,
        orders=seat is None or seat.first,
    )
    store = ChallengeStore(backends.store.database)
    try:
        acme = AcmeRenewal(options, store, lambda: tls.reload(time.time()), rng)
    except OSError as error:
        raise CertificateProblem(
            f"{error.filename} can't be used: {error.strerror}. The server's user must be able to "
            "read and write there."
        ) from error
    path = acme.files.certificate
    tls = TlsContexts(certificates, path, path, acme.answers)
    return tls, acme
