"""The names and addresses of a server, spelled as its certificates have them."""

from __future__ import annotations

import ipaddress


def spelled(name: str) -> str:
    """Return a host name or address as a certificate has it.  Raises ``ValueError``."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    try:
        ascii_name = name.strip().rstrip(".").lower().encode("idna").decode("ascii")
        if not ascii_name or any(character in ascii_name for character in "/:@ "):
            raise ValueError("not a host name")
        return ascii_name
    except ValueError:
        raise ValueError(f"'{name}' is neither a host name nor an address") from None
