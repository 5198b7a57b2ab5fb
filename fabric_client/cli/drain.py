"""``fabric-client drain``: end the node that runs here, once what runs on it has ended."""

from __future__ import annotations

import time

from fabric_client.cli import Json
from fabric_client.cli.signal_node import LOOK_SECONDS, heard, of_the_directory, tell
from fabric_client.config import Config
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from runtime.output import Failure, note, say, say_json


@of_the_directory
def drain(settings: Config, json: Json = False) -> None:
    """Let the node that runs here take nothing new, finish what runs, and end.

    Returns when it has ended.  Ctrl-C ends only the waiting.
    """
    Identity.load(settings.data)
    if not is_running(settings.data):
        raise Failure("it is not running.")
    now = state.read(settings.data)
    if now is None:
        raise Failure("it is only starting: try again in a moment.")
    answering = heard(settings.data, tell(settings.data, drain=now.run))
    if answering is not None and answering.active:
        note(f"{answering.active} still running; waiting for them.")
    while is_running(settings.data):
        later = state.read(settings.data)
        if later is not None and later.run != now.run:
            break  # whoever keeps it running has started it again
        time.sleep(LOOK_SECONDS)  # another process' doing: there is no event for it
    if json:
        say_json({"node_id": now.node_id, "pid": now.pid})
    else:
        say("Drained: it has ended.")
