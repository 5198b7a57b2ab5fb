"""``fabric-client drain``: finish what runs on this machine's node, then stop it."""

from __future__ import annotations

import time

from fabric_client.cli import Json
from fabric_client.cli.signal_node import POLL_SECONDS, await_response, of_the_directory, send
from fabric_client.config import Config
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from runtime.output import Failure, note, say, say_json


@of_the_directory
def drain(settings: Config, json: Json = False) -> None:
    """Finish running requests, then stop the node.

    Takes no new requests, and returns when the node has stopped. Ctrl-C ends only the waiting, not
    the drain.
    """
    Identity.load(settings.data)
    if not is_running(settings.data):
        raise Failure("the node is not running.")
    now = state.read(settings.data)
    if now is None:
        raise Failure("the node is still starting; try again in a moment.")
    draining = await_response(settings.data, send(settings.data, drain=now.run))
    if draining is not None and draining.active:
        note(f"Waiting for {draining.active} running requests.")
    while is_running(settings.data):
        later = state.read(settings.data)
        if later is not None and later.run != now.run:
            break  # systemd, Docker or the like has started it again
        time.sleep(POLL_SECONDS)  # another process acts: there is no event to wait for
    if json:
        say_json({"node_id": now.node_id, "pid": now.pid})
    else:
        say("Drained. The node has stopped.")
