"""A running node's state for ``fabric-client status`` and the SDK: a small file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from fabric_client.offer.offered import HeldBack
from protocol.messages import EngineReport
from runtime.findings import Finding

log = logging.getLogger("fabric.state")

STALE_SECONDS = 60.0
"""A running node rewrites its state at least this often."""


class Reloaded(Struct, frozen=True):
    """The result of reading the settings again."""

    applied: list[str] = []
    """Names of the settings that have changed, and are in use."""
    needs_restart: list[str] = []
    """Names of those that have changed, and will be in use after a restart."""
    error: str = ""
    """Why nothing was changed."""


class State(Struct, frozen=True):
    """``state.json``, rewritten whenever it changes."""

    pid: int
    at: float
    """Unix seconds at which it was written."""
    node_id: str
    name: str
    server: str
    linked: bool
    since: float
    """Unix seconds at which ``linked`` changed."""
    reason: str
    """The reason not to be linked."""
    tunnels: int
    active: int
    served: int
    engines: list[EngineReport]
    """The engines as they are, whether the node is paused or not, with the models offered."""
    run: str = ""
    """Id of this run of the node; each start makes a new one."""
    paused: str = ""
    """The reason to take no new requests; empty when the node does."""
    draining: bool = False
    """The node ends when its running requests have ended."""
    tokens: int = 0
    """Tokens that the engines counted in their answers since the start."""
    tokens_per_second: float = 0.0
    """Tokens of the last minute's answers, by the time in which any was generated."""
    heard: float = 0.0
    """``Control.at`` of the last command that the node has acted on."""
    offers: tuple[str, ...] | None = None
    """The owner's patterns of the models that are offered; None: all are."""
    held_back: dict[str, list[HeldBack]] = {}
    """Models that are not offered, by the name of their engine."""
    server_release: str = ""
    """Release of the server; empty while it is unknown."""
    findings: list[Finding] = []
    """The problems that the node has found."""
    reloaded: Reloaded | None = None
    """The last time that the settings were read again."""


def path_in(directory: Path) -> Path:
    return directory / "state.json"


def write(directory: Path, state: State) -> None:
    """Replace the file as a whole; a full disk must not stop the node."""
    path = path_in(directory)
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.encode(state))
        os.replace(temporary, path)
    except OSError as error:
        log.warning("state not written", extra={"path": str(path), "reason": str(error)})


def forget(directory: Path) -> None:
    """Delete the state of the run before, when a node starts."""
    path_in(directory).unlink(missing_ok=True)


def read(directory: Path) -> State | None:
    """Return the state; None if no node has run there, or the file is not one of ours."""
    try:
        return msgspec.json.decode(path_in(directory).read_bytes(), type=State)
    except (OSError, ValueError, RecursionError):
        return None
