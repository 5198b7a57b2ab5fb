"""The names that a public CA can certify."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from fabric_server.pki.names import spelled

MAX_NAMES = 100
"""Let's Encrypt's limit for one certificate."""

_LOCAL = frozenset(
    {
        *("localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home"),
        *("lan", "home.arpa", "test", "example", "invalid", "onion", "arpa"),
    }
)
"""Endings that nobody can own in the public DNS (RFC 6761, 6762, 8375, 9476)."""


def certifiable(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in the form that certificates have, each once.

    Raises ``ValueError``, which says which one no CA certifies, and why.
    """
    found = tuple(dict.fromkeys(_certifiable(name) for name in names))
    if not found:
        raise ValueError("there is no name to certify")
    if len(found) > MAX_NAMES:
        raise ValueError(f"these are {len(found)} names, and a certificate has {MAX_NAMES} at most")
    return found


def _certifiable(name: str) -> str:
    try:
        ipaddress.ip_address(name.strip().strip("[]"))
    except ValueError:
        pass
    else:
        raise ValueError(f"{name} is an IP address, and the certificate is for DNS names only")
    plain = spelled(name)
    if "*" in plain:
        raise ValueError(
            f"{name} is a pattern, which would need a challenge in the DNS: list the names instead"
        )
    labels = plain.split(".")
    if any(".".join(labels[start:]) in _LOCAL for start in range(len(labels))):
        raise ValueError(f"{name} is a name of local networks, which no public CA certifies")
    if len(labels) < 2:
        raise ValueError(f"{name} is not a whole DNS name, such as gpu.example.org")
    return plain
