"""Checks that settings of the server fit together."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fabric_server.acme.names import certifiable
from fabric_server.edge.cors import parse_origins
from fabric_server.net.trusted_proxies import parse_networks
from fabric_server.routing.aliases import parse_aliases
from fabric_server.routing.weights import parse_weights
from runtime.settings import Conflict

_HTTPS = re.compile(r"https://[^/@\s]+(/\S*)?")
_EMAIL = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")
MAX_WORKERS = 64
"""Processes that share a server's work."""
PORTS = {"control": 17000, "proxy": 17001, "public": 18080, "api": 18081, "one": None}
"""The ports by name, and their numbers by default; ``one`` instead of the others."""
_SCHEMES = {
    "store": ("sqlite", "postgresql"),
    "cache": (
        *("memory", "redis", "rediss"),
        *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
    ),
    "bus": ("memory", "spool", "kafka"),
}


class Settings(Protocol):
    """The settings of ``Config`` that depend on each other; others are read by their name."""

    @property
    def host(self) -> tuple[str, ...]: ...
    @property
    def tunnels(self) -> int: ...
    @property
    def tunnels_most(self) -> int: ...
    @property
    def public_certificate(self) -> Path | None: ...
    @property
    def public_key(self) -> Path | None: ...
    @property
    def keep_ledger_months(self) -> int: ...
    @property
    def one_port(self) -> int | None: ...
    @property
    def proxy_protocol(self) -> tuple[str, ...]: ...
    @property
    def trusted_proxies(self) -> tuple[str, ...]: ...
    @property
    def acme(self) -> bool: ...
    @property
    def acme_kind(self) -> str: ...
    @property
    def acme_agree_terms(self) -> bool: ...
    @property
    def acme_staging(self) -> bool: ...
    @property
    def acme_directory(self) -> str: ...
    @property
    def acme_email(self) -> str: ...
    @property
    def workers(self) -> str: ...
    @property
    def store(self) -> str: ...


def default_ports(settings: Settings) -> dict[str, int]:
    """Return the settings of ports that are not set, and their defaults: none with ``one_port``."""
    if settings.one_port is not None:
        return {}
    return {
        f"{name}_port": number
        for name, number in PORTS.items()
        if number is not None and getattr(settings, f"{name}_port") is None
    }


def opened_ports(settings: Settings) -> dict[str, int]:
    """Return the numbers of the ports that are opened, by their names."""
    numbers = {name: getattr(settings, f"{name}_port") for name in PORTS}
    return {name: number for name, number in numbers.items() if number is not None}


def check(settings: Settings) -> None:
    """Raise ``Conflict``, which says what to do, for values that don't fit together."""
    if not settings.host:
        raise Conflict("host is empty: set at least one address to listen on.", "host")
    _check_ports(settings)
    if settings.tunnels_most < settings.tunnels:
        raise Conflict(
            f"tunnels_most is {settings.tunnels_most}, less than tunnels ({settings.tunnels}): "
            "raise tunnels_most or lower tunnels.",
            "tunnels_most",
            "tunnels",
        )
    if settings.keep_ledger_months == 1:
        raise Conflict(
            "keep_ledger_months is 1: set at least 2, because a spool or Kafka may bring requests "
            "weeks later, or 0 to keep them for ever.",
            "keep_ledger_months",
        )
    if (settings.public_certificate is None) != (settings.public_key is None):
        raise Conflict(
            "public_certificate and public_key belong together: set both or neither.",
            "public_certificate",
            "public_key",
        )
    if settings.acme:
        _check_acme(settings)
    if settings.workers != "1":
        _check_workers(settings)
    for name in ("proxy_protocol", "plaintext_from_proxies"):
        if getattr(settings, name) and not settings.trusted_proxies:
            raise Conflict(
                f"{name} is set, but trusted_proxies is empty: add your proxies' addresses.",
                name,
                "trusted_proxies",
            )
    for name, parse in _PARSED.items():
        try:
            parse(getattr(settings, name))
        except ValueError as error:
            raise Conflict(f"{name}: {error}.", name) from None
    for name in settings.proxy_protocol:
        if getattr(settings, f"{name}_port") is None:
            raise Conflict(
                f"proxy_protocol has '{name}', but {name}_port is not opened: set it, or name "
                f"{'another port' if name == 'one' else 'one'} instead.",
                "proxy_protocol",
                "one_port",
            )
    _check_urls(settings)


def _check_acme(settings: Settings) -> None:
    """Raise ``Conflict`` for an order that no ACME CA would take; ``up`` checks other names."""
    if settings.public_certificate is not None:
        raise Conflict(
            "acme and public_certificate are both set, and users get one certificate: set one.",
            *("acme", "public_certificate"),
        )
    if not settings.acme_agree_terms:
        raise Conflict(
            "acme needs acme_agree_terms: read the CA's terms of service (Let's Encrypt's are at "
            "https://letsencrypt.org/repository/), and set it if you agree.",
            *("acme", "acme_agree_terms"),
        )
    url: str = settings.acme_directory
    if url and settings.acme_staging:
        raise Conflict(
            "acme_staging is Let's Encrypt's, but acme_directory is set: set one of them.",
            *("acme_staging", "acme_directory"),
        )
    if url and not _HTTPS.fullmatch(url):
        raise Conflict("acme_directory is no URL of https://.", "acme_directory")
    email: str = settings.acme_email
    if email and not _EMAIL.fullmatch(email):
        raise Conflict(
            f"acme_email: '{email}' is no address such as you@example.org.", "acme_email"
        )
    for name in ("acme_names", "address"):
        if names := getattr(settings, name):
            try:
                certifiable(names)
            except ValueError as error:
                raise Conflict(
                    f"acme: {error}. Set acme_names to the DNS names that users dial.", name
                ) from None
            return


def _check_workers(settings: Settings) -> None:
    number = int(settings.workers) if re.fullmatch(r"\d{1,3}", settings.workers) else 0
    if settings.workers != "auto" and not 1 <= number <= MAX_WORKERS:
        raise Conflict(
            f"workers is '{settings.workers}': set a number from 1 to {MAX_WORKERS}, or auto.",
            "workers",
        )
    if number > 1 and sys.platform != "linux":
        raise Conflict("more than one of workers needs Linux: set 1, or auto.", "workers")
    if settings.store.removeprefix("sqlite://") in ("", "/") and settings.store:
        raise Conflict(
            "store is in memory, which workers can't share: set a file, or workers to 1.",
            "store",
            "workers",
        )


def _check_ports(settings: Settings) -> None:
    users: defaultdict[int, list[str]] = defaultdict(list)
    names = [f"{name}_port" for name in PORTS]
    if settings.acme and settings.acme_kind == "http-01":
        names.append("acme_http_port")
    for name in names:
        users[getattr(settings, name)].append(name)
    for port, names in users.items():
        if port and len(names) > 1:
            both = " and ".join(names)
            raise Conflict(f"{both} are both {port}: set different ports.", *names)


def _check_urls(settings: Settings) -> None:
    for name, schemes in _SCHEMES.items():
        url: str = getattr(settings, name)
        scheme, colon, _ = url.partition("://")
        if url and not (colon and scheme in schemes):
            # The URL itself may hold a password.
            options = " or ".join(f"{one}://…" for one in schemes)
            raise Conflict(f"{name} is not a supported URL: use {options}.", name)


def _parse_ports(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in PORTS:
            raise ValueError(f"'{name}' is no port: use control, proxy, public, api or one")


_PARSED: dict[str, Callable[[tuple[str, ...]], object]] = {
    "aliases": parse_aliases,
    "weights": parse_weights,
    "trusted_proxies": parse_networks,
    "proxy_protocol": _parse_ports,
    "cors_origins": parse_origins,
}
