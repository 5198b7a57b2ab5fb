"""Sends an owner's command to the running node, and waits until the node has acted on it."""

from __future__ import annotations

import time
from pathlib import Path

from fabric_client.cli import TOKEN
from fabric_client.config import PREFIX, Config
from fabric_client.owner import control, state
from fabric_client.owner.control import Control, Unreadable
from fabric_client.owner.process_lock import is_running
from fabric_client.owner.state import State
from runtime.flags import takes_settings
from runtime.output import Failure

RESPONSE_SECONDS = 10.0
"""Time in which a running node acts on a command."""
POLL_SECONDS = 0.1

of_the_directory = takes_settings(Config, PREFIX, only=("data",), not_settings=(TOKEN,))


def send(
    directory: Path,
    *,
    paused: bool | None = None,
    until: float | None = None,
    drain: str | None = None,
    reload: bool = False,
) -> Control:
    """Write a command for the node (``control.update``).  Raises ``Failure``."""
    try:
        return control.update(directory, paused=paused, until=until, drain=drain, reload=reload)
    except Unreadable as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"can't write to {directory} ({error.strerror or error}).") from None


def await_response(directory: Path, command: Control) -> State | None:
    """Return the node's state once it has acted on the command, None if no node runs.

    Raises ``Failure`` if it does not in ``RESPONSE_SECONDS``.
    """
    give_up = time.monotonic() + RESPONSE_SECONDS
    while is_running(directory):
        now = state.read(directory)
        if now is not None and now.heard == command.at:
            return now
        if time.monotonic() > give_up:
            raise Failure("the node did not respond; it may be hung, or of another version.")
        time.sleep(POLL_SECONDS)  # another process acts: there is no event to wait for
    return None
