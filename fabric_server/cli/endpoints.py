"""How a server that has started is reached: what ``up`` prints, and later commands look up."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec import Struct

log = logging.getLogger("fabric.server")


class Ports(Struct, frozen=True):
    """The real numbers, also where 0 was asked for."""

    control: int
    proxy: int
    public: int
    api: int


class Ready(Struct, frozen=True):
    """How a server that has started is reached; also kept in ``<data>/ready.json``."""

    event: str
    """Always ``ready``."""
    version: str
    pid: int
    at: float
    """Unix seconds."""
    data: str
    addresses: list[str]
    """Public names or addresses, the first of them in invitations."""
    ports: Ports
    public_url: str
    """For users: what OpenAI's clients call the base URL."""
    local_url: str | None
    """The same for programs on this machine, without TLS; None when it listens elsewhere only."""
    api_url: str
    ca_sha256: str


def last_start(data: Path) -> Ready | None:
    """How the server with this directory was last reached; None when it never was."""
    try:
        return msgspec.json.decode((data / "ready.json").read_bytes(), type=Ready)
    except (OSError, msgspec.MsgspecError):
        return None


def remember(data: Path, ready: Ready) -> None:
    """For ``last_start``; a full disk must not stop the server."""
    path = data / "ready.json"
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.encode(ready))
        temporary.replace(path)
    except OSError as error:
        log.warning("not written", extra={"path": str(path), "reason": str(error)})
