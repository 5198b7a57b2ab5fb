"""The settings of the server's place, ports, names and certificates."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fabric_server.acme.names import certifiable
from fabric_server.data_directory import remembered_addresses
from fabric_server.net.addresses import own_address
from runtime.places import data_of_service
from runtime.settings import SettingsError, about

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETS_ENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"


def _port(help: str) -> dict[str, object]:
    return dict(about(f"{help}; 0 for any free port.", least=0, most=65535))


def _port_or_none(help: str) -> Any:
    return field(default=None, metadata=_port(help))


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """The first part of ``Config``."""

    data: Path = field(
        default_factory=lambda: (
            data_of_service("fabric-server") or Path.home() / ".fabric" / "server"
        ),
        metadata=about(
            "Directory of the certificates, the spool and the SQLite store. Default: that of the "
            "installed service, or ~/.fabric/server."
        ),
    )

    host: tuple[str, ...] = field(
        default=("::", "0.0.0.0"),  # noqa: S104 - a server on a public address is what this is
        metadata=about("Addresses to listen on, with all ports."),
    )
    one_port: int | None = _port_or_none(
        "One port for all: clients, nodes and, for the name server.fabric, the API. Of the four "
        "others only those are opened then that are set, too"
    )
    control_port: int | None = _port_or_none(
        "Port for the nodes' control connections. Default: 17000"
    )
    proxy_port: int | None = _port_or_none("Port for the nodes' tunnels. Default: 17001")
    public_port: int | None = _port_or_none(
        "Port for clients: the OpenAI-compatible API. Default: 18080"
    )
    api_port: int | None = _port_or_none(
        "Port for operators, monitoring and enrolment. Default: 18081"
    )
    address: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Public names or addresses of this server: the first goes into invitations, all go "
            "into its certificate. Default: those of the last start that was given some, or this "
            "machine's own address."
        ),
    )
    public_certificate: Path | None = field(
        default=None,
        metadata=about(
            "Certificate chain (PEM) for the public and API ports, instead of the fabric's own."
        ),
    )
    public_key: Path | None = field(
        default=None, metadata=about("Private key (PEM) of public_certificate.")
    )
    acme: bool = field(
        default=False,
        metadata=about(
            "Get a certificate for users from an ACME CA, such as Let's Encrypt, and renew it. "
            "Needs acme_agree_terms, and port 443 or 80 of the names to reach this server."
        ),
    )
    acme_agree_terms: bool = field(
        default=False,
        metadata=about(
            "You agree to the CA's terms of service; Let's Encrypt's are at "
            "https://letsencrypt.org/repository/."
        ),
    )
    acme_email: str = field(
        default="", metadata=about("Address at which the CA may write to you. Default: none.")
    )
    acme_names: tuple[str, ...] = field(
        default=(), metadata=about("DNS names in the certificate. Default: those of address.")
    )
    acme_challenge: Literal["auto", "http-01", "tls-alpn-01"] = field(
        default="auto",
        metadata=about(
            "How the CA checks the names: at port 80 (http-01) or at port 443 (tls-alpn-01). "
            "Default: tls-alpn-01 if public_port or one_port is 443, else http-01."
        ),
    )
    acme_http_host: tuple[str, ...] = field(
        default=(),
        metadata=about("Addresses to listen on for http-01. Default: those of host."),
    )
    acme_http_port: int = field(
        default=80,
        metadata=_port(
            "Port for http-01, open only while the CA checks; port 80 of the names has to lead to "
            "it"
        ),
    )
    acme_directory: str = field(
        default="", metadata=about("URL of the CA's directory. Default: Let's Encrypt's.")
    )
    acme_staging: bool = field(
        default=False,
        metadata=about(
            "Use Let's Encrypt's test CA, which has wide limits and whose certificates nobody "
            "trusts."
        ),
    )
    acme_ca: Path | None = field(
        default=None,
        metadata=about("CA (PEM) that signed the certificate of the ACME CA's own HTTPS address."),
    )

    @property
    def acme_url(self) -> str:
        """The URL of the ACME CA's directory."""
        default = LETS_ENCRYPT_STAGING if self.acme_staging else LETS_ENCRYPT
        return self.acme_directory or default

    @property
    def acme_kind(self) -> Literal["http-01", "tls-alpn-01"]:
        """The kind of challenge, also when ``acme_challenge`` is ``auto``."""
        if self.acme_challenge == "auto":
            return "tls-alpn-01" if 443 in (self.public_port, self.one_port) else "http-01"
        return self.acme_challenge

    def names(self) -> tuple[str, ...]:
        """Return ``address``, that of an earlier start, or this machine's own; never empty.

        Raises ``SettingsError`` when the file that remembers it can't be read.
        """
        given = self.address or remembered_addresses(self.data)
        return given or (own_address() or socket.gethostname(),)

    def names_to_certify(self) -> tuple[str, ...]:
        """Return the names for the ACME CA.  Raises ``SettingsError`` if it can't certify them."""
        try:
            return certifiable(self.acme_names or self.names())
        except ValueError as error:
            raise SettingsError(
                f"acme: {error}. Set acme_names, or --address, to the DNS names that users dial."
            ) from None
