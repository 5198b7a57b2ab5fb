"""The ready message of a server: ``up`` prints it, and later commands read its addresses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

log = logging.getLogger("fabric.server")


class Ports(Struct, frozen=True, omit_defaults=True):
    """Port numbers, also of ports that were set to 0; the one port's of those it stands for."""

    control: int
    proxy: int
    public: int
    api: int
    one: int = 0
    """0 without."""


class UserCertificate(Struct, frozen=True):
    """The certificate that users see."""

    of: Literal["fabric", "file", "acme"] = "fabric"
    """Whose it is: the fabric's own, that of ``public_certificate``, or an ACME CA's, which may not
    have issued it yet."""
    path: str = ""
    """Its file."""


class Ready(Struct, frozen=True):
    """Addresses of a server that has started; also stored in ``<data>/ready.json``."""

    event: str
    """Always ``ready``."""
    version: str
    pid: int
    at: float
    """Unix seconds."""
    data: str
    addresses: list[str]
    """Public names or addresses; the first goes into invitations."""
    ports: Ports
    public_url: str
    """The base URL for OpenAI's clients."""
    local_url: str | None
    """The base URL without TLS, for programs on this machine; None if there is none."""
    api_url: str
    ca_sha256: str
    certificate: UserCertificate = UserCertificate()


def last_start(data: Path) -> Ready | None:
    """Read the ready message of the last start in this directory; None if there is none."""
    try:
        return msgspec.json.decode((data / "ready.json").read_bytes(), type=Ready)
    except (OSError, msgspec.MsgspecError):
        return None


def remember(data: Path, ready: Ready) -> None:
    """Write the message for ``last_start``; a full disk must not stop the server."""
    path = data / "ready.json"
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.encode(ready))
        temporary.replace(path)
    except OSError as error:
        log.warning("ready.json not written", extra={"path": str(path), "reason": str(error)})
