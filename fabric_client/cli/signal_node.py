"""How commands tell a node that runs what its owner wants, and see that it has heard."""

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

PATIENCE = 10.0
"""Seconds in which a node that runs has heard what was said."""
LOOK_SECONDS = 0.1

of_the_directory = takes_settings(Config, PREFIX, only=("data",), not_settings=(TOKEN,))


def tell(
    directory: Path,
    *,
    paused: bool | None = None,
    until: float | None = None,
    drain: str | None = None,
) -> Control:
    """As ``control.say``.  Raises ``Failure``."""
    try:
        return control.update(directory, paused=paused, until=until, drain=drain)
    except Unreadable as error:
        raise Failure(str(error)) from None
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{directory} can't be written to ({reason}).") from None


def heard(directory: Path, said: Control) -> State | None:
    """What the node says once it has acted on that; None when none runs.  Raises ``Failure``."""
    give_up = time.monotonic() + PATIENCE
    while is_running(directory):
        now = state.read(directory)
        if now is not None and now.heard == said.at:
            return now
        if time.monotonic() > give_up:
            raise Failure(
                "the node that runs has not heard it: is it of this release, and not stuck?"
            )
        time.sleep(LOOK_SECONDS)  # another process' doing: there is no event for it
    return None
