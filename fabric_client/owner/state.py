"""What a running node tells ``fabric-client status``: a small file, rewritten when it changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.messages import EngineReport

log = logging.getLogger("fabric.state")

STALE_SECONDS = 60.0
"""A node that runs rewrites its state at least this often."""


class State(Struct, frozen=True):
    pid: int
    at: float
    """Unix seconds."""
    node_id: str
    name: str
    server: str
    linked: bool
    since: float
    """Since when it has been linked, or not."""
    reason: str
    """Why it is not linked."""
    tunnels: int
    active: int
    served: int
    engines: list[EngineReport]
    """As they are, paused or not."""
    run: str = ""
    """Names this run of the node; another start is another."""
    paused: str = ""
    """Why it takes nothing new; empty when it does."""
    draining: bool = False
    """It ends when what runs has ended."""
    tokens: int = 0
    """That the engines counted in their answers since it was started."""
    tokens_per_second: float = 0.0
    """Of the last minute's answers, by the time in which any was being made."""
    heard: float = 0.0
    """``Control.at`` of what its owner said last and it has acted on."""


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
    """A node starts: what the one before it wrote is no news any more."""
    path_in(directory).unlink(missing_ok=True)


def read(directory: Path) -> State | None:
    """None when no node has ever run there, or the file is not one of ours."""
    try:
        return msgspec.json.decode(path_in(directory).read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None
